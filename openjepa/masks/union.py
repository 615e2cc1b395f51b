"""Union masks of the brief: several context rectangles, target blocks beside them.

The context is the union of num_contexts rectangles; num_targets blocks are placed where they do not touch it. Every
rectangle has a shape of its own. Deviations: a target's position is uniform over all places that are free and that
add a patch to the earlier blocks (the brief tries 100 random ones and may end without a target), a later block keeps
only patches of no earlier one (the union is the brief's, each patch is predicted once), and a context that leaves no
room is drawn again; after 20 draws the targets come first and are taken out of the context rectangles.
tests/laws/test_masks.py pins them.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from openjepa.masks.blocks import (
    Bools,
    Grid,
    Ints,
    Rectangles,
    describe_blocks,
    draw_images,
    draw_shapes,
    find_room,
    flip_images,
    list_shapes,
    pick_position,
    place,
    to_masks,
)
from openjepa.masks.masks import Masks
from openjepa.recipe.views import Mask


def sample_union(generator: np.random.Generator, grid: Grid, batch: int, settings: Mask) -> Masks:
    """Masks of `batch` images. Raises ValueError if not even the smallest context leaves room for the target blocks."""
    _refuse_crowding(grid, settings)

    def draw(num_images: int) -> tuple[Bools, Bools]:
        context = _draw_contexts(generator, grid, num_images, settings).fill_union(grid)
        return context, _draw_targets(generator, context, settings)

    def reserve_corner(num_images: int) -> tuple[Bools, Bools]:
        """Targets first; one context rectangle lies in a corner whose patch no block covers, so it is left."""
        targets = _line_up_targets(generator, grid, num_images, settings)
        contexts = _draw_contexts(generator, grid, num_images, settings)
        contexts.tops[:, 0] = grid[0] - contexts.heights[:, 0]
        contexts.lefts[:, 0] = grid[1] - contexts.widths[:, 0]
        return flip_images(generator, contexts.fill_union(grid) & ~targets.any(axis=1), targets)

    return to_masks(*draw_images(batch, draw, reserve_corner))


def _draw_contexts(generator: np.random.Generator, grid: Grid, num_images: int, settings: Mask) -> Rectangles:
    """Context rectangles, arrays (num_images, num_contexts)."""
    shape = (num_images, settings.num_contexts)
    return place(generator, *draw_shapes(generator, shape, grid, settings.context_scale, settings.context_aspect), grid)


def _draw_targets(generator: np.random.Generator, context: Bools, settings: Mask) -> Bools:
    """Target blocks (B, M, h, w) beside the contexts (B, h, w); a block for which there is no room stays empty."""
    num_images, *sides = context.shape
    grid = (sides[0], sides[1])
    targets = np.empty((num_images, settings.num_targets, *grid), dtype=np.bool_)
    # A context patch weighs more than any block has patches, a patch of an earlier block weighs 1: a window is free
    # of context and adds a patch exactly where it weighs less than its area.
    weights = context * np.int64(grid[0] * grid[1] + 1)
    for block in range(settings.num_targets):
        heights, widths = draw_shapes(generator, num_images, grid, settings.target_scale, settings.target_aspect)
        room = find_room(weights, heights, widths)
        rectangles = Rectangles(*pick_position(generator, room), heights, widths)
        fresh = rectangles.fill(grid) & (weights == 0) & room.max(axis=(1, 2), keepdims=True)
        targets[:, block] = fresh
        weights += fresh
    return targets


def _line_up_targets(generator: np.random.Generator, grid: Grid, num_images: int, settings: Mask) -> Bools:
    """Target blocks (num_images, M, h, w), each adding a patch to the earlier ones, none on the bottom right patch.

    The blocks' bottom right patches differ and rise in row-major order, so no earlier block covers a later one's.
    """
    heights, widths = list_shapes(grid, settings.target_scale, settings.target_aspect)
    rows, columns = (side.ravel() for side in np.indices(grid))
    fits = _ends(grid, heights, widths)
    fits[-1] = False
    keys = np.where(fits.any(axis=1), generator.random((num_images, len(rows))), 2.0)
    ends = np.sort(np.argsort(keys, axis=1)[:, : settings.num_targets], axis=1)
    options = fits[ends]
    choice = np.where(options, generator.random(options.shape), -1.0).argmax(axis=2)
    heights, widths = heights[choice], widths[choice]
    targets = Rectangles(rows[ends] - heights + 1, columns[ends] - widths + 1, heights, widths).fill(grid)
    earlier = np.logical_or.accumulate(targets, axis=1)[:, :-1]
    targets[:, 1:] &= ~earlier
    return targets


def _ends(grid: Grid, heights: Ints, widths: Ints) -> Bools:
    """Which shapes (S,) fit with their bottom right patch at each patch of the grid, (h * w, S)."""
    rows, columns = (side.ravel()[:, None] for side in np.indices(grid))
    return np.asarray((rows >= heights - 1) & (columns >= widths - 1))


@lru_cache(maxsize=64)
def _refuse_crowding(grid: Grid, settings: Mask) -> None:
    """ValueError if no draw can hold a context and num_targets blocks that each add a patch beside it.

    The most room is left when all context rectangles lie on one another in a corner; there, as many blocks can be
    lined up as there are patches at which a block can end. For one shape that is every place it has; where several
    shapes are mixed, a cleverer order might fit a few more blocks, and those settings are refused all the same.
    """
    context_heights, context_widths = list_shapes(grid, settings.context_scale, settings.context_aspect)
    target_shapes = list_shapes(grid, settings.target_scale, settings.target_aspect)
    rows, columns = (side.ravel()[:, None] for side in np.indices(grid))
    beside = (rows < grid[0] - context_heights) | (columns < grid[1] - context_widths)
    room = int((beside & _ends(grid, *target_shapes).max(axis=1, keepdims=True)).sum(axis=0).max())
    if room < settings.num_targets:
        fits = f"at most {room} of {settings.num_targets} fit" if room else "no target block fits"
        fewer = ", fewer num_targets" if room else ""
        raise ValueError(
            f"a grid of {grid[0]} x {grid[1]} patches: "
            f"{describe_blocks(grid, 'context', settings.context_scale, settings.context_aspect)} and "
            f"{describe_blocks(grid, 'target', settings.target_scale, settings.target_aspect)}, and {fits} beside the "
            f"smallest context; use a smaller views.main.mask.context_scale or its target_scale{fewer}, or more patches (a "
            "smaller model.patch_size)"
        )
