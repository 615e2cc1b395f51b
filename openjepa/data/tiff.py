"""TIFF (Adobe 1992, revision 6.0): which files Pillow shows as they are, and tifffile's samples of the others.

Pillow reads 8-bit pictures whose bands the tags explain, and single bands of 16-bit integers and 32-bit floats. It
would show the rest as something else without a word: 16-bit RGB in planes as noise, a fourth band that no tag calls alpha as
alpha, signed 8-bit and unsigned 32-bit values wrapped round; or call them no image. Those are read by tifffile, imported
only then. LZW, for which tifffile needs imagecodecs, is unpacked by Pillow's libtiff. GDAL_NODATA (tag 42113, of GDAL) is the
value of missing pixels. Refused by name: deep YCbCr, LAB and palettes, volumes, and compressions of which no codec is
installed. tests/unit/test_tiff.py sweeps the format.
"""

from __future__ import annotations

import io
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from openjepa.data.errors import DecodeError, OpenFile
from openjepa.data.raster import Alpha, Raster, Samples

if TYPE_CHECKING:
    from tifffile import TiffPage

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
BITS, COMPRESSION, PHOTOMETRIC, SAMPLES_PER_PIXEL, PLANAR = 258, 259, 262, 277, 284
EXTRA_SAMPLES, SAMPLE_FORMAT, NODATA = 338, 339, 42113
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, SEPARATED = 0, 1, 2, 3, 5
COLOURS: dict[int, Literal["grey", "rgb", "cmyk"]] = {WHITE_IS_ZERO: "grey", BLACK_IS_ZERO: "grey", RGB: "rgb", SEPARATED: "cmyk"}
NUM_COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, SEPARATED: 4, 6: 3, 8: 3}
NAMES = {PALETTE: "a palette", 4: "a mask", 6: "YCbCr colours", 8: "LAB colours", 9: "LAB colours", 10: "LAB colours"}
NAMES |= {32803: "a camera's raw mosaic", 34892: "a camera's raw values"}
ALPHAS: dict[int, Alpha] = {0: "none", 1: "premultiplied", 2: "straight"}
LZW, ZSTD, OLD_ZSTD = 5, 50000, 34926
JPEG = 7


def shows_as_is(image: Image.Image) -> bool:
    """Whether the pixels that Pillow gives of an opened TIFF are what its tags say."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    photometric, num_samples = tags.get(PHOTOMETRIC, 0), tags.get(SAMPLES_PER_PIXEL, 1)
    bits, extra = set(tags.get(BITS, (1,))), tags.get(EXTRA_SAMPLES, ())
    is_unsigned = set(tags.get(SAMPLE_FORMAT, (1,))) == {1}
    if tags.get(COMPRESSION) in (6, JPEG) and bits == {8}:
        return True  # whose colours libjpeg knows
    if max(bits) <= 8:
        is_explained = num_samples == NUM_COLOURS.get(photometric, 0) + len(extra) and len(extra) <= 1 and 0 not in extra
        is_simple = tags.get(PLANAR, 1) == 1 or num_samples in (1, 3)  # alpha in a plane of its own Pillow cannot place
        return is_unsigned and is_explained and is_simple and _read_nodata(tags.get(NODATA)) in (None, 0)
    return False


def shows_samples(image: Image.Image) -> bool:
    """Whether Pillow gives the samples of an opened TIFF of a single deep band unchanged.

    Compressed floats and signed values of the other byte order it turns round twice.
    """
    tags = image.tag_v2  # type: ignore[attr-defined]
    is_native = tags.prefix == (b"II" if sys.byteorder == "little" else b"MM")
    return tags.get(SAMPLES_PER_PIXEL, 1) == 1 and (
        image.mode in ("I;16", "I;16B")
        or (is_native and (image.mode == "F" or (image.mode == "I" and tags.get(SAMPLE_FORMAT, (1,))[0] == 2)))
    )


def raster_of(image: Image.Image) -> Raster:
    """The samples of a single deep band that Pillow has loaded."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    samples = _fill_sixteen(np.asarray(image)[:, :, None], max(tags.get(BITS, (16,))))
    is_inverted = tags.get(PHOTOMETRIC, 0) == WHITE_IS_ZERO
    return Raster(samples, "grey", is_inverted=is_inverted, nodata=_read_nodata(tags.get(NODATA)))


def _fill_sixteen(samples: Samples, bits: int) -> Samples:
    """Samples that a file packs into 9 to 15 bits, with the white of 16."""
    return samples * np.uint16(65535 // (2**bits - 1)) if 8 < bits < 16 else samples


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins so is a TIFF or BigTIFF."""
    return head.startswith(MAGICS)


def list_pages(path: str) -> list[int]:
    """Numbers of the pages that have the first page's size and type: not thumbnails and smaller copies."""
    from tifffile import TiffFile

    with TiffFile(path) as tiff:
        pages = [tiff.pages.get(number) for number in range(len(tiff.pages))]
        return [number for number, page in enumerate(pages) if (page.shape, page.dtype) == (pages[0].shape, pages[0].dtype)]


def read_shape(path: str, page_idx: int = 0) -> tuple[int, int, int, str]:
    """Height, width, bands that are to be shown (3 for RGB with more) and the type of the samples, of a page's tags."""
    from tifffile import TiffFile

    with TiffFile(path) as tiff:
        page = _find_page(path, tiff, page_idx)
        bands = page.samplesperpixel
        num_shown = 3 if page.photometric in (RGB, SEPARATED, 6, 8) else 1 if _alpha_of(page) != "none" else bands
        height, width = (page.imagewidth, page.imagelength) if _orientation(page) >= 5 else (page.imagelength, page.imagewidth)
        return height, width, num_shown, str(page.dtype)


def read_tiff(path: str, file: OpenFile, page_idx: int, max_pixels: int) -> Raster:
    """Samples of a page by tifffile. DecodeError says what a page is that cannot be read."""
    import tifffile

    _add_codecs(tifffile)
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page = _find_page(path, tiff, page_idx)
        words = _describe(page)
        if not 0 < page.imagewidth * page.imagelength * page.samplesperpixel <= 3 * max_pixels:
            raise DecodeError(path, f"{words}: {page.imagewidth} x {page.imagelength} pixels are too many")
        if page.photometric not in COLOURS:
            kind = NAMES.get(int(page.photometric), f"photometric interpretation {int(page.photometric)}")
            raise DecodeError(path, f"is {words} with {kind}, which is not read: convert it to RGB")
        if page.imagedepth != 1:
            raise DecodeError(path, f"is {words}, a volume, which is not read: save each of its slices")
        if page.bitspersample not in (8, 16, 32, 64) and page.samplesperpixel > 1:
            raise DecodeError(path, f"is {words}, whose samples share bytes, which is not read: save it with 8 or 16 bits")
        try:
            stored = page.asarray(squeeze=False, maxworkers=1)
        except Exception as error:
            raise DecodeError(path, f"is {words} and cannot be read: {_explain(error)}") from error
        colour = COLOURS[page.photometric]
        samples: Samples = stored[:, 0].transpose(1, 2, 0, 3).reshape(page.imagelength, page.imagewidth, -1)
        num_colours, alpha = NUM_COLOURS[page.photometric], _alpha_of(page)
        if samples.dtype.kind not in "biuf" or samples.shape[2] < num_colours:
            raise DecodeError(path, f"is {words}, which is not read: convert it to grey or RGB")
        if page.bitspersample < 8 and samples.dtype == np.uint8:
            samples = (samples * np.uint8(255 // (2**page.bitspersample - 1))).astype(np.uint8)
        samples = _fill_sixteen(samples, page.bitspersample)
        is_bands = colour == "grey" and samples.shape[2] > 1 and alpha == "none"
        upright = _turn(samples, _orientation(page))
        tag = page.tags.get(NODATA)
        return Raster(
            np.ascontiguousarray(upright), "bands" if is_bands else colour, alpha,
            page.photometric == WHITE_IS_ZERO and not is_bands, _read_nodata(None if tag is None else tag.value),
        )  # fmt: skip


def _find_page(path: str, tiff: Any, page_idx: int) -> TiffPage:
    if page_idx >= len(tiff.pages):
        raise DecodeError(path, f"has {len(tiff.pages)} pages and page {page_idx + 1} is asked for")
    page: TiffPage = tiff.pages.get(page_idx)
    return page


def _alpha_of(page: TiffPage) -> Alpha:
    return ALPHAS.get(int(page.extrasamples[0]), "none") if page.extrasamples else "none"


def _orientation(page: TiffPage) -> int:
    tag = page.tags.get(274)
    return int(tag.value) if tag is not None and tag.value in range(1, 9) else 1


def _turn(samples: Samples, orientation: int) -> Shaped[np.ndarray, "up_height up_width bands"]:
    """Upright samples (TIFF 6.0, section 8, Orientation)."""
    if orientation >= 5:
        samples = samples.transpose(1, 0, 2)
    flips = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}.get(orientation)
    return samples if flips is None else np.flip(samples, flips)


def _describe(page: TiffPage) -> str:
    kind = {1: "unsigned", 2: "signed", 3: "float", 5: "complex integer", 6: "complex"}.get(int(page.sampleformat), "unknown")
    planes = " in planes" if page.planarconfig == 2 and page.samplesperpixel > 1 else ""
    bands = f"{page.samplesperpixel} band{'s' if page.samplesperpixel > 1 else ''}{planes}"
    packed = "uncompressed" if page.compression == 1 else f"compression {getattr(page.compression, 'name', page.compression)}"
    return f"a TIFF of {bands} of {page.bitspersample} bits, {kind}, {packed}"


def _explain(error: Exception) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    if "imagecodecs" in words:
        return "pip install 'openjepa[tiff]' reads it, or save it with deflate or LZW compression"
    return words


def _read_nodata(value: Any) -> float | None:
    """GDAL's text of a number; None if there is none."""
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    with suppress(ValueError, TypeError):
        return float(str(value).strip("\0 "))
    return None


def _add_codecs(tifffile: Any) -> None:
    """LZW and Zstandard by Pillow's libtiff where imagecodecs is not installed."""
    codecs = tifffile.TIFF.DECOMPRESSORS
    for code in (LZW, ZSTD, OLD_ZSTD):
        try:
            codecs[code]
        except KeyError:
            codecs._codecs[code] = lambda data, out, code=code: _unpack(data, out, code)


def _unpack(data: bytes, num_bytes: int, compression: int) -> bytes:
    """A compressed strip of `num_bytes` bytes unpacked: as the only row of an 8-bit grey picture, which libtiff unpacks."""
    tags = [(256, num_bytes), (257, 1), (258, 8), (259, compression), (262, 1), (273, 122), (277, 1), (278, 1), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)
    assert len(header) == 122
    with Image.open(io.BytesIO(header + data), formats=("TIFF",)) as image:
        return image.tobytes()
