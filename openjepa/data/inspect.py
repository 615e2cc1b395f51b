"""A look at images before anything is decided: how many, how large, grey or colour.

Sizes come from the headers of files spread evenly over the data. A file stored in colour may still show grey, so a few of those
are decoded. Files that cannot be read are passed over here; training lists them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor, unique

from openjepa.data.decode import Header, Pixels, read_header
from openjepa.data.dicom import EXTENSIONS as DICOM
from openjepa.data.dicom import read_window
from openjepa.data.identify import extension_of
from openjepa.data.npy import is_npy, looks_channels_first
from openjepa.data.reading import AS_STORED, Reading
from openjepa.data.skipped import one_line
from openjepa.data.sources import DecodeError, FolderSource, ImageSource, open_source, printable, spread
from openjepa.data.sources.folder import list_pages_of
from openjepa.data.sources.packed import read_packed_channels

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


def look_at(spec: str, reading: Reading = AS_STORED) -> DataLook:
    """Look at the data that a user names. Raises ValueError as open_source does, or if no image can be read."""
    source = open_source(
        spec, read_packed_channels(spec) or (1 if spec.startswith(("sample:", "fashion-mnist:")) else 3), reading
    )
    chosen_idx = spread(len(source), LOOKED_AT).tolist()
    headers = {}
    for index in chosen_idx:
        try:
            headers[index] = look_at_header(source, index)
        except DecodeError as error:
            unreadable = error
    if not headers:
        raise ValueError(f"{spec}: none of {len(chosen_idx)} images looked at can be read; the last is {unreadable}")
    if reading.layout == "channels_last" and isinstance(source, FolderSource):
        _check_layout(source, headers)
    side_px = int(np.median([min(header.size) for header in headers.values()]))
    return DataLook(len(source), side_px, _find_channels(source, headers), len(headers))


def _check_layout(source: FolderSource, headers: dict[int, Header]) -> None:
    """ValueError if arrays have their channels in front: a recipe for them as they lie would be nonsense."""
    shapes = {index: (*header.size, header.channels) for index, header in headers.items() if is_npy(source.files[index])}
    if shapes and all(looks_channels_first(shape) for shape in shapes.values()):
        index, shape = next(iter(shapes.items()))
        raise ValueError(
            f"{source.path(index)} holds an array of {shape}, which looks channels-first: add data.layout=channels_first, "
            f"or choose a recipe by name with data.channels={shape[2]} if it is not"
        )


def look_at_header(source: ImageSource, index: int) -> Header:
    """Size and channels of an image: of a file by its header, of what is in memory already by itself. Raises DecodeError."""
    if isinstance(source, FolderSource):
        return read_header(source.files[index], source.reading, source.page(index))
    return Header(source.open(index).size, source.channels)


def _find_channels(source: ImageSource, headers: dict[int, Header]) -> int:
    stored = {header.channels for header in headers.values()}
    if len(stored) == 1 and stored != {3}:
        return stored.pop()
    coloured = [index for index, header in headers.items() if header.channels == 3]
    sampled = [coloured[i] for i in spread(len(coloured), DECODED)]
    return 3 if any(_shows_colour(pixels) for pixels in _decode(source, sampled)) else 1


def _decode(source: ImageSource, indices: list[int]) -> Iterator[Pixels]:
    """The readable ones of these images, coarsely where that is less work."""
    shown = replace(source, channels=3) if isinstance(source, FolderSource) else source
    for index in indices:
        with suppress(DecodeError):
            yield shown.open(index).decode(REDUCTION)


def _shows_colour(pixels: Pixels) -> bool:
    return bool(np.ptp(pixels.astype(np.int16), axis=2).max() > GREY_LEVELS)


FEW_IMAGES = 100  # a tenth of the smallest number that a recipe was tried with, small_1k
FEWEST_IMAGES = 10  # below, a healthy encoder's effective rank is as low as a collapsed one's
MANY_FRAC = 0.5  # share of the sample; more copies or flat images than this are not an accident


class Finding(NamedTuple):
    """What is wrong, in words; hopeless if no run on these images could be called healthy."""

    words: str
    is_hopeless: bool


def check_number(num_images: int, spec: str) -> None:
    """ValueError for a single image: health and regularisers compare images."""
    if num_images < 2:
        raise ValueError(f"{spec} holds 1 image, and learning takes images that differ: 2 at the very least, 1,000 to be useful")


def find_problems(views: UInt8[Tensor, "sample channels height width"], num_images: int) -> list[Finding]:
    """Findings on a sample of a data set's views, worst first; none for images as they should be."""
    sampled = f"{len(views)} sampled images" if len(views) < num_images else f"{len(views)} images"
    is_flat = _flat_mask(views)
    flat, different = int(is_flat.sum()), len(unique(views.flatten(1), dim=0))
    found = []
    if flat == len(views):
        colour = "of one flat colour" if views.any() else "black"
        found.append(Finding(f"all {sampled} are {colour}: there is nothing to predict", True))
    elif different == 1:
        found.append(Finding(f"all {sampled} are identical: there is nothing to tell apart", True))
    elif flat > MANY_FRAC * len(views):
        found.append(Finding(f"{flat} of {sampled} are of one flat colour and teach nothing", False))
    elif len(views) - different > MANY_FRAC * len(views):
        found.append(Finding(f"{sampled} show only {different} different pictures", False))
    if num_images < FEW_IMAGES:
        found.append(
            Finding(
                f"only {num_images} images: features will not carry over to new ones, and effective rank, which cannot exceed "
                f"{min(num_images, len(views))} here, says little; no recipe was tried with fewer than 1,000",
                num_images < FEWEST_IMAGES,
            )
        )
    return found


def describe_pages(source: ImageSource) -> list[str]:
    """A line where TIFF or DICOM files looked at hold several pages, of which the first alone is read."""
    if not isinstance(source, FolderSource) or source.reading.pages == "all":
        return []
    stacks = [path for path in source.files if extension_of(path) in (".tif", ".tiff", *DICOM)]
    looked_at = [stacks[i] for i in spread(len(stacks), DECODED)]
    counts = [len(list_pages_of(path)) for path in looked_at]
    several = [count for count in counts if count > 1]
    if not several:
        return []
    return [
        f"{len(several)} of {len(looked_at)} TIFF and DICOM files looked at hold {min(several)} to {max(several)} pages: only "
        "the first is read; data.pages=all makes every page an image"
    ]


def describe_windows(source: ImageSource) -> list[str]:
    """A line where DICOM files looked at are shown by a window of their own, which need not be one for all."""
    if not isinstance(source, FolderSource) or source.reading.window == "ignore":
        return []
    scans = [index for index, path in enumerate(source.files) if extension_of(path) in DICOM]
    looked_at = [scans[i] for i in spread(len(scans), DECODED)]
    windows = [window for index in looked_at if (window := _window_of(source, index)) is not None]
    if not windows:
        return []
    return [
        f"{len(windows)} of {len(looked_at)} DICOM files looked at are shown by their own window, {len(set(windows))} different; "
        "data.window=ignore shows all alike, with data.black_level and data.white_level in the scanner's units (CT: Hounsfield)"
    ]


def _window_of(source: FolderSource, index: int) -> object:
    """What tells a file's own black and white from another's; None if it states none or cannot be read."""
    try:
        return read_window(source.files[index], source.page(index))
    except Exception:  # damaged files make pydicom raise almost anything; decoding says what is wrong
        return None


def _flat_mask(views: UInt8[Tensor, "sample channels height width"]) -> Bool[Tensor, " sample"]:
    """True where every pixel has the first one's colour."""
    return (views == views[:, :, :1, :1]).flatten(1).all(1)


def describe_data(source: ImageSource, sample_idx: Int64[np.ndarray, " sample"]) -> Iterator[str]:
    """Number, kinds, labels and sizes of the images; sizes are of the sample, and of headers alone where there are files."""
    sizes = []
    for index in sample_idx.tolist():
        with suppress(DecodeError):  # listed when it is decoded
            sizes.append(look_at_header(source, index).size)
    kinds = Counter(_kind_of(source, index) for index in range(len(source)))
    yield f"{source.spec}: {len(source)} images ({', '.join(f'{count} {kind}' for kind, count in kinds.most_common())})"
    if source.labels is None:
        yield "no labels: enough to pretrain; a probe needs class sub-folders"
    else:
        counts = np.bincount(source.labels, minlength=len(source.classes))
        names = ", ".join(map(one_line, source.classes[:10]))
        yield f"{len(source.classes)} classes of {counts.min()} to {counts.max()} images: {names}"
    if sizes:
        heights, widths = zip(*sizes, strict=True)
        yield (
            f"sizes, height x width: {min(heights)} x {min(widths)} to {max(heights)} x {max(widths)} px, "
            f"median {int(np.median(heights))} x {int(np.median(widths))}, of {len(sizes)} looked at"
        )


def _kind_of(source: ImageSource, index: int) -> str:
    if isinstance(source, FolderSource):
        return one_line(printable(extension_of(source.files[index])))
    return Path(source.path(index)).suffix.lower() or "array"
