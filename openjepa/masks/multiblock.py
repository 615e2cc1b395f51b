"""Multi-block masks of the paper: one large context rectangle minus several target blocks.

Assran et al. 2023 (arXiv 2301.08243), section 3 and appendix A.1: M target blocks that may overlap one another, and a
context rectangle from which every target patch is removed. As in the release, a batch shares one target shape and one
context shape, so every target block of a batch has the same T patches. Deviations: draws without the release's bias
(see blocks.py), contexts of different lengths are padded rather than cut to the shortest, and an image whose context
comes out empty is drawn again. `fidelity = "released"` gives the release's own draws. num_contexts is not read.
"""

from __future__ import annotations

import numpy as np

from openjepa.masks.blocks import (
    Bools,
    Grid,
    Ints,
    Rectangles,
    describe_blocks,
    draw_images,
    draw_shapes,
    flip_images,
    list_shapes,
    place,
    to_masks,
)
from openjepa.masks.masks import Masks
from openjepa.masks.released import sample_released
from openjepa.recipe.views import Mask


def sample_multiblock(generator: np.random.Generator, grid: Grid, batch: int, settings: Mask) -> Masks:
    """Masks of `batch` images. Raises ValueError if every target block is the whole grid."""
    if settings.fidelity == "released":
        return sample_released(generator, grid, batch, settings)
    target_height, target_width = _draw_target_shape(generator, grid, settings)
    context_height, context_width = draw_shapes(generator, 1, grid, settings.context_scale, settings.context_aspect)

    def draw(num_images: int) -> tuple[Bools, Bools]:
        shape = (num_images, settings.num_targets)
        blocks = place(generator, np.broadcast_to(target_height, shape), np.broadcast_to(target_width, shape), grid)
        rectangles = place(generator, np.repeat(context_height, num_images), np.repeat(context_width, num_images), grid)
        targets = blocks.fill(grid)
        return rectangles.fill(grid) & ~targets.any(axis=1), targets

    def reserve_corner(num_images: int) -> tuple[Bools, Bools]:
        """The context lies in a corner and no block covers that corner's patch, so it is left."""
        columns = grid[1] - target_width + 1
        num_positions = (grid[0] - target_height + 1) * columns
        tops, lefts = np.divmod(generator.integers(num_positions - 1, size=(num_images, settings.num_targets)), columns)
        targets = Rectangles(tops, lefts, target_height, target_width).fill(grid)
        corner = Rectangles(grid[0] - context_height, grid[1] - context_width, context_height, context_width).fill(grid)
        return flip_images(generator, corner & ~targets.any(axis=1), targets)

    return to_masks(*draw_images(batch, draw, reserve_corner))


def _draw_target_shape(generator: np.random.Generator, grid: Grid, settings: Mask) -> tuple[Ints, Ints]:
    """Height and width (1,) of the batch's target blocks, never the whole grid."""
    height, width = draw_shapes(generator, 1, grid, settings.target_scale, settings.target_aspect)
    if height[0] * width[0] < grid[0] * grid[1]:
        return height, width
    heights, widths = list_shapes(grid, settings.target_scale, settings.target_aspect)
    num_smaller = int((heights * widths < grid[0] * grid[1]).sum())
    if not num_smaller:
        numbers = describe_blocks(grid, "target", settings.target_scale, settings.target_aspect)
        raise ValueError(
            f"a grid of {grid[0]} x {grid[1]} patches: {numbers}, the whole grid, and leaves no context; "
            "use a smaller views.main.mask.target_scale, or more patches (a smaller model.patch_size)"
        )
    choice = generator.integers(num_smaller, size=1)
    return heights[choice], widths[choice]
