"""Images in .npy files: (H, W), (H, W, C), or (C, H, W) where the recipe says so; any integers or floats.

Mapped, never unpickled: a header that lies about its size allocates nothing.
"""

from __future__ import annotations

import numpy as np

from openjepa.data.errors import DecodeError
from openjepa.data.raster import Raster, Samples
from openjepa.data.reading import Layout

MOST_CHANNELS = 64  # that a first dimension may have to look like channels


def is_npy(path: str) -> bool:
    """By the name: the extension is how a user says so."""
    return path.lower().endswith(".npy")


def map_array(path: str, layout: Layout) -> Samples:
    """The file's array as (H, W, C), unread. DecodeError if it is none of an image."""
    array: Samples = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype.kind not in "buif" or array.ndim not in (2, 3):
        raise DecodeError(path, f"holds {array.dtype} {array.shape}, expected numbers (height, width, channels)")
    if array.ndim == 2:
        return array[:, :, None]
    return array.transpose(1, 2, 0) if layout == "channels_first" else array


def read_npy(path: str, array: Samples, channels: int) -> Raster:
    """The samples of a mapped array: 1 channel is grey, 3 are RGB, any other number are bands.

    DecodeError that names the layout where the channels asked for are found in front.
    """
    num_bands = array.shape[2]
    if num_bands not in (1, 3, channels):
        wanted = f"data.channels={num_bands} reads it"
        if looks_channels_first(array.shape):
            wanted = f"it looks channels-first: data.layout=channels_first data.channels={array.shape[0]} reads it"
        raise DecodeError(path, f"holds {array.dtype} {array.shape}, expected (height, width, {channels}); {wanted}")
    colour = {1: "grey", 3: "rgb"}.get(num_bands, "bands")
    return Raster(np.array(array), colour)  # type: ignore[arg-type]


def looks_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether (H, W, C) is more likely (C, H, W): few in front, and what would be channels is a side."""
    return len(shape) == 3 and shape[0] <= MOST_CHANNELS and shape[0] < shape[1] / 2 and shape[2] > max(4, shape[1] / 4)
