"""PNG (RFC 2083) beyond what Pillow gives: files with flaws around the pixels, and all 16 bits of colours.

A damaged chunk that the pixels do not need (a profile, a text, a wrong checksum of one) makes Pillow refuse the file. It is
then read without those chunks, as libpng's own programs do; the chunks with the pixels must be whole. Of 16-bit colours
and of grey with alpha Pillow keeps the high bytes; where a white level is set, the low ones count too.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from openjepa.data.errors import OpenFile
from openjepa.data.raster import Raster

SIGNATURE = b"\x89PNG\r\n\x1a\n"
DEPTH_BYTE = 24  # of the file: bits of a sample, in the header that every PNG begins with (section 4.1.1)
RGB, GREY_ALPHA, RGB_ALPHA = 2, 4, 6  # the byte after it: kinds of colour
TRANSPARENCY = b"tRNS"  # the one ancillary chunk that says what the pixels look like
ANCILLARY_BIT = 0x20  # of a chunk name's first letter (section 3.3)


def without_damage(data: bytes) -> bytes | None:
    """The file without the chunks that its pixels do not need; None for another file, or one without such chunks."""
    if not data.startswith(SIGNATURE):
        return None
    kept, place = [SIGNATURE], len(SIGNATURE)
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        name, end = data[place + 4 : place + 8], place + 12 + length
        chunk = data[place:end]
        is_whole = len(chunk) == 12 + length and struct.pack(">I", zlib.crc32(chunk[4:-4])) == chunk[-4:]
        if not name[:1] or not name[0] & ANCILLARY_BIT or (name == TRANSPARENCY and is_whole):
            kept.append(chunk)
        place = end
    repaired = b"".join(kept)
    return repaired if len(repaired) < len(data) else None


def read_depth(file: OpenFile) -> int:
    """Bits of a sample."""
    file.seek(DEPTH_BYTE)
    return file.read(1)[0]


def read_low_bytes(file: OpenFile) -> UInt8[np.ndarray, "height width channels"]:
    """The low bytes of RGB or RGBA samples of 16 bits, of which Pillow's pixels are the high ones."""
    file.seek(0)
    with Image.open(file, formats=("PNG",)) as image:
        other = f"{image.mode};16L"  # the other byte order: the other byte is kept
        image.tile = [tile._replace(args=other) for tile in image.tile]
        return np.asarray(image)


def read_deep(file: OpenFile, image: Image.Image) -> Raster | None:
    """All bits of a loaded PNG of 16 bits with colours or alpha; None for any other."""
    file.seek(DEPTH_BYTE)
    depth, kind = file.read(2)
    if depth != 16 or kind not in (RGB, GREY_ALPHA, RGB_ALPHA):
        return None
    if kind == GREY_ALPHA:
        return Raster(_read_grey_alpha(file), "grey", "straight")
    samples = 256 * np.asarray(image).astype(np.uint16) + read_low_bytes(file)
    return Raster(samples, "rgb", "straight" if kind == RGB_ALPHA else "none")


def _read_grey_alpha(file: OpenFile) -> Shaped[np.ndarray, "height width 2"]:
    """Grey and alpha of 16 bits: four bytes a pixel, unpacked as if they were RGBA of 8 bits, filters and all."""
    file.seek(0)
    with Image.open(io.BytesIO(file.read()), formats=("PNG",)) as image:
        image._mode = "RGBA"
        image.tile = [tile._replace(args="RGBA") for tile in image.tile]
        return np.ascontiguousarray(np.asarray(image)).view(">u2").astype(np.uint16)
