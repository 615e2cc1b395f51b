"""The values that images of more than 8 bits really hold: measured on files spread over the set, to one scale for all of it.

A 16-bit file often holds 10 or 12 bits (radiographs, microscopes); shown by the file's own white, 2 or 7 grey levels are left.
The rule for white_level auto, ours:
- unsigned integers: the smallest full range of 8, 9, 10, ... bits that holds the largest value, so that nothing is clipped;
- floats within 0 to 1: 1; what else floats and signed values hold: from the 0.1th to the 99.9th percentile of all values
  together, to three digits, and from 0 where none is negative: a few outliers do not make the rest dark;
- a smallest value that is one of SENTINELS and stands far from the next stands for missing pixels.
Left out: values of images that were not looked at. tests/unit/test_depth.py compares with what was written.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from openjepa.data.decode import read_header, read_raster
from openjepa.data.errors import DecodeError
from openjepa.data.raster import COLOUR_BANDS
from openjepa.data.reading import AS_STORED, Reading, reading_of
from openjepa.data.sources import FewSource, FolderSource, ImageSource, open_source, spread
from openjepa.data.sources.packed import PackSource, read_packed_channels
from openjepa.recipe.sections import Data

LOOKED_AT = 200  # images whose headers are read
MEASURED = 32  # of the deep ones among them, whose values are
MOST_VALUES = 100_000  # of an image, evenly over it, that percentiles are taken of
PERCENTILES = (0.1, 99.9)
SENTINELS = (-9999.0, -99999.0, -32768.0, -32767.0, -999.0, -3.4028234663852886e38, -1e30, -1e20)
FAR = 10.0  # a sentinel lies this many ranges of the other values below them, or is a power of them


@dataclass(frozen=True)
class Depth:
    """What was found, and the reading that fits it."""

    kinds: dict[str, int]
    """Deep images by the type of their samples, among those looked at."""
    num_looked_at: int
    low: float
    high: float
    missing_frac: float
    """Share of pixels that hold no measurement."""
    reading: Reading


def measure_depth(source: FolderSource, reading: Reading) -> Depth | None:
    """Look at images spread evenly over a folder; None where none of them has more than 8 bits."""
    looked_at = spread(len(source), LOOKED_AT).tolist()
    kinds: Counter[str] = Counter()
    deep = []
    for index in looked_at:
        try:
            depth = read_header(source.files[index], reading, source.page(index)).depth
        except DecodeError:
            continue  # listed when it is decoded
        if depth not in ("uint8", "bool"):
            kinds[depth] += 1
            deep.append(index)
    values, num_missing, num_pixels = [], 0, 0
    is_unsigned = all(kind.startswith("uint") for kind in kinds)
    for index in [deep[i] for i in spread(len(deep), MEASURED)]:
        try:
            raster = read_raster(source.files[index], reading, source.page(index))
        except DecodeError:
            continue
        if raster is None:
            continue
        missing = raster.find_missing(reading)
        num_pixels += raster.samples.shape[0] * raster.samples.shape[1]
        known = raster.samples[:, :, : COLOUR_BANDS.get(raster.colour)]
        known = known.reshape(-1, known.shape[2])
        if missing is not None:
            num_missing += int(missing.sum())
            known = known[~missing.ravel()]
        if known.size:
            flat = known.ravel().astype(np.float64)
            values += [flat[:: -(-flat.size // MOST_VALUES)], [flat.min(), flat.max()]]
    if not values:
        return None
    known = np.concatenate(values)
    nodata = None if is_unsigned or reading.nodata is not None else _find_sentinel(known)
    if nodata is not None:
        return measure_depth(source, replace(reading, nodata=nodata))  # which counts the missing pixels
    black, white = _choose_scale(known, is_unsigned)
    settled = replace(reading, black=black, white=white)
    return Depth(dict(kinds), len(looked_at), float(known.min()), float(known.max()), num_missing / num_pixels, settled)


def settle(settings: Data, source: ImageSource) -> tuple[Data, ImageSource, list[str]]:
    """The settings with a white level in place of auto, the source that reads by it, and what there is to say: a line each."""
    if isinstance(source, FewSource):
        settings, whole, lines = settle(settings, source.whole)
        return settings, replace(source, whole=whole), lines
    reading = reading_of(settings)
    if isinstance(source, PackSource) and source.reading != AS_STORED:
        reading = replace(source.reading, layout=reading.layout, pages=reading.pages, window=reading.window)
        return _with_reading(settings, reading), source, []
    if not isinstance(source, FolderSource):
        return _with_reading(settings, reading), source, []
    if settings.white_level != "auto":
        return settings, source, []
    depth = measure_depth(source, reading)
    if depth is None:
        return _with_reading(settings, reading), source, []
    found = depth.reading
    return _with_reading(settings, found), replace(source, reading=found), describe(depth, reading)


def describe(depth: Depth, asked: Reading) -> list[str]:
    """What was found and what is made of it, with the values to write into a recipe."""
    found = depth.reading
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(depth.kinds.items()))
    black = f" data.black_level={found.black:.12g}" if found.black else ""
    lines = [
        f"images of more than 8 bits ({kinds} of {depth.num_looked_at} looked at) hold values of {depth.low:.6g} to "
        f"{depth.high:.6g}: shown from {found.black:.12g}, black, to {found.white:.12g}, white, in all of them alike "
        f"(data.white_level=auto; to state it, data.white_level={found.white:.12g}{black})"
    ]
    if found.nodata is not None and asked.nodata is None:
        lines.append(f"values of {found.nodata:g} stand for missing pixels (to state it, data.nodata={found.nodata:g})")
    if depth.missing_frac:
        lines.append(f"{depth.missing_frac:.2%} of the pixels looked at are missing (NaN, nodata) and become the darkest level")
    return lines


def measure_reading(spec: str) -> Reading:
    """The reading that fits images by themselves, for encoders that bring none of their own."""
    source = open_source(spec, read_packed_channels(spec) or 3) if not spec.startswith(("sample:", "fashion-mnist:")) else None
    return AS_STORED if source is None else reading_of(settle(Data(), source)[0])


def _with_reading(settings: Data, reading: Reading) -> Data:
    return settings.model_copy(update={"white_level": reading.white, "black_level": reading.black, "nodata": reading.nodata})


def _choose_scale(values: Float64[np.ndarray, " values"], is_unsigned: bool) -> tuple[float, float]:
    """Black and white by the rule above."""
    low, high = float(values.min()), float(values.max())
    if is_unsigned:
        return 0.0, float(2 ** max(int(high).bit_length(), 8) - 1)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    bottom, top = (_round(float(np.percentile(values, share))) for share in PERCENTILES)
    black = 0.0 if low >= 0 else bottom
    return black, top if top > black else black + 1.0


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def _find_sentinel(values: Float64[np.ndarray, " values"]) -> float | None:
    low = float(values.min())
    others = values[values != low]
    if not others.size or not any(np.isclose(low, sentinel, rtol=1e-6) for sentinel in SENTINELS):
        return None
    span = max(float(others.max() - others.min()), 1.0)
    return low if others.min() - low > min(FAR * span, abs(low) / 2) else None
