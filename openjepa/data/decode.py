"""One image file to uint8 pixels (H, W, C): the one place where bytes become pixels.

Pillow names the format by the first bytes, never by the name. JPEG, PNG, WebP, BMP, GIF, and AVIF and JPEG 2000 where it can:
first frame only, EXIF rotation applied; plain JPEGs through simplejpeg, which gives the same pixels sooner, HEIC through the
plug-in pillow-heif. TIFF is in tiff.py, DICOM in dicom.py, `.npy` in npy.py, PNG beyond Pillow in png.py; samples of more than
8 bits become grey levels in raster.py. A JPEG is opened without being decoded, and can be decoded to 1/2, 1/4 or 1/8 of its
sides at less cost. Alpha, and the transparent colour of a PNG or GIF, is composited over white for 1 and 3 channels, kept as
the last channel for 2 and 4. Colour profiles are ignored. Refused: truncated files, and more than MAX_PIXELS pixels, twice
Pillow's warning level and the point where Pillow itself raises a decompression bomb error. What is refused is named
(identify.py).
"""

from __future__ import annotations

import importlib.util
import io
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError, features

from openjepa.data import dicom
from openjepa.data.errors import DecodeError as DecodeError  # part of what a picture may raise
from openjepa.data.errors import OpenFile
from openjepa.data.identify import has_heif, identify, is_heif
from openjepa.data.npy import is_npy, map_array, read_npy
from openjepa.data.png import SIGNATURE, read_deep, read_depth, read_low_bytes, without_damage
from openjepa.data.raster import MODES as MODES
from openjepa.data.raster import Pixels as Pixels
from openjepa.data.raster import Raster, render, to_levels, to_mode
from openjepa.data.reading import AS_STORED, Reading
from openjepa.data.tiff import is_tiff, raster_of, read_shape, read_tiff, shows_as_is, shows_samples

_MODERN = {
    "AVIF": (importlib.util.find_spec("PIL._avif") is not None, (".avif",)),
    "JPEG2000": (features.check_codec("jpg_2000"), (".jp2", ".j2k", ".jpx", ".j2c", ".jpf")),
    "HEIF": (has_heif(), (".heic", ".heif", ".hif")),
}  # whether they can be read here, and their extensions
# Named, so that Pillow tries no other: its EPS reader starts Ghostscript. HEIF's plug-in is loaded where it is met.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", *(name for name, (can, _) in _MODERN.items() if can and name != "HEIF"))
JPEGS = ("JPEG", "MPO")  # MPO: several JPEGs in a row
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".npy"}
    | (set(dicom.EXTENSIONS) if dicom.has_dicom() else set())
    | {extension for can, extensions in _MODERN.values() if can for extension in extensions}
)
MAX_PIXELS = 2 * 89_478_485
Found = TypeVar("Found")

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
            return _to_pixels(image, self.rotation, self.channels)


class Header(NamedTuple):
    """Of an image file: height and width, a JPEG's upright; 1 channel for grey, 3 for colour, or an array's own number."""

    size: tuple[int, int]
    channels: int
    depth: str = "uint8"
    """Type of the samples."""


def read_header(path: str, reading: Reading = AS_STORED, page_idx: int = 0) -> Header:
    """Read a file's header and no pixels. Raises DecodeError if there is none that can be read."""
    with _decode_errors(path):
        if is_npy(path):
            array = map_array(path, reading.layout)
            return Header((array.shape[0], array.shape[1]), array.shape[2], str(array.dtype))
        is_tiff_file = _is_tiff(path)
        if is_tiff_file or _is_dicom(path):
            shape = read_shape(path, page_idx) if is_tiff_file else dicom.read_shape(path, reading)
            height, width, channels, depth = shape
            return Header((height, width), channels, depth)
        with open(path, "rb") as file:
            return _repairing(file, lambda readable: _read_header(path, readable))


def _read_header(path: str, file: OpenFile) -> Header:
    with _identified(path, file) as image:
        is_grey = image.mode in ("1", "L", "LA") or image.mode.startswith(("I", "F"))
        is_turned = image.format in JPEGS and _ROTATIONS.get(_read_orientation(image)) in _QUARTER_TURNS
        size = (image.width, image.height) if is_turned else (image.height, image.width)
        is_deep = image.mode.startswith("I") or (image.format == "PNG" and read_depth(file) == 16)
        return Header(size, 1 if is_grey else 3, "uint16" if is_deep else "uint8")


def open_image(path: str, channels: int, reading: Reading = AS_STORED, page_idx: int = 0) -> Picture:
    """Open an image file to be read as uint8 (H, W, channels); a JPEG's pixels are left for later.

    Channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; any number from a `.npy` or TIFF file that has just as many.
    reading: how deeper samples become grey levels (raster.py). Raises DecodeError whatever is wrong with the file.
    """
    with _decode_errors(path):
        found = _open(path, channels, reading, page_idx)
        return Decoded(render(path, found, channels, reading)) if isinstance(found, Raster) else found


def read_raster(path: str, reading: Reading = AS_STORED, page_idx: int = 0) -> Raster | None:
    """The samples of an image of more than 8 bits, to be measured; None for any other. Raises DecodeError."""
    channels = read_header(path, reading, page_idx).channels
    every_bit = replace(reading, white=1.0)  # whatever it is: a white level asks for all bits
    with _decode_errors(path):
        found = _open(path, channels, every_bit, page_idx)
        return found if isinstance(found, Raster) and found.is_deep and found.scale is None else None


def _open(path: str, channels: int, reading: Reading, page_idx: int) -> Picture | Raster:
    """A picture that is as it should be, or samples that are still to be rendered."""
    if is_npy(path):
        array = map_array(path, reading.layout)
        _check_size(path, array.shape[1], array.shape[0])
        return read_npy(path, array, channels)
    if page_idx and _is_dicom(path):
        return dicom.read_dicom(path, page_idx, reading, MAX_PIXELS)
    with open(path, "rb") as file:
        if page_idx:
            return read_tiff(path, file, page_idx, MAX_PIXELS)
        try:
            return _repairing(file, lambda readable: _read_picture(path, readable, channels, reading))
        except UnidentifiedImageError:
            if _is_tiff(path):
                return read_tiff(path, file, 0, MAX_PIXELS)
            if _is_dicom(path):
                return dicom.read_dicom(path, 0, reading, MAX_PIXELS)
            raise


def _repairing(file: OpenFile, read: Callable[[OpenFile], Found]) -> Found:
    """What is read of a file, and where that fails, of a PNG without its damaged chunks."""
    try:
        return read(file)
    except DecodeError:
        raise
    except Exception:
        file.seek(0)
        start = file.read(len(SIGNATURE))
        repaired = without_damage(start + file.read()) if start == SIGNATURE else None
        if repaired is None:
            raise
        return read(io.BytesIO(repaired))


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
        raise DecodeError(path, identify(path)) from None
    except Exception as error:  # damaged files make Pillow raise almost anything: OSError, SyntaxError, struct.error, MemoryError
        raise DecodeError(path, " ".join(str(error).split()) or type(error).__name__) from error


def _read_picture(path: str, file: OpenFile, channels: int, reading: Reading) -> Picture | Raster:
    with _identified(path, file) as image:
        _check_size(path, image.width, image.height)
        if image.format == "TIFF" and not shows_as_is(image):
            if not shows_samples(image):
                return read_tiff(path, file, 0, MAX_PIXELS)
            image.load()
            return raster_of(image)
        if channels not in MODES:
            raise DecodeError(path, f"{channels} channels can only be read from .npy and TIFF files; pictures give 1 to 4")
        if image.format in JPEGS:
            rotation = _ROTATIONS.get(_read_orientation(image))
            size = (image.width, image.height) if rotation in _QUARTER_TURNS else (image.height, image.width)
            file.seek(0)
            return JpegFile(path, channels, size, file.read(), rotation, image.mode)
        image.load()
        rotation = _ROTATIONS.get(_read_orientation(image))
        is_keyed = "transparency" in image.info and image.mode in ("1", "L", "I;16", "RGB")
        if is_keyed:
            image = _add_alpha(file, image, reading)
        elif reading.white is not None and image.format == "PNG" and (deep := read_deep(file, image)) is not None:
            return _turn(deep, rotation)
        if image.mode.startswith(("I", "F")):
            return _turn(Raster(np.asarray(image)[:, :, None], "grey"), rotation)
        return Decoded(_to_pixels(image, rotation, channels))


@contextmanager
def _identified(path: str, file: OpenFile) -> Iterator[Image.Image]:
    """An open file as Pillow knows it. HEIC needs a plug-in, which is loaded where it is met."""
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        if not (has_heif() and is_heif(path)):
            raise
        from pillow_heif import register_heif_opener

        register_heif_opener()
        image = Image.open(file, formats=("HEIF",))
    with image:
        yield image


def _is_tiff(path: str) -> bool:
    with open(path, "rb") as file:
        return is_tiff(file.read(4))


def _is_dicom(path: str) -> bool:
    return dicom.has_dicom() and dicom.is_dicom(path)


def _turn(raster: Raster, rotation: Image.Transpose | None) -> Raster:
    """Samples upright, as Pillow turns pictures."""
    if rotation is None:
        return raster
    bands = [np.asarray(Image.fromarray(band).transpose(rotation)) for band in raster.samples.transpose(2, 0, 1)]
    return replace(raster, samples=np.stack(bands, axis=2))


def _to_pixels(image: Image.Image, rotation: Image.Transpose | None, channels: int) -> Pixels:
    upright = image.transpose(rotation) if rotation is not None else image
    return np.array(to_mode(upright, MODES[channels])).reshape(upright.height, upright.width, channels)


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


def _add_alpha(file: OpenFile, image: Image.Image, reading: Reading) -> Image.Image:
    """A loaded image that has one transparent colour, as grey or RGB with alpha.

    Pillow keeps that colour in the file's bits and compares it with pixels of 8 bits: wrong for grey of 2, 4 and 16 bits and
    for RGB of 16.
    """
    samples = np.asarray(image.convert("L") if image.mode == "1" else image)
    depth = read_depth(file) if image.format == "PNG" else 8
    most = 2**depth - 1
    key = np.array(image.info["transparency"]) & most
    visible = samples
    if image.mode in ("1", "L"):
        key *= 255 // most  # as Pillow has scaled the pixels
    if image.mode == "RGB" and depth == 16:
        samples = 256 * samples.astype(np.uint16) + read_low_bytes(file)
    is_transparent = samples == key if samples.ndim == 2 else (samples == key).all(axis=2)
    if depth == 16 and (image.mode == "I;16" or reading.white is not None):
        bands = samples if samples.ndim == 3 else samples[:, :, None]
        visible = to_levels(bands, None, reading).reshape(samples.shape)
    with_alpha = Image.fromarray(visible)
    with_alpha.putalpha(Image.fromarray(np.where(is_transparent, 0, 255).astype(np.uint8)))
    return with_alpha
