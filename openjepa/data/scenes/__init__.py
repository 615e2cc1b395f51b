"""The generator of labelled scenes (docs/scenes.md)."""
