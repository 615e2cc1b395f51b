"""One image file to uint8 pixels (H, W, C).

JPEG, PNG, WebP, BMP, TIFF and GIF through Pillow, first frame only, EXIF rotation applied; `.npy` holds uint8 (H, W, C)
arrays of any number of channels. Alpha is composited over white for 1 and 3 channels, kept as the last channel for 2 and 4.
Grey deeper than 8 bits is scaled, never clipped. Colour profiles are ignored. Refused: truncated files, and more than
MAX_PIXELS pixels, twice Pillow's warning level and the point where Pillow itself raises a decompression bomb error.
"""

from __future__ import annotations

import struct
import warnings

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

Pixels = UInt8[np.ndarray, "height width channels"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # named, so that Pillow tries no other: its EPS reader starts Ghostscript
EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".npy"})
MAX_PIXELS = 2 * 89_478_485
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}

_ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DecodeError(ValueError):
    """An image that cannot be read: its path, and the reason in one line."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def decode_image(path: str, channels: int) -> Pixels:
    """Read an image file as uint8 (H, W, channels).

    Channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; any number from a `.npy` file that has just as many.
    Raises DecodeError whatever is wrong with the file.
    """
    try:
        return _read_array(path, channels) if path.lower().endswith(".npy") else _read_picture(path, channels)
    except DecodeError:
        raise
    except UnidentifiedImageError:
        raise DecodeError(path, "not a JPEG, PNG, WebP, BMP, TIFF or GIF image") from None
    except Exception as error:  # damaged files make Pillow raise almost anything: OSError, SyntaxError, struct.error, MemoryError
        raise DecodeError(path, " ".join(str(error).split()) or type(error).__name__) from error


def _read_picture(path: str, channels: int) -> Pixels:
    if channels not in MODES:
        raise DecodeError(path, f"{channels} channels can only be read from .npy files; pictures give 1 to 4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata and big images: an image is read or refused, nothing in between
        with Image.open(path, formats=FORMATS) as image:
            _check_size(path, image.width, image.height)
            image.load()
            rotation = _ROTATIONS.get(_read_orientation(image))
            upright = image.transpose(rotation) if rotation is not None else image
            return np.array(_to_mode(path, upright, MODES[channels])).reshape(upright.height, upright.width, channels)


def _read_array(path: str, channels: int) -> Pixels:
    array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a header that lies about its size allocates nothing
    found_channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or found_channels != channels:
        raise DecodeError(path, f"holds {array.dtype} {array.shape}, expected uint8 (height, width, {channels})")
    _check_size(path, array.shape[1], array.shape[0])
    return np.array(array).reshape(array.shape[0], array.shape[1], channels)


def _check_size(path: str, width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise DecodeError(path, f"{width} x {height} pixels; 1 to {MAX_PIXELS:,} are read")


def _read_orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8. Read after loading: Pillow applies a TIFF's own, and a PNG may keep it behind the pixels."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (AttributeError, EOFError, LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error):
        # a broken EXIF block says nothing about the pixels
        return 1


def _to_mode(path: str, image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_to_eight_bits(path, np.asarray(image)))
    if image.has_transparency_data and mode in ("L", "RGB"):
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    if image.mode not in ("1", "L", "LA", "RGB", "RGBA"):  # palettes, CMYK, YCbCr, LAB, HSV: all know the way to RGB
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image.convert(mode)


def _to_eight_bits(path: str, values: Shaped[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    """Grey values of 16 or 32 bits or floats, (H, W), as 0 to 255.

    16-bit files keep their scale: 65535 is white. Floats within 0 to 1 are shares of white, within 0 to 255 grey levels.
    Whatever lies outside those ranges has no agreed scale and is stretched from its own smallest to its largest value.
    """
    low, high = float(np.min(values)), float(np.max(values))
    if not np.isfinite(low + high):
        raise DecodeError(path, "has values that are not finite")
    is_float = values.dtype.kind == "f"
    whites = (1.0, 255.0) if is_float else (65535.0,)
    black, white = next(((0.0, top) for top in whites if low >= 0 and high <= top), (low, high))
    scaled = (values.astype(np.float64) - black) * (255 / max(white - black, np.finfo(np.float64).tiny))
    return np.rint(scaled).astype(np.uint8)
