"""DICOM (NEMA PS3): one frame's samples by pydicom, and the black and white that the file itself shows them by.

Grey frames become modality values (rescale slope and intercept, or a lookup table: PS3.3 C.11.1). The file's first window
(VOI LUT, linear, linear exact or sigmoid: PS3.3 C.11.2) then gives black and white, unless `Reading.window` is "ignore"; files
without one are scaled with the whole set, as all images of more than 8 bits are (depth.py). MONOCHROME1 is inverted after that.
Pixel padding is missing, which is shown darkest. Values of a frame of an enhanced file are found in its functional groups.
RGB, YBR and palettes become RGB. A frame is a page: `data.pages: all` makes each an image.
Left out: overlays, presentation states, further windows, supplemental palettes, deflated files (which may inflate to any size),
files without the mark "DICM" (identify.py names them). Only the elements listed here are parsed, so that nothing about a
patient can reach a message.
tests/unit/test_dicom.py compares with pydicom's own lookup tables and windows.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Shaped

from openjepa.data.errors import DecodeError
from openjepa.data.raster import Raster
from openjepa.data.reading import Reading

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MARK, MARK_AT = b"DICM", 128
EXTENSIONS = (".dcm", ".dicom")
KEYWORDS = (
    "SOPClassUID", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
    "BitsStored", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence", "VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")),
    *(f"{kind}{colour}PaletteColorLookupTableData" for kind in ("", "Segmented") for colour in ("Red", "Green", "Blue")),
)  # fmt: skip
MOST_WORDS = 150  # letters of a library's own message
GREY, PALETTE = ("MONOCHROME1", "MONOCHROME2"), "PALETTE COLOR"
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
DEFLATED = "1.2.840.10008.1.2.1.99"  # pydicom would inflate the whole file, to whatever size
DECOMPRESS = "decompress it first (dcmconv or gdcmconv --raw)"
DIRECTORY = "DICOMDIR"  # a medium's table of contents

Scale = tuple[float, float]


def has_dicom() -> bool:
    """Whether pydicom is installed."""
    return importlib.util.find_spec("pydicom") is not None


def is_dicom(path: str) -> bool:
    """Whether a file says that it is DICOM."""
    with open(path, "rb") as file:
        file.seek(MARK_AT)
        return file.read(len(MARK)) == MARK


def may_be_dicom(name: str) -> bool:
    """Whether a file's name is one that DICOM files have which are not called .dcm: no extension, or numbers with dots."""
    extension = os.path.splitext(name)[1]
    return (not extension or extension[1:].isdigit()) and os.path.basename(name).upper() != DIRECTORY


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Whatever goes wrong inside is a DecodeError that says what the file is."""
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:  # damaged files make pydicom raise almost anything
        words = " ".join(str(error).split())[:MOST_WORDS] or type(error).__name__
        raise DecodeError(path, f"is a DICOM file that cannot be read: {words}") from error


def read_shape(path: str, reading: Reading) -> tuple[int, int, int, str]:
    """Height, width, channels and the type of the samples of a file's first frame; uint8 where the file says how to show them."""
    with _named(path):
        facts = _read_facts(path)
        channels = 1 if facts.PhotometricInterpretation in GREY else 3
        bits, is_signed = int(facts.BitsAllocated), bool(facts.get("PixelRepresentation"))
        is_rescaled = _find_rescaling(facts, 0) is not None
        if channels == 3 or _states_window(facts, 0, reading) or (bits <= 8 and not is_rescaled and not is_signed):
            depth = "uint8"
        elif is_rescaled or facts.get("PixelPaddingValue") is not None:
            depth = "float32"
        else:
            depth = f"{'' if is_signed else 'u'}int{bits}"
        return int(facts.Rows), int(facts.Columns), channels, depth


def count_frames(path: str) -> int:
    """Frames of a file, at least 1: no more than it has room for, whatever it says."""
    with _named(path):
        facts = _read_facts(path)
        stated = int(facts.get("NumberOfFrames") or 1)
        num_bytes = 8  # of a compressed frame, its tag and its length at the least
        if not facts.file_meta.TransferSyntaxUID.is_compressed:
            num_bytes = max(facts.Rows * facts.Columns * facts.SamplesPerPixel * facts.BitsAllocated // 8, 1)
    return stated if 1 <= stated <= os.path.getsize(path) // num_bytes else 1


def read_window(path: str, frame_idx: int) -> object:
    """The window of a frame, to be compared with others'; None if the file states none."""
    facts = _read_facts(path)
    return "table" if facts.get("VOILUTSequence") else _find_window(facts, frame_idx)


def read_dicom(path: str, frame_idx: int, reading: Reading, max_pixels: int) -> Raster:
    """Samples of a frame, with black and white where the file states them. DecodeError says what cannot be read."""
    with _named(path):
        facts = _read_facts(path)
        height, width, kind = int(facts.Rows), int(facts.Columns), str(facts.PhotometricInterpretation)
        if not 0 < height * width <= max_pixels:
            raise DecodeError(path, f"is a DICOM file of {width} x {height} pixels; 1 to {max_pixels:,} are read")
        if kind not in (*GREY, *COLOURS, PALETTE):
            raise DecodeError(
                path, f"is a DICOM file with photometric interpretation {kind!r}, which is not read: save it as RGB"
            )
        stored = _decode(path, facts, frame_idx)
        return _show_grey(stored, facts, frame_idx, reading) if kind in GREY else _show_colour(stored, facts)


def _show_colour(stored: Shaped[np.ndarray, "height width *samples"], facts: Dataset) -> Raster:
    """RGB, by its palette where it has one."""
    white = _white_of(facts)
    if facts.PhotometricInterpretation == PALETTE:
        from pydicom.pixels import apply_color_lut

        stored = apply_color_lut(stored, facts)[:, :, :3]
        white = float(np.iinfo(stored.dtype).max)
    return Raster(np.ascontiguousarray(stored), "rgb", scale=None if stored.dtype == np.uint8 else (0.0, white))


def _white_of(facts: Dataset) -> float:
    """The largest value of unsigned samples."""
    return 2.0 ** int(facts.get("BitsStored") or facts.BitsAllocated) - 1


def _read_facts(path: str) -> Dataset:
    """The elements that are listed above, without the pixels. DecodeError if it holds no picture."""
    from pydicom import dcmread
    from pydicom.filereader import read_file_meta_info

    if (syntax := read_file_meta_info(path).get("TransferSyntaxUID")) == DEFLATED:
        raise DecodeError(path, f"is a DICOM file encoded as {syntax.name}, which is not read: {DECOMPRESS}")
    facts = dcmread(path, stop_before_pixels=True, specific_tags=list(KEYWORDS))
    if facts.get("Rows") is None or facts.get("PhotometricInterpretation") is None:
        kind = facts.get("SOPClassUID")
        raise DecodeError(path, f"is a DICOM file without a picture ({kind.name if kind else 'of no stated kind'}): remove it")
    return facts


def _decode(path: str, facts: Dataset, frame_idx: int) -> Shaped[np.ndarray, "height width *samples"]:
    """A frame's stored samples; YBR is RGB by now. DecodeError that names an encoding which nothing here decodes."""
    from pydicom.pixels import get_decoder, pixel_array

    syntax = facts.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise DecodeError(path, "is a DICOM file that does not say how its pixels are encoded: write it again with pydicom")
    try:
        can_decode = get_decoder(syntax).is_available
    except NotImplementedError:
        raise DecodeError(path, f"is a DICOM file encoded as {syntax.name}, which is not read: convert it to PNG") from None
    if not can_decode:
        cure = f"pip install python-gdcm may decode it, or {DECOMPRESS}"
        raise DecodeError(path, f"is a DICOM file compressed as {syntax.name}, which nothing installed here decodes: {cure}")
    if frame_idx >= (frames := count_frames(path)):
        raise DecodeError(path, f"has {frames} frames and frame {frame_idx + 1} is asked for")
    return np.asarray(pixel_array(path, index=frame_idx))


def _show_grey(stored: Shaped[np.ndarray, "height width"], facts: Dataset, frame_idx: int, reading: Reading) -> Raster:
    """Modality values of a frame, or what a table or a curve makes of them; and their black and white, if stated."""
    from pydicom.pixels import apply_modality_lut

    rescaling, is_padding = _find_rescaling(facts, frame_idx), _find_padding(stored, facts)
    values: Shaped[np.ndarray, "height width"] = stored if rescaling is None else apply_modality_lut(stored, rescaling)
    scale: Scale | None = None
    if _states_window(facts, frame_idx, reading):
        values, scale = _apply_table(values, facts) if facts.get("VOILUTSequence") else _apply_window(values, facts, frame_idx)
    elif values.dtype == np.uint8 and _white_of(facts) < 255:
        values, scale = values.astype(np.float32), (0.0, _white_of(facts))  # a bit or a few in a byte
    if is_padding is not None or values.dtype.kind == "f":
        values = values.astype(np.float32 if facts.BitsAllocated <= 16 else np.float64)
    if is_padding is not None:
        values[is_padding] = np.nan
        scale = scale or ((0.0, 255.0) if facts.BitsAllocated <= 8 and rescaling is None else None)
    return Raster(values[:, :, None], "grey", is_inverted=facts.PhotometricInterpretation == "MONOCHROME1", scale=scale)


def _apply_table(values: Shaped[np.ndarray, "height width"], facts: Dataset) -> tuple[Shaped[np.ndarray, "height width"], Scale]:
    """The first VOI lookup table (PS3.3 C.11.2.1.1); values beyond its ends are shown as those. pydicom 3.0's own keeps the
    indices of tables of 8 bits in a byte."""
    item = facts.VOILUTSequence[0]
    entries, first, bits = (int(part) for part in item.LUTDescriptor)
    table = item.LUTData
    if isinstance(table, bytes):
        order = "<" if facts.original_encoding[1] else ">"
        table = np.frombuffer(table, f"{order}u2" if len(table) >= 2 * (entries or 2**16) else np.uint8)
    table = np.asarray(table, np.float32)[: entries or 2**16]
    return table[np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)], (0.0, 2.0**bits - 1)


def _apply_window(
    values: Shaped[np.ndarray, "height width"], facts: Dataset, frame_idx: int
) -> tuple[Shaped[np.ndarray, "height width"], Scale]:
    """The first window: a linear one is a black and a white (PS3.3 C.11.2.1.2), a sigmoid has values of its own (C.11.2.1.3)."""
    window = _find_window(facts, frame_idx)
    assert window is not None, "there is a window"
    centre, width, function = window
    values = values.astype(np.float64)
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-4 * (values - centre) / width)), (0.0, 1.0)
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return values, (centre - width / 2, centre + width / 2)


def _states_window(facts: Dataset, frame_idx: int, reading: Reading) -> bool:
    return reading.window == "file" and (bool(facts.get("VOILUTSequence")) or _find_window(facts, frame_idx) is not None)


def _find_window(facts: Dataset, frame_idx: int) -> tuple[float, float, str] | None:
    """Centre, width and function of the first window; None if there is none that shows anything."""
    for part in _list_parts(facts, frame_idx):
        centre, width = _first(part.get("WindowCenter")), _first(part.get("WindowWidth"))
        function = str(part.get("VOILUTFunction") or "LINEAR").upper()
        if centre is not None and width is not None and width >= (1 if function == "LINEAR" else 1e-9):
            return centre, width, function
    return None


def _find_rescaling(facts: Dataset, frame_idx: int) -> Dataset | None:
    """The part that turns stored samples into other values; None where there is none, or it changes nothing."""
    if facts.get("ModalityLUTSequence"):
        return facts
    for part in _list_parts(facts, frame_idx):
        slope, intercept = _first(part.get("RescaleSlope")), _first(part.get("RescaleIntercept"))
        if slope is not None and intercept is not None:
            return None if (slope, intercept) == (1, 0) else part
    return None


def _list_parts(facts: Dataset, frame_idx: int) -> list[Dataset]:
    """Where a frame's rescaling and window may stand: in the file, among the frame's groups, among those of all frames."""
    groups = list(facts.get("PerFrameFunctionalGroupsSequence") or [])[frame_idx : frame_idx + 1]
    groups += list(facts.get("SharedFunctionalGroupsSequence") or [])[:1]
    names = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
    return [facts, *(part for group in groups for name in names for part in group.get(name) or [])]


def _find_padding(stored: Shaped[np.ndarray, "height width"], facts: Dataset) -> Bool[np.ndarray, "height width"] | None:
    """True where a pixel was filled up and not measured (PS3.3 C.7.5.1.1.2)."""
    value = facts.get("PixelPaddingValue")
    if value is None:
        return None
    bounds = sorted((value, facts.get("PixelPaddingRangeLimit", value)))
    mask: Bool[np.ndarray, "height width"] = (stored >= bounds[0]) & (stored <= bounds[1])
    return mask if mask.any() else None


def _first(value: Any) -> float | None:
    """A number, or the first of several; None for none."""
    if value is None or isinstance(value, str):
        return None
    if hasattr(value, "__len__"):
        return float(value[0]) if len(value) else None
    return float(value)
