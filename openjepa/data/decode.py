"""One image file to uint8 pixels (H, W, C).

JPEG, PNG, WebP, BMP, TIFF and GIF through Pillow, first frame only, EXIF rotation applied; plain JPEGs through simplejpeg, which
gives the same pixels sooner; `.npy` holds uint8 (H, W, C) arrays of any number of channels. A JPEG is opened without being
decoded, and can be decoded to 1/2, 1/4 or 1/8 of its sides at less cost. Alpha, and the transparent colour of a PNG or GIF,
is composited over white for 1 and 3 channels, kept as the last channel for 2 and 4. Grey deeper than 8 bits is scaled, never
clipped. Colour profiles are ignored. Refused: truncated files, and more than MAX_PIXELS pixels, twice Pillow's warning level
and the point where Pillow itself raises a decompression bomb error.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple, Protocol, runtime_checkable

import numpy as np
import simplejpeg
from jaxtyping import Shaped, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

Pixels = UInt8[np.ndarray, "height width channels"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # named, so that Pillow tries no other: its EPS reader starts Ghostscript
EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".npy"})
MAX_PIXELS = 2 * 89_478_485
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
PNG_DEPTH_BYTE = 24  # of the file: bits of a sample, in the header that every PNG begins with (RFC 2083, section 4.1.1)

_ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUARTER_TURNS = frozenset({_ROTATIONS[orientation] for orientation in (5, 6, 7, 8)})  # height and width change places


class DecodeError(ValueError):
    """An image that cannot be read: its path, and the reason in one line."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@runtime_checkable
class Picture(Protocol):
    """An image whose size is known; its pixels come when asked for."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""

    def decode(self, reduction: int = 1) -> Pixels:
        """The pixels, or, where that is less work, every `reduction` (1, 2, 4, 8) pixels in each direction as one, rounded up.

        Raises DecodeError if they cannot be read.
        """


@dataclass(frozen=True)
class Decoded:
    """An image in memory or in a mapped file: nothing is left to do, so nothing is saved by a reduction."""

    pixels: Pixels = field(repr=False)

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]

    def decode(self, reduction: int = 1) -> Pixels:
        return self.pixels


@dataclass(frozen=True)
class JpegFile:
    """A JPEG whose header has been read. Reduced by the inverse DCT: fewer coefficients make fewer pixels."""

    path: str
    channels: int
    size: tuple[int, int]
    data: bytes = field(repr=False)
    rotation: Image.Transpose | None
    mode: str

    def decode(self, reduction: int = 1) -> Pixels:
        """Plain ones by simplejpeg, whose pixels are Pillow's without its copies; the rest, and what that refuses, by Pillow."""
        height, width = self.size
        if self.rotation is None and self.mode == MODES[self.channels]:
            with suppress(ValueError):  # it is strict; Pillow decides what can still be read
                colours = "RGB" if self.channels == 3 else "GRAY"
                least = {"min_height": -(-height // reduction), "min_width": -(-width // reduction)}
                pixels: Pixels = simplejpeg.decode_jpeg(self.data, colours, **least)
                return pixels
        with _decode_errors(self.path), Image.open(io.BytesIO(self.data), formats=FORMATS) as image:
            image.draft(None, (image.width // reduction, image.height // reduction))
            image.load()
            return _to_pixels(self.path, image, self.rotation, self.channels)


class Header(NamedTuple):
    """Of an image file: height and width, a JPEG's upright; 1 channel for grey, 3 for colour, or an array's own number."""

    size: tuple[int, int]
    channels: int


def read_header(path: str) -> Header:
    """Read a file's header and no pixels. Raises DecodeError if there is none that can be read."""
    with _decode_errors(path):
        if path.lower().endswith(".npy"):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.ndim not in (2, 3):
                raise DecodeError(path, f"holds {array.dtype} {array.shape}, expected uint8 (height, width, channels)")
            return Header((array.shape[0], array.shape[1]), array.shape[2] if array.ndim == 3 else 1)
        with Image.open(path, formats=FORMATS) as image:
            is_grey = image.mode in ("1", "L", "LA") or image.mode.startswith(("I", "F"))
            is_turned = image.format in ("JPEG", "MPO") and _ROTATIONS.get(_read_orientation(image)) in _QUARTER_TURNS
            size = (image.width, image.height) if is_turned else (image.height, image.width)
            return Header(size, 1 if is_grey else 3)


def open_image(path: str, channels: int) -> Picture:
    """Open an image file to be read as uint8 (H, W, channels); a JPEG's pixels are left for later.

    Channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; any number from a `.npy` file that has just as many.
    Raises DecodeError whatever is wrong with the file.
    """
    with _decode_errors(path):
        return Decoded(_read_array(path, channels)) if path.lower().endswith(".npy") else _open_picture(path, channels)


@contextmanager
def _decode_errors(path: str) -> Iterator[None]:
    """Whatever goes wrong inside is a DecodeError; odd metadata and big images give no warning: an image is read or refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DecodeError:
        raise
    except UnidentifiedImageError:
        raise DecodeError(path, "not a JPEG, PNG, WebP, BMP, TIFF or GIF image") from None
    except Exception as error:  # damaged files make Pillow raise almost anything: OSError, SyntaxError, struct.error, MemoryError
        raise DecodeError(path, " ".join(str(error).split()) or type(error).__name__) from error


def _open_picture(path: str, channels: int) -> Picture:
    if channels not in MODES:
        raise DecodeError(path, f"{channels} channels can only be read from .npy files; pictures give 1 to 4")
    with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
        _check_size(path, image.width, image.height)
        if image.format in ("JPEG", "MPO"):  # MPO: several JPEGs in a row
            rotation = _ROTATIONS.get(_read_orientation(image))
            size = (image.width, image.height) if rotation in _QUARTER_TURNS else (image.height, image.width)
            file.seek(0)
            return JpegFile(path, channels, size, file.read(), rotation, image.mode)
        image.load()
        rotation = _ROTATIONS.get(_read_orientation(image))
        is_keyed = "transparency" in image.info and image.mode in ("1", "L", "I;16", "RGB")
        return Decoded(_to_pixels(path, _add_alpha(path, file, image) if is_keyed else image, rotation, channels))


def _to_pixels(path: str, image: Image.Image, rotation: Image.Transpose | None, channels: int) -> Pixels:
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
    """EXIF orientation, 1 to 8. But for JPEG read after loading: Pillow applies a TIFF's own, a PNG's may follow the pixels."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (AttributeError, EOFError, LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error):
        # a broken EXIF block says nothing about the pixels
        return 1


def _add_alpha(path: str, file: BinaryIO, image: Image.Image) -> Image.Image:
    """A loaded image that has one transparent colour, as grey or RGB with alpha.

    Pillow keeps that colour in the file's bits and compares it with pixels of 8 bits: wrong for grey of 2, 4 and 16 bits and
    for RGB of 16.
    """
    samples = np.asarray(image.convert("L") if image.mode == "1" else image)
    visible = _to_eight_bits(path, samples) if image.mode == "I;16" else samples
    depth = _read_depth(file) if image.format == "PNG" else 8
    most = 2**depth - 1
    key = np.array(image.info["transparency"]) & most
    if image.mode in ("1", "L"):
        key *= 255 // most  # as Pillow has scaled the pixels
    if image.mode == "RGB" and depth == 16:
        samples = 256 * samples.astype(np.uint16) + _read_low_bytes(file)
    is_transparent = samples == key if samples.ndim == 2 else (samples == key).all(axis=2)
    with_alpha = Image.fromarray(visible)
    with_alpha.putalpha(Image.fromarray(np.where(is_transparent, 0, 255).astype(np.uint8)))
    return with_alpha


def _read_depth(file: BinaryIO) -> int:
    """Bits of a sample of a PNG."""
    file.seek(PNG_DEPTH_BYTE)
    return file.read(1)[0]


def _read_low_bytes(file: BinaryIO) -> UInt8[np.ndarray, "height width channels"]:
    """The low bytes of a PNG with RGB samples of 16 bits, of which Pillow's pixels are the high ones."""
    file.seek(0)
    with Image.open(file, formats=("PNG",)) as image:
        image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]  # the other byte order: the other byte is kept
        return np.asarray(image)


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
