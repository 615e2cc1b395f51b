"""A look at images before anything is decided: how many, how large, grey or colour.

Sizes come from the headers of files spread evenly over the data. A file stored in colour may still show grey, so a few of those
are decoded. Files that cannot be read are passed over here; training lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from openjepa.data.decode import DecodeError, Header, Pixels, open_image, read_header
from openjepa.data.packed import read_packed_channels
from openjepa.data.sources import FolderSource, ImageSource, open_source

LOOKED_AT = 200  # images whose size is read
DECODED = 32  # of those stored in colour, to see whether they show any
REDUCTION = 8  # at which a JPEG is decoded for that
GREY_LEVELS = 2  # by which the channels of a grey picture may differ: rounding of a JPEG's colour conversion


@dataclass(frozen=True)
class DataLook:
    """What is known of the images without decoding them all."""

    num_images: int
    side_px: int
    """Median shorter side of those looked at."""
    channels: int
    """1 if all looked at are grey, else 3; arrays of another number of channels keep theirs."""
    num_looked_at: int


def look_at(spec: str) -> DataLook:
    """Look at the data that a user names. Raises ValueError as open_source does, or if no image can be read."""
    source = open_source(spec, read_packed_channels(spec) or (1 if spec.startswith(("sample:", "fashion-mnist:")) else 3))
    chosen_idx = np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).astype(np.int64)).tolist()
    headers = {}
    for index in chosen_idx:
        try:
            headers[index] = look_at_header(source, index)
        except DecodeError as error:
            unreadable = error
    if not headers:
        raise ValueError(f"{spec}: none of {len(chosen_idx)} images looked at can be read; the last is {unreadable}")
    side_px = int(np.median([min(header.size) for header in headers.values()]))
    return DataLook(len(source), side_px, _find_channels(source, headers), len(headers))


def look_at_header(source: ImageSource, index: int) -> Header:
    """Size and channels of an image: of a file by its header, of what is in memory already by itself. Raises DecodeError."""
    if isinstance(source, FolderSource):
        return read_header(source.files[index])
    return Header(source.open(index).size, source.channels)


def _find_channels(source: ImageSource, headers: dict[int, Header]) -> int:
    stored = {header.channels for header in headers.values()}
    if len(stored) == 1 and stored != {3}:
        return stored.pop()
    coloured = [index for index, header in headers.items() if header.channels == 3]
    sampled = [coloured[i] for i in np.unique(np.linspace(0, len(coloured) - 1, DECODED).astype(np.int64))]
    return 3 if any(_shows_colour(pixels) for pixels in _decode(source, sampled)) else 1


def _decode(source: ImageSource, indices: list[int]) -> Iterator[Pixels]:
    """The readable ones of these images, coarsely where that is less work."""
    for index in indices:
        try:
            picture = open_image(source.files[index], 3) if isinstance(source, FolderSource) else source.open(index)
            yield picture.decode(REDUCTION)
        except DecodeError:
            continue


def _shows_colour(pixels: Pixels) -> bool:
    return bool(np.ptp(pixels.astype(np.int16), axis=2).max() > GREY_LEVELS)
