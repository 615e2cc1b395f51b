"""A folder of images, searched at any depth and listed by path, so that the same folder always gives the same order.

Hidden files and folders and files that are not images are passed over; links are followed, except those that lead back up.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from openjepa.data.decode import EXTENSIONS, Picture, Pixels, open_image
from openjepa.data.decode import DecodeError as DecodeError
from openjepa.data.identify import PICTURES
from openjepa.data.reading import AS_STORED, Reading
from openjepa.data.sources.contract import Labels, printable
from openjepa.data.tiff import list_pages


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

    def __len__(self) -> int:
        return len(self.files)

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
    root = Path(spec).expanduser()
    found = list_files(root)
    names = [name for name in found if os.path.splitext(name)[1].lower() in EXTENSIONS]
    if not names:
        raise ValueError(f"{spec} holds no images: {_describe_files(found)}; {PICTURES}")
    left_out = [os.path.join(root, name) for name in found if os.path.splitext(name)[1].lower() not in EXTENSIONS]
    pages = None
    if reading.pages == "all":
        numbered = [(name, page) for name in names for page in list_pages_of(os.path.join(root, name))]
        names, pages = [name for name, _ in numbered], [page for _, page in numbered]
    folders = [name.split("/", 1)[0] if "/" in name else None for name in names]
    classes = sorted({folder for folder in folders if folder is not None})
    files = [os.path.join(root, name) for name in names]
    if None in folders:
        return FolderSource(spec, channels, files, None, [], reading, pages, left_out)
    numbers = {folder: number for number, folder in enumerate(classes)}
    labels = np.array([numbers[folder] for folder in folders if folder is not None], np.int64)
    return FolderSource(spec, channels, files, labels, [printable(name) for name in classes], reading, pages, left_out)


def list_pages_of(path: str) -> list[int]:
    """Pages of a file: of a TIFF, those of the first one's size; of any other, and of one that cannot be read, the first."""
    if not path.lower().endswith((".tif", ".tiff")):
        return [0]
    try:
        return list_pages(path)
    except Exception:  # damaged files make tifffile raise almost anything; decoding says what is wrong
        return [0]


def list_files(root: Path) -> list[str]:
    """Paths of all files below a folder, relative to it with "/" between names, sorted; hidden ones left out."""
    files: list[str] = []
    waiting = [(str(root), "", frozenset([os.path.realpath(root)]))]
    while waiting:
        folder, prefix, above = waiting.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                is_link = entry.is_symlink()
                if os.path.isdir(entry.path) if is_link else entry.is_dir():
                    real = os.path.realpath(entry.path)
                    if real not in above:  # else a link that leads back up
                        waiting.append((entry.path, f"{prefix}{entry.name}/", above | {real}))
                elif is_link or entry.is_file():  # a broken link is a file that cannot be read, and is reported as one
                    files.append(prefix + entry.name)
    return sorted(files)


def _describe_files(names: list[str]) -> str:
    """How many files there are, and of which kinds, commonest first."""
    if not names:
        return "no files"
    kinds = Counter(os.path.splitext(name)[1].lower() or "without extension" for name in names)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
    others = f" and {len(kinds) - 5} more kinds" if len(kinds) > 5 else ""
    return f"{len(names)} file{'s' if len(names) > 1 else ''}, {listed}{others}"
