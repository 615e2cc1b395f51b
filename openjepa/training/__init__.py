"""From a recipe to trained weights: the trainer, and what a run does around it."""
