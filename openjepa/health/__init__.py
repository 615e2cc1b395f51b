"""Whether a run is learning: what is measured, and the verdict."""
