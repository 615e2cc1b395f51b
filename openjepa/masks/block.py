"""Single-block masks, for the ablation of the brief ("one block"): one context rectangle, one target
block beside it. They are union masks with one rectangle of each kind; num_contexts and num_targets are not read.
"""

from __future__ import annotations

import numpy as np

from openjepa.masks.blocks import Grid
from openjepa.masks.masks import Masks
from openjepa.masks.union import sample_union
from openjepa.recipe.views import Mask


def sample_block(generator: np.random.Generator, grid: Grid, batch: int, settings: Mask) -> Masks:
    """Masks of `batch` images, M = 1. Raises ValueError if no target block fits beside the smallest context."""
    return sample_union(generator, grid, batch, settings.model_copy(update={"num_contexts": 1, "num_targets": 1}))
