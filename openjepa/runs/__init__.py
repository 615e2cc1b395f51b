"""The files of a run: its folder, log, lock, environment and signals. Standard library where it can be."""
