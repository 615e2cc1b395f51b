"""RandAugment: some random operations on a view, each about as strong as a magnitude says.

Source: Cubuk et al. 2020 (arXiv 1909.13719), by timm: its operations rise in strength with the magnitude ("inc1"), which has a
normal deviate of 0.5, the settings of MAE's fine-tuning (2111.06377, table 9). timm draws from Python's and NumPy's global
generators, which are seeded here from the view's own and put back.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
from PIL import Image

from openjepa.data.decode import Pixels

GREY = 128  # what moved edges are filled with
STRONGEST = 9.99  # at 10 timm asks Pillow to keep 0 bits of a level, which Pillow 13 refuses


def rand_augment(view: Pixels, operations: int, magnitude: float, generator: np.random.Generator) -> Pixels:
    """The view (H, W, 1 or 3) after `operations` random operations."""
    channels = view.shape[2]
    image = Image.fromarray(view[:, :, 0] if channels == 1 else view)
    with _seeded(int(generator.integers(2**32))):
        changed = np.asarray(_make(operations, magnitude, channels)(image))
    return changed[:, :, None] if channels == 1 else changed


@lru_cache
def _make(operations: int, magnitude: float, channels: int) -> Callable[[Image.Image], Image.Image]:
    from timm.data.auto_augment import rand_augment_transform

    settings = {"img_mean": GREY if channels == 1 else (GREY,) * 3, "magnitude_max": STRONGEST}
    made: Callable[[Image.Image], Image.Image] = rand_augment_transform(
        f"rand-m{magnitude:g}-n{operations}-mstd0.5-inc1", settings
    )
    return made


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    ours, numpys = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)
