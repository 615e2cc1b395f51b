"""What a file is, by its first bytes, where we cannot read it as an image: the reason a user is given, and what to do.

Nothing here decodes anything. Signatures are those of the formats' own specifications; what no row knows is called by
the text or the bytes that it begins with.
"""

from __future__ import annotations

import importlib.util
import os
import re
from contextlib import suppress
from typing import NamedTuple

from openjepa.data.dicom import is_dicom, may_be_dicom

HEAD_BYTES = 512  # enough for every row; DICOM's mark is the farthest in, at 128
CONVERT = "convert it to PNG or TIFF"
PICTURES = "JPEG, PNG, WebP, AVIF, JPEG 2000, BMP, TIFF, GIF, DICOM and .npy are read"


class Kind(NamedTuple):
    """A row: bytes at an offset, what they say the file is, and what to do about it."""

    offset: int
    magic: bytes
    name: str
    advice: str


HEIC_NAME, HEIC_ADVICE = "a HEIC picture", "pip install 'openjepa[heif]' reads it, or convert it to JPEG"
DATA_SET = "DICOM data without the preamble of a DICOM file"
WRITE_AGAIN = "write it again as a DICOM file, for example with pydicom: dcmread(FILE, force=True).save_as(...)"
DOWNLOAD_AGAIN = "download the image again"
DEVELOP = "develop it to TIFF or JPEG with its camera's program"

KINDS = (
    Kind(0, b"version https://git-lfs", "a Git LFS pointer and not the image that it stands for", "run git lfs pull"),
    Kind(4, b"ftypheic", HEIC_NAME, HEIC_ADVICE),
    Kind(4, b"ftypheix", HEIC_NAME, HEIC_ADVICE),
    Kind(4, b"ftyphevc", HEIC_NAME, HEIC_ADVICE),
    Kind(4, b"ftyphevx", HEIC_NAME, HEIC_ADVICE),
    Kind(4, b"ftypheim", HEIC_NAME, HEIC_ADVICE),
    Kind(4, b"ftypheis", HEIC_NAME, HEIC_ADVICE),
    Kind(4, b"ftypmif1", "a HEIF picture", HEIC_ADVICE),
    Kind(4, b"ftypmsf1", "a HEIF picture", HEIC_ADVICE),
    Kind(4, b"ftypavif", "an AVIF picture", "this Pillow has no AVIF decoder or the file is damaged: convert it to PNG"),
    Kind(4, b"ftypavis", "an AVIF picture", "this Pillow has no AVIF decoder or the file is damaged: convert it to PNG"),
    Kind(4, b"ftypcrx", "a camera's raw file (CR3)", DEVELOP),
    Kind(4, b"ftyp", "a video (MP4 or QuickTime)", "take frames out of it: ffmpeg -i FILE frames/%06d.png"),
    Kind(0, b"\0\0\0\x0cjP  ", "a JPEG 2000 picture", "this Pillow has no decoder or the file is damaged: convert it to PNG"),
    Kind(0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture", "this Pillow has no decoder or the file is damaged: convert it to PNG"),
    Kind(0, b"\0\0\0\x0cJXL ", "a JPEG XL picture", CONVERT),
    Kind(0, b"\xff\x0a", "a JPEG XL picture", CONVERT),
    Kind(0, b"II\xbc", "a JPEG XR picture", CONVERT),
    Kind(0, b"\xff\xd8\xff", "a damaged JPEG", DOWNLOAD_AGAIN),
    Kind(0, b"\x89PNG", "a damaged PNG", DOWNLOAD_AGAIN),
    Kind(0, b"GIF8", "a damaged GIF", DOWNLOAD_AGAIN),
    Kind(0, b"\x93NUMPY", "a NumPy array", "give it the extension .npy"),
    Kind(0, b"PK\x03\x04", "a ZIP archive (or .npz, .docx)", "unpack it; of NumPy arrays, save each with numpy.save"),
    Kind(0, b"\x1f\x8b", "gzipped", "unpack it with gunzip"),
    Kind(0, b"\x89HDF", "an HDF5 file", "save each image with numpy.save"),
    Kind(0, b"CDF", "a NetCDF file", "save each image with numpy.save"),
    Kind(0, b"SIMPLE  =", "a FITS file", "save each image with numpy.save"),
    Kind(344, b"n+1\0", "a NIfTI volume", "save each slice with numpy.save"),
    Kind(128, b"DICM", "a DICOM file", "pip install 'openjepa[dicom]' reads it, or convert it to 16-bit PNG or TIFF"),
    Kind(0, b"\x08\0\5\0", DATA_SET, WRITE_AGAIN),
    Kind(0, b"\x08\0\x16\0", DATA_SET, WRITE_AGAIN),
    Kind(0, b"\x08\0\x08\0", DATA_SET, WRITE_AGAIN),
    Kind(0, b"\2\0\0\0", DATA_SET, WRITE_AGAIN),
    Kind(0, b"8BPS", "a Photoshop file", CONVERT),
    Kind(0, b"\x76\x2f\x31\x01", "an OpenEXR picture", "convert it to float TIFF"),
    Kind(0, b"#?RADIANCE", "a Radiance HDR picture", "convert it to float TIFF"),
    Kind(0, b"FUJIFILMCCD-RAW", "a camera's raw file (RAF)", DEVELOP),
    Kind(0, b"IIRO", "a camera's raw file (ORF)", DEVELOP),
    Kind(0, b"IIU\0", "a camera's raw file (RW2)", DEVELOP),
    Kind(0, b"\0\0\1\0", "a Windows icon", CONVERT),
    Kind(0, b"\0\5\x16\7", "a Mac's sidecar file and not the image beside it", "remove it"),
    Kind(0, b"%!PS", "a PostScript file", CONVERT),
    Kind(0, b"%PDF", "a PDF document", "take the pages out of it as PNG"),
    Kind(0, b"P4", "a Netpbm picture", CONVERT),
    Kind(0, b"P5", "a Netpbm picture", CONVERT),
    Kind(0, b"P6", "a Netpbm picture", CONVERT),
    Kind(0, b"RIFF", "a RIFF file (sound, video or damaged WebP)", DOWNLOAD_AGAIN),
    Kind(0, b"\x80\x02", "a Python pickle, which is never read", "save the array with numpy.save"),
    Kind(0, b"\x80\x04", "a Python pickle, which is never read", "save the array with numpy.save"),
    Kind(0, b"\x80\x05", "a Python pickle, which is never read", "save the array with numpy.save"),
)

# What a file left out for its extension most likely is: images that somebody may miss.
UNREAD_IMAGES = {
    "HEIC, read with pip install 'openjepa[heif]'": (".heic", ".heif", ".hif"),
    "AVIF, which this Pillow cannot read": (".avif",),
    "JPEG 2000, which this Pillow cannot read": (".jp2", ".j2k", ".jpx", ".j2c", ".jpf"),
    "JPEG XL": (".jxl",),
    "DICOM, read with pip install 'openjepa[dicom]'": (".dcm", ".dicom"),
    "camera raw": (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw"),
    "Photoshop": (".psd", ".psb"),
    "OpenEXR or HDR": (".exr", ".hdr"),
    "medical volumes": (".nii", ".mha", ".mhd", ".nrrd"),
    "NumPy archives": (".npz",),
    "microscopes' own": (".czi", ".nd2", ".lif", ".lsm", ".svs", ".ndpi", ".mrxs", ".vsi", ".oib", ".oir"),
    "other pictures": (".ppm", ".pgm", ".pbm", ".tga", ".ico", ".svg", ".jxr", ".fits", ".fit", ".h5", ".hdf5"),
}  # fmt: skip
_NAMES = {extension: name for name, extensions in UNREAD_IMAGES.items() for extension in extensions}


def extension_of(path: str) -> str:
    """A file's extension in lower case; .dcm for DICOM whose name has none, which its bytes tell."""
    if may_be_dicom(path):
        with suppress(OSError):  # reading it will tell
            if is_dicom(path):
                return ".dcm"
    return os.path.splitext(path)[1].lower()


def explain_extension(extension: str) -> str | None:
    """What files left out for their extension most likely are, where they are images that somebody may miss."""
    return _NAMES.get(extension)


def identify(path: str) -> str:
    """What a file is that cannot be read as an image, and what to do: one line. Never raises."""
    try:
        num_bytes = os.path.getsize(path)
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        return error.strerror or "cannot be opened"
    if not num_bytes:
        return f"is empty, 0 bytes: {DOWNLOAD_AGAIN}"
    if not head.strip(b"\0"):
        return f"begins with nothing but zeros, as copies that were cut short do: {DOWNLOAD_AGAIN}"
    for kind in KINDS:
        if head.startswith(kind.magic, kind.offset):
            return f"is {kind.name}: {kind.advice}"
    return _name_text(head) or f"is of no kind that is known here, its first bytes are {head[:8].hex(' ')}; {PICTURES}"


def _name_text(head: bytes) -> str | None:
    """What a text file is, or None for anything else."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if re.match(rb"<!doctype html|<html|<head|<body", start) or b"<html" in start:
        return f"is an HTML page, which servers send in place of an image: {DOWNLOAD_AGAIN}"
    if start.startswith((b"<svg", b"<?xml")):
        return f"is {'an SVG drawing' if b'<svg' in start else 'an XML file'} and has no pixels: {CONVERT}"
    if start.startswith((b"{", b"[")):
        return f"is a JSON text, which servers send in place of an image: {DOWNLOAD_AGAIN}"
    if all(byte >= 32 or byte in b"\t\r\n\f" for byte in head):
        return f"is a text file and no image; {PICTURES}"
    return None


def is_heif(path: str) -> bool:
    """Whether a file says that it is HEIC or HEIF."""
    with open(path, "rb") as file:
        head = file.read(16)
    return any(kind.advice == HEIC_ADVICE and head.startswith(kind.magic, kind.offset) for kind in KINDS)


def has_heif() -> bool:
    """Whether the plug-in that reads HEIC is installed."""
    return importlib.util.find_spec("pillow_heif") is not None
