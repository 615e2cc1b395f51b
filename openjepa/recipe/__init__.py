"""What a run computes. Imports no torch."""
