"""The table of mask samplers and the way into it: the masks of a global batch are a function of (seed, step) alone.

A new sampler is a file beside this one and a row in SAMPLERS; it refuses by itself, with ValueError, the settings
that cannot work on a grid.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

import numpy as np

from openjepa.masks.block import sample_block
from openjepa.masks.inverse_block import sample_inverse_block
from openjepa.masks.masks import Masks
from openjepa.masks.multiblock import sample_multiblock
from openjepa.masks.random import sample_random
from openjepa.masks.union import sample_union
from openjepa.recipe.views import Mask

Sampler = Callable[[np.random.Generator, tuple[int, int], int, Mask], Masks]

SAMPLERS: dict[str, Sampler] = {
    "multiblock": sample_multiblock,
    "union": sample_union,
    "random": sample_random,
    "block": sample_block,
    "inverse_block": sample_inverse_block,
}

# Sets the masks' generator apart from those of the other random parts of a run.
PURPOSE = 1


def sample_masks(settings: Mask, grid: tuple[int, int], batch: int, *, seed: int, step: int, group: int = 0) -> Masks:
    """Masks of `batch` views on a grid of (rows, columns) patches; each process takes its own rows of them.

    group: the number of the group of views, each of which has masks of its own. Raises ValueError, like check_masks, if
    there is no such sampler or the settings cannot work on the grid.
    """
    assert batch >= 1, "a batch holds at least one image"
    generator = np.random.default_rng([seed, PURPOSE, step, group])
    return _find_sampler(settings, grid)(generator, (grid[0], grid[1]), batch, settings)


def check_masks(settings: Mask, grid: tuple[int, int]) -> None:
    """Raise ValueError, with the numbers and the fix, if these settings can give no masks on this grid.

    Draws one image: each sampler refuses what cannot work, whatever the draw.
    """
    sample_masks(settings, grid, 1, seed=0, step=0)


def _find_sampler(settings: Mask, grid: tuple[int, int]) -> Sampler:
    name = settings.sampler
    if name not in SAMPLERS:
        near = difflib.get_close_matches(name, SAMPLERS, n=1, cutoff=0.0)[0]
        raise ValueError(f"no views.main.mask.sampler {name!r}; did you mean {near}? There are {', '.join(SAMPLERS)}")
    if settings.fidelity == "released" and name != "multiblock":
        raise ValueError(
            f"views.main.mask.fidelity released is a way of multiblock, not of the sampler {name}; use fidelity unbiased"
        )
    if min(grid) < 2:
        raise ValueError(
            f"a grid of {grid[0]} x {grid[1]} patches is too small for masks, which need 2 x 2; "
            "use a larger data.image_size or a smaller model.patch_size"
        )
    return SAMPLERS[name]
