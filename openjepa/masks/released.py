"""Multi-block masks as the reference release draws them, biases included, so that parity can be tested.

From facts about facebookresearch/ijepa at 52c1ae9 (none of its code was used): one random number gives a shape both
its area and its aspect (there height / width); a side is always shorter than the grid's, and its last position is
never drawn, so the last row and column are never used; a context that keeps too few patches is moved, and after 20
moves the last target block is no longer taken out of it, so that here alone context and targets may overlap; contexts
of a batch are cut to the shortest by dropping their last patches. tests/parity/test_mask_statistics.py compares.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from openjepa.masks.blocks import Grid, Ints, Range, Rectangles, to_masks
from openjepa.masks.masks import Masks
from openjepa.recipe.views import Mask

# A context must keep more patches than this: the release's default. Its ImageNet configurations say 10, which makes no
# difference at 14 x 14, where contexts keep 31 or more.
MIN_KEEP_PATCHES = 4
# Positions tried before a target block is no longer taken out of the context.
MOVES = 20


def sample_released(generator: np.random.Generator, grid: Grid, batch: int, settings: Mask) -> Masks:
    """Masks of `batch` images, no padding. Raises ValueError where the release would try forever."""
    _refuse_small_blocks(grid, settings)
    target_shape = _to_shape(generator.random(1), grid, settings.target_scale, settings.target_aspect)
    context_shape = _to_shape(generator.random(1), grid, settings.context_scale, settings.context_aspect)
    num_targets = settings.num_targets
    targets = _place(generator, (batch, num_targets), *target_shape, grid).fill(grid)
    context = np.empty((batch, *grid), dtype=np.bool_)
    pending = np.arange(batch)
    for attempt in range(MOVES * num_targets + 1):
        taken_out = num_targets - attempt // MOVES
        rectangles = _place(generator, (len(pending),), *context_shape, grid)
        context[pending] = rectangles.fill(grid) & ~targets[pending, :taken_out].any(axis=1)
        pending = pending[context[pending].sum(axis=(1, 2)) <= MIN_KEEP_PATCHES]
        if not len(pending):
            break
    padded = to_masks(context, targets)
    shortest = int(padded.context_lengths.min())
    return Masks(
        padded.context_idx[:, :shortest],
        padded.context_lengths.clamp(max=shortest),
        padded.target_idx,
        padded.target_lengths,
    )


def _to_shape(number: np.ndarray[tuple[int], np.dtype[np.float64]], grid: Grid, scale: Range, aspect: Range) -> tuple[Ints, Ints]:
    """Heights and widths of the random numbers in [0, 1]."""
    patches = np.floor(grid[0] * grid[1] * (scale[0] + number * (scale[1] - scale[0])))
    ratio = aspect[0] + number * (aspect[1] - aspect[0])
    heights = np.minimum(np.rint(np.sqrt(patches * ratio)), grid[0] - 1)
    widths = np.minimum(np.rint(np.sqrt(patches / ratio)), grid[1] - 1)
    return heights.astype(np.int64), widths.astype(np.int64)


def _place(generator: np.random.Generator, shape: tuple[int, ...], height: Ints, width: Ints, grid: Grid) -> Rectangles:
    tops = generator.integers(grid[0] - height, size=shape)
    lefts = generator.integers(grid[1] - width, size=shape)
    return Rectangles(tops, lefts, height, width)


@lru_cache(maxsize=64)
def _refuse_small_blocks(grid: Grid, settings: Mask) -> None:
    for key, scale, aspect in (
        ("context_scale", settings.context_scale, settings.context_aspect),
        ("target_scale", settings.target_scale, settings.target_aspect),
    ):
        heights, widths = _to_shape(np.linspace(0, 1, 10_001), grid, scale, aspect)
        smallest = int((heights * widths).min())
        if smallest <= MIN_KEEP_PATCHES:
            raise ValueError(
                f"a grid of {grid[0]} x {grid[1]} patches: views.main.mask.{key} {scale[0]:g} to {scale[1]:g} gives blocks of "
                f"as few as {smallest} patches, and fidelity released needs more than {MIN_KEEP_PATCHES}; use a larger "
                f"views.main.mask.{key}, more patches (a smaller model.patch_size), or views.main.mask.fidelity unbiased"
            )
