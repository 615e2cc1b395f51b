"""Images: where they come from (sources), how they are read (decode), cut (views) and fed to training (loader)."""
