"""Rectangles of patches: their shapes, their positions, and the way from boolean grids to padded indices.

Area and aspect are drawn independently, and a position is uniform over all places where the rectangle fits, the last
row and column included. This is where we leave the reference release of I-JEPA (Assran et al. 2023, arXiv 2301.08243),
whose draws released.py repeats. Pinned by tests/laws/test_masks.py. Everything is vectorised over the images of a
batch, in NumPy; every boolean grid has shape (..., height, width).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from openjepa.masks.masks import Masks

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Grid = tuple[int, int]
Range = tuple[float, float]
Draw = Callable[[int], tuple[Bools, Bools]]

# An image whose draws do not fit together is drawn again this often before its fallback. At 14 x 14 the
# brief's contexts leave room in 61 % of the draws, so one image in 10^8 reaches the fallback.
TRIES = 20


class Rectangles(NamedTuple):
    """Rectangles of patches, arrays that broadcast together; the top left patch is (tops, lefts)."""

    tops: Ints
    lefts: Ints
    heights: Ints
    widths: Ints

    def fill(self, grid: Grid) -> Bools:
        """Boolean grids (..., height, width), True inside each rectangle."""
        rows, columns = np.arange(grid[0]), np.arange(grid[1])
        tops, lefts, heights, widths = (values[..., None] for values in self)
        inside_rows = (rows >= tops) & (rows < tops + heights)
        inside_columns = (columns >= lefts) & (columns < lefts + widths)
        return inside_rows[..., :, None] & inside_columns[..., None, :]

    def fill_union(self, grid: Grid) -> Bools:
        """Boolean grids (B, height, width), True inside any rectangle of an image; the fields are (B, rectangles)."""
        return np.asarray(self.fill(grid).any(axis=1))


def draw_shapes(
    generator: np.random.Generator, shape: int | tuple[int, ...], grid: Grid, scale: Range, aspect: Range
) -> tuple[Ints, Ints]:
    """Heights and widths in patches, arrays of `shape`; at least one patch, at most the whole grid.

    scale is the area as a share of the grid's patches, aspect is width / height; both are uniform in their ranges.
    """
    area = grid[0] * grid[1] * generator.uniform(*scale, shape)
    ratio = generator.uniform(*aspect, shape)
    heights = np.clip(np.rint(np.sqrt(area / ratio)), 1, grid[0]).astype(np.int64)
    widths = np.clip(np.rint(np.sqrt(area * ratio)), 1, grid[1]).astype(np.int64)
    return heights, widths


@lru_cache(maxsize=256)
def list_shapes(grid: Grid, scale: Range, aspect: Range) -> tuple[Ints, Ints]:
    """Every (heights, widths) that draw_shapes can give, smallest area first.

    In logarithms the draws fill a rectangle turned by 45 degrees and rounding cuts the plane into upright ones, so a
    shape is possible where the two overlap on all four axes (separating axis theorem).
    """
    heights, widths = (side.ravel() + 1 for side in np.indices(grid))
    with np.errstate(divide="ignore"):
        low_height, low_width = (np.log(np.where(sides > 1, sides - 0.5, 0)) for sides in (heights, widths))
        high_height = np.log(np.where(heights < grid[0], heights + 0.5, np.inf))
        high_width = np.log(np.where(widths < grid[1], widths + 0.5, np.inf))
    (low_area, high_area), (low_aspect, high_aspect) = np.log(np.multiply(scale, grid[0] * grid[1])), np.log(aspect)
    axes = (
        (low_height + low_width, high_height + high_width, low_area, high_area),
        (low_width - high_height, high_width - low_height, low_aspect, high_aspect),
        (low_height, high_height, (low_area - high_aspect) / 2, (high_area - low_aspect) / 2),
        (low_width, high_width, (low_area + low_aspect) / 2, (high_area + high_aspect) / 2),
    )
    possible = np.ones(len(heights), dtype=np.bool_)
    for low, high, smallest, largest in axes:
        possible &= (low <= largest + 1e-9) & (high >= smallest - 1e-9)
    heights, widths = heights[possible], widths[possible]
    order = np.argsort(heights * widths, kind="stable")
    return heights[order], widths[order]


def place(generator: np.random.Generator, heights: Ints, widths: Ints, grid: Grid) -> Rectangles:
    """Rectangles of the given shapes at positions uniform over all places where each fits."""
    tops = generator.integers(grid[0] - heights + 1)
    lefts = generator.integers(grid[1] - widths + 1)
    return Rectangles(tops, lefts, heights, widths)


def find_room(weights: Ints, heights: Ints, widths: Ints) -> Bools:
    """Where a window may start: True at each top left patch whose window fits and weighs less than its own area.

    weights is (B, height, width), heights and widths (B,).
    """
    rows, columns = weights.shape[1:]
    across = _sum_windows(weights, widths)
    sums = _sum_windows(across.swapaxes(1, 2), heights).swapaxes(1, 2)
    fits_down = np.arange(rows) + heights[:, None] <= rows
    fits_across = np.arange(columns) + widths[:, None] <= columns
    light = sums < (heights * widths)[:, None, None]
    return np.asarray(light & fits_down[:, :, None] & fits_across[:, None, :])


def pick_position(generator: np.random.Generator, allowed: Bools) -> tuple[Ints, Ints]:
    """Rows and columns (B,) of one True entry per image, uniform over them; (0, 0) where an image has none."""
    rank = allowed.reshape(len(allowed), -1).cumsum(axis=1)
    wanted = generator.integers(np.maximum(rank[:, -1], 1))
    position = (rank > wanted[:, None]).argmax(axis=1)
    rows, columns = np.divmod(position, allowed.shape[2])
    return rows, columns


def flip_images(generator: np.random.Generator, context: Bools, targets: Bools) -> tuple[Bools, Bools]:
    """Mirror each image's masks top to bottom and left to right, each with probability one half."""
    for axis in (-2, -1):
        flipped = generator.random(len(context)) < 0.5
        context = np.where(flipped[:, None, None], np.flip(context, axis), context)
        targets = np.where(flipped[:, None, None, None], np.flip(targets, axis), targets)
    return context, targets


def draw_images(batch: int, draw: Draw, fallback: Draw) -> tuple[Bools, Bools]:
    """Context (B, h, w) and targets (B, M, h, w) in which no image lacks a context or a target block.

    draw(n) and fallback(n) give those of n images. An image of draw that lacks one is drawn again, TRIES times in
    all; the images left over come from fallback, which must be complete.
    """
    context, targets = draw(batch)
    for attempt in range(1, TRIES + 1):
        complete = np.asarray(context.any(axis=(1, 2)) & targets.any(axis=(2, 3)).min(axis=1))
        if complete.all():
            break
        again = np.flatnonzero(~complete)
        context[again], targets[again] = draw(len(again)) if attempt < TRIES else fallback(len(again))
    return context, targets


def to_masks(context: Bools, targets: Bools) -> Masks:
    """Masks of boolean grids, context (B, h, w) and targets (B, M, h, w)."""
    num_images, num_targets = targets.shape[:2]
    context_idx, context_lengths = _pad_indices(context.reshape(num_images, -1))
    target_idx, target_lengths = _pad_indices(targets.reshape(num_images * num_targets, -1))
    return Masks(
        torch.from_numpy(context_idx),
        torch.from_numpy(context_lengths),
        torch.from_numpy(target_idx.reshape(num_images, num_targets, -1)),
        torch.from_numpy(target_lengths.reshape(num_images, num_targets)),
    )


def describe_blocks(grid: Grid, kind: str, scale: Range, aspect: Range) -> str:
    """The numbers of a refusal: "views.main.mask.target_scale 0.15 to 0.2 gives target blocks of 9 to 16 patches"."""
    heights, widths = list_shapes(grid, scale, aspect)
    areas = heights * widths
    patches = f"{areas[0]} to {areas[-1]}" if areas[0] < areas[-1] else f"{areas[0]}"
    return f"views.main.mask.{kind}_scale {scale[0]:g} to {scale[1]:g} gives {kind} blocks of {patches} patches"


def _sum_windows(values: Ints, lengths: Ints) -> Ints:
    """Sums of values (B, x, y) over the window of the image's length (B,) that starts at each entry, along the last axis.

    One running sum over the whole array serves all rows (a running sum per row costs ten times more); a window that
    does not fit runs into the next row and gives a meaningless number.
    """
    totals = np.zeros(values.size + 1, dtype=np.int64)
    np.cumsum(values, out=totals[1:])
    ends = np.arange(values.size).reshape(values.shape) + lengths[:, None, None]
    return np.asarray(totals.take(ends, mode="clip") - totals[:-1].reshape(values.shape))


def _pad_indices(chosen: Bools) -> tuple[Ints, Ints]:
    """Indices (R, longest) of the True entries of each row, padded with the row's first, and their numbers (R,)."""
    lengths = chosen.sum(axis=1)
    assert lengths.min() >= 1, "an image came out without a context or a target"
    columns = np.nonzero(chosen)[1]
    first = columns[lengths.cumsum() - lengths]
    padded = np.repeat(first[:, None], lengths.max(), axis=1)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = columns
    return padded, lengths
