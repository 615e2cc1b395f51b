"""Inverse block masks: small blocks stay visible, and all the rest is hidden.

Source: Baevski et al. 2022 (arXiv 2212.07525, section 3.4). The context is the union of num_contexts rectangles; then random
patches are given up or added until as many are hidden as target_scale says, a share uniform in its range and drawn for each
image. One target block, M = 1, of all hidden patches; num_targets and target_aspect are not read. Deviations: a rectangle
lies within the grid, where the authors' blocks may be cut off by its edge; patches are added from anywhere. Pinned by
tests/unit/test_inverse_block.py.
"""

from __future__ import annotations

import numpy as np

from openjepa.masks.blocks import Grid, draw_shapes, place, to_masks
from openjepa.masks.masks import Masks
from openjepa.recipe.views import Mask


def sample_inverse_block(generator: np.random.Generator, grid: Grid, batch: int, settings: Mask) -> Masks:
    """Masks of `batch` images. Raises ValueError if no patch is left to hide or to see."""
    num_patches = grid[0] * grid[1]
    fewest, most = (round(share * num_patches) for share in settings.target_scale)
    if fewest < 1 or most >= num_patches:
        raise ValueError(
            f"a grid of {grid[0]} x {grid[1]} patches: views.main.mask.target_scale {settings.target_scale[0]:g} to "
            f"{settings.target_scale[1]:g} hides {fewest} to {most} of {num_patches} patches; use a larger or smaller "
            "share, so that one is hidden and one visible"
        )
    shapes = draw_shapes(generator, (batch, settings.num_contexts), grid, settings.context_scale, settings.context_aspect)
    blocks = place(generator, *shapes, grid).fill_union(grid).reshape(batch, num_patches)
    num_visible = num_patches - generator.integers(fewest, most, size=batch, endpoint=True)
    order = np.argsort(generator.random((batch, num_patches)) - blocks, axis=1)  # patches of blocks first, each kind at random
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(num_patches)[None], axis=1)
    context = (rank < num_visible[:, None]).reshape(batch, *grid)
    return to_masks(context, ~context[:, None])
