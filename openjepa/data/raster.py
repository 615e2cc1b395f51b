"""Samples as a file stores them, of any number type and any number of bands, and what of them becomes uint8 pixels.

A rule, the same for PNG, TIFF and .npy:
- 8-bit samples are grey levels. Deeper ones are scaled: black (0 unless stated) to white, rounded, and clipped outside.
- A file that states its own black and white (DICOM's window) is shown by them. Else white is `Reading.white` where it is
  stated or measured. Else it is the type's own: 65535 for 16-bit samples and for deeper integers that fit into them, 1 for
  floats within 0 to 1, 255 for floats within 0 to 255. What has no scale of its own (negative values, larger ones) is stretched
  from its own smallest to its largest value.
- White-is-zero pictures are inverted after that, so that what they show is right whatever their white is.
- Not finite values, and those that the file (GDAL_NODATA) or else `Reading.nodata` calls missing, become the darkest level and
  take no part in a stretch.
- A picture (grey or RGB, with alpha or not) is shown with 1 to 4 channels. Bands that no tag calls a colour are given as
  they are when as many channels are asked for, and refused otherwise; beside RGB they are left out of 1 and 3 channels.
tests/unit/test_tiff.py holds the rule to account.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image

from openjepa.data.errors import DecodeError
from openjepa.data.reading import Reading

Pixels = UInt8[np.ndarray, "height width channels"]
Samples = Shaped[np.ndarray, "height width bands"]
Alpha = Literal["none", "straight", "premultiplied"]

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
NARROWEST = 1e-30  # a scale: black and white may be one value
COLOUR_BANDS = {"grey": 1, "rgb": 3, "cmyk": 4}


@dataclass(frozen=True)
class Raster:
    """An image before it has grey levels. Alpha, where there is any, is the band after the colours."""

    samples: Samples = field(repr=False)
    colour: Literal["grey", "rgb", "cmyk", "bands"]
    alpha: Alpha = "none"
    is_inverted: bool = False
    nodata: float | None = None
    scale: tuple[float, float] | None = None
    """Black and white that the file itself states, as DICOM's window does: they go before those of the set."""

    def find_missing(self, reading: Reading) -> Bool[np.ndarray, "height width"] | None:
        """True where a pixel holds no measurement; None if all do."""
        bands = self.samples[:, :, : COLOUR_BANDS.get(self.colour)]
        mask = np.zeros(bands.shape[:2], bool)
        if bands.dtype.kind == "f":
            mask |= ~np.isfinite(bands).all(axis=2)
        nodata = reading.nodata if self.nodata is None and self.is_deep else self.nodata
        if nodata is not None and not np.isnan(nodata):
            as_stored = bands.dtype.type(nodata) if bands.dtype.kind == "f" else nodata
            mask |= (bands == as_stored).all(axis=2)
        return mask if mask.any() else None

    @property
    def is_deep(self) -> bool:
        """Whether samples have more than 8 bits."""
        return self.samples.dtype not in (np.uint8, np.bool_)


def render(path: str, raster: Raster, channels: int, reading: Reading) -> Pixels:
    """The pixels with `channels` channels. DecodeError if the bands cannot be shown so."""
    num_bands, num_colours = raster.samples.shape[2], COLOUR_BANDS.get(raster.colour, 0)
    missing = raster.find_missing(reading)
    if raster.scale is not None:
        reading = replace(reading, black=raster.scale[0], white=raster.scale[1])
    shows_colours = raster.alpha != "none" or num_bands == num_colours or num_bands != channels
    is_picture = channels in MODES and num_colours > 0 and shows_colours
    if not is_picture:
        if channels != num_bands:
            raise DecodeError(path, _refuse_bands(raster, channels))
        return _blacken(to_levels(raster.samples, missing, reading), missing)
    levels = to_levels(raster.samples[:, :, :num_colours], missing, reading)
    if raster.is_inverted:
        levels = 255 - levels
    levels = _blacken(levels, missing)
    image = Image.fromarray(levels[:, :, 0] if num_colours == 1 else levels, "CMYK" if raster.colour == "cmyk" else None)
    if raster.alpha != "none":
        image = _add_alpha(image, raster, num_colours)
    return np.array(to_mode(image, MODES[channels])).reshape(*levels.shape[:2], channels)


def to_levels(
    values: Samples, missing: Bool[np.ndarray, "height width"] | None, reading: Reading
) -> UInt8[np.ndarray, "height width bands"]:
    """Samples of any type as 0 to 255, by the rule above; of missing pixels anything."""
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint8:
        return values
    black, white = (reading.black, reading.white) if reading.white is not None else _own_scale(values, missing)
    scaled = values.astype(np.float64)
    if missing is not None:
        scaled[missing] = black
    scaled -= black
    scaled *= 255 / max(white - black, NARROWEST)
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """An 8-bit picture in mode L, LA, RGB or RGBA; transparency over white where the mode has no alpha."""
    if image.has_transparency_data and mode in ("L", "RGB"):
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    if image.mode not in ("1", "L", "LA", "RGB", "RGBA"):  # palettes, CMYK, YCbCr, LAB, HSV: all know the way to RGB
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image.convert(mode)


def _own_scale(values: Samples, missing: Bool[np.ndarray, "height width"] | None) -> tuple[float, float]:
    known = values if missing is None else values[~missing]
    if not known.size:
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    whites = (1.0, 255.0) if values.dtype.kind == "f" else (65535.0,)
    return next(((0.0, top) for top in whites if low >= 0 and high <= top), (low, high))


def _blacken(levels: Pixels, missing: Bool[np.ndarray, "height width"] | None) -> Pixels:
    if missing is None:
        return levels
    levels = levels.copy()
    levels[missing] = 0
    return levels


def _add_alpha(image: Image.Image, raster: Raster, num_colours: int) -> Image.Image:
    """Alpha has the full range of its type, whatever the white of the colours is."""
    stored = raster.samples[:, :, num_colours]
    full = float(np.iinfo(stored.dtype).max) if stored.dtype.kind in "iu" else 1.0
    share = np.clip(stored.astype(np.float64) / full, 0, 1)
    if raster.alpha == "premultiplied":
        colours = np.asarray(image).astype(np.float64)
        inside = share if colours.ndim == 2 else share[:, :, None]
        whole = np.divide(colours, inside, out=np.zeros_like(colours), where=inside > 0)
        image = Image.fromarray(np.rint(np.clip(whole, 0, 255)).astype(np.uint8))
    image.putalpha(Image.fromarray(np.rint(255 * share).astype(np.uint8)))
    return image


def _refuse_bands(raster: Raster, channels: int) -> str:
    num_bands = raster.samples.shape[2]
    unnamed = "" if raster.colour != "bands" else ", and nothing says which of them are colours"
    return (
        f"has {num_bands} bands of {raster.samples.dtype}{unnamed}; data.channels {channels} cannot show them: set it to "
        f"{num_bands}, or convert it to grey or RGB"
    )
