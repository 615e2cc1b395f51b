"""Fixed 2-D sine-cosine positions, and resizing a position table to another grid.

Source: Vaswani et al. 2017 (arXiv 1706.03762, section 3.5) in the 2-D form of MAE and I-JEPA (2111.06377, 2301.08243): the
first half of the width encodes the column, the second half the row. Deviation: grids need not be square. Pinned by
tests/parity/test_golden_step.py and tests/unit/test_positions.py.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

MAX_PERIOD = 10_000  # longest wavelength over 2 pi, section 3.5


def sine_cosine_positions(grid: tuple[int, int], width: int) -> Float[Tensor, "patches width"]:
    """Position table of a grid (patches down, patches across), in row-major order.

    width must be a multiple of 4: sine and cosine for each of two axes.
    """
    assert width % 4 == 0, width
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    table = np.concatenate([_encode(columns.ravel(), width // 2), _encode(rows.ravel(), width // 2)], axis=1)
    return torch.from_numpy(table.astype(np.float32))


def resize_positions(
    positions: Float[Tensor, "patches width"], old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Tensor, "new_patches width"]:
    """The table of another grid by bicubic, antialiased interpolation; the same tensor if the grid is the same."""
    if old_grid == new_grid:
        return positions
    image = positions.float().reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    image = functional.interpolate(image, size=new_grid, mode="bicubic", antialias=True, align_corners=False)
    return image.permute(0, 2, 3, 1).flatten(0, 2).to(positions.dtype)


def _encode(coordinate: np.ndarray, width: int) -> np.ndarray:
    """Sine then cosine of a coordinate at width / 2 wavelengths, in float64."""
    frequencies = MAX_PERIOD ** -(np.arange(width // 2, dtype=np.float64) / (width / 2))
    angles = np.outer(coordinate, frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
