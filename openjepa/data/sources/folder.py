"""A folder of images, searched at any depth and listed by path, so that the same folder always gives the same order.

Files that are not images are passed over, and so is what walk.py passes over.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from openjepa.data.decode import EXTENSIONS, Picture, Pixels, open_image
from openjepa.data.decode import DecodeError as DecodeError
from openjepa.data.dicom import EXTENSIONS as DICOM
from openjepa.data.dicom import count_frames
from openjepa.data.identify import PICTURES, explain_extension, extension_of
from openjepa.data.reading import AS_STORED, Reading
from openjepa.data.sources.contract import Labels, one_line, printable
from openjepa.data.sources.walk import walk
from openjepa.data.tiff import list_pages
from openjepa.runs.paths import quoted, user_path


@dataclass(frozen=True)
class FolderSource:
    """Image files under a folder, decoded when asked for."""

    spec: str
    channels: int
    files: list[str] = field(repr=False)
    labels: Labels | None = field(repr=False)
    classes: list[str] = field(repr=False)
    reading: Reading = AS_STORED
    pages: list[int] | None = field(default=None, repr=False)  # of each image, the page of its file; None: the first
    left_out: list[str] = field(default_factory=list, repr=False)  # files of kinds that are not read
    stray: list[str] = field(default_factory=list, repr=False)  # images beside class folders, which keep the rest from labels
    notes: list[str] = field(default_factory=list, repr=False)  # lines on what was passed over, for every command to show

    def __len__(self) -> int:
        return len(self.files)

    @property
    def root(self) -> str:
        """The folder of the files, as the user names it."""
        return self.spec

    def open(self, index: int) -> Picture:
        """Read the file's header, and its pixels unless it is a JPEG."""
        return open_image(self.files[index], self.channels, self.reading, self.page(index))

    def load(self, index: int) -> Pixels:
        """Read and convert the file."""
        return self.open(index).decode()

    def path(self, index: int) -> str:
        """The file's path in printable characters; of a page after the first, with its number."""
        page = self.page(index)
        return printable(self.files[index]) + (f"#page={page + 1}" if page else "")

    def page(self, index: int) -> int:
        """The page of the file that the image is."""
        return self.pages[index] if self.pages is not None else 0


def open_folder(spec: str, channels: int, reading: Reading = AS_STORED) -> FolderSource:
    """List a folder's images. First-level sub-folders are classes if every image lies in one.

    ValueError if it holds no images; OSError where it may not be read.
    """
    root = user_path(spec)
    walked = walk(root)
    notes = [words] if (words := walked.describe()) else []
    kinds = {name: extension_of(os.path.join(root, name)) for name in walked.files}
    names = [name for name, kind in kinds.items() if kind in EXTENSIONS]
    if not names:
        found = "; ".join([_describe_kinds(kinds.values()), *notes])
        raise ValueError(f"{quoted(spec)} holds no images: {found}; {PICTURES}")
    left_out = [os.path.join(root, name) for name, kind in kinds.items() if kind not in EXTENSIONS]
    pages = None
    if reading.pages == "all":
        numbered = [(name, page) for name in names for page in list_pages_of(os.path.join(root, name))]
        names, pages = [name for name, _ in numbered], [page for _, page in numbered]
    files = [os.path.join(root, name) for name in names]
    folders = [_class_name(name) for name in names]
    classes = sorted({folder for folder in folders if folder is not None})
    stray = [name for name, folder in zip(names, folders, strict=True) if folder is None]
    if stray:
        if len(stray) < len(names) / 2:
            notes.append(_describe_stray(stray, classes))
        kept = stray if classes else []
        return FolderSource(spec, channels, files, None, [], reading, pages, left_out, kept, notes)
    numbers = {folder: number for number, folder in enumerate(classes)}
    labels = np.array([numbers[folder] for folder in folders if folder is not None], np.int64)
    return FolderSource(spec, channels, files, labels, classes, reading, pages, left_out, [], notes)


def list_pages_of(path: str) -> list[int]:
    """Pages of a file: of a TIFF, those of the first one's size; of DICOM, its frames; else, or if damaged, the first."""
    try:
        if path.lower().endswith((".tif", ".tiff")):
            return list_pages(path)
        return list(range(count_frames(path))) if extension_of(path) in DICOM else [0]
    except Exception:  # damaged files make the libraries raise almost anything; decoding says what is wrong
        return [0]


def _class_name(name: str) -> str | None:
    """The first-level folder that an image lies in, as it is printed and composed (NFC: one system writes é as e and accent)."""
    return unicodedata.normalize("NFC", printable(name.split("/", 1)[0])) if "/" in name else None


def _describe_stray(stray: list[str], classes: list[str]) -> str:
    """Which images keep the others from having labels."""
    more = f" and {len(stray) - 1} more lie" if len(stray) > 1 else " lies"
    beside = ", ".join(map(one_line, classes[:3])) + (", ..." if len(classes) > 3 else "")
    return f"no labels, because {quoted(printable(stray[0]))}{more} beside the class folders {beside}"


def _describe_kinds(kinds: Collection[str]) -> str:
    """How many files there are, and of which kinds, commonest first; images that cannot be read here by what they are."""
    if not kinds:
        return "no files"
    counts = Counter(kinds)
    named = [(count, kind or "without extension", explain_extension(kind)) for kind, count in counts.most_common(5)]
    listed = ", ".join(f"{count} {one_line(printable(kind))}{f' ({words})' if words else ''}" for count, kind, words in named)
    others = f" and {len(counts) - 5} more kinds" if len(counts) > 5 else ""
    return f"{len(kinds)} file{'s' if len(kinds) > 1 else ''}, {listed}{others}"
