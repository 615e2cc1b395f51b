"""A run's pictures and its one-page report, from the plain files of the run folder. Imports no training code."""
