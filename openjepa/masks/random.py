"""Random masks, for the ablation of the brief ("random"): scattered context and target patches.

context_scale and target_scale give the shares of the patches, uniform in their ranges and drawn for each image; the
two sets are disjoint, and where both shares do not fit the context's is drawn from what the target leaves. One target
block, M = 1; the aspects and numbers of rectangles are not read.
"""

from __future__ import annotations

import numpy as np

from openjepa.masks.blocks import Grid, Ints, to_masks
from openjepa.masks.masks import Masks
from openjepa.recipe.views import Mask


def sample_random(generator: np.random.Generator, grid: Grid, batch: int, settings: Mask) -> Masks:
    """Masks of `batch` images. Raises ValueError if the smallest context and target shares exceed the grid."""
    num_patches = grid[0] * grid[1]
    smallest_context, largest_context = _to_patches(settings.context_scale, num_patches)
    smallest_target, largest_target = _to_patches(settings.target_scale, num_patches)
    if smallest_context + smallest_target > num_patches:
        raise ValueError(
            f"a grid of {grid[0]} x {grid[1]} patches: views.main.mask.context_scale {settings.context_scale[0]:g} gives "
            f"at least {smallest_context} context patches and its target_scale {settings.target_scale[0]:g} at least "
            f"{smallest_target} target patches, {smallest_context + smallest_target} of {num_patches}; use smaller scales"
        )
    num_target = _draw_counts(generator, batch, smallest_target, min(largest_target, num_patches - smallest_context))
    num_context = _draw_counts(generator, batch, smallest_context, np.minimum(largest_context, num_patches - num_target))
    order = generator.random((batch, num_patches)).argsort(axis=1)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(num_patches)[None], axis=1)
    rank = rank.reshape(batch, *grid)
    num_target, num_context = num_target[:, None, None], num_context[:, None, None]
    target = rank < num_target
    context = (rank >= num_target) & (rank < num_target + num_context)
    return to_masks(context, target[:, None])


def _to_patches(scale: tuple[float, float], num_patches: int) -> tuple[int, int]:
    smallest, largest = (max(round(share * num_patches), 1) for share in scale)
    return smallest, largest


def _draw_counts(generator: np.random.Generator, batch: int, smallest: int, largest: int | Ints) -> Ints:
    return generator.integers(smallest, largest, size=batch, endpoint=True)
