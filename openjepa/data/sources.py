"""Where images come from: a folder, a pack of one, the embedded sample, or the files of Fashion-MNIST.

A source is a fixed list of images, each loaded by number, with labels and class names where there are any. Folders are
searched at any depth and listed by path, so the same folder always gives the same order. Hidden files and folders and
files that are not images are passed over; links are followed, except those that lead back up.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8

from openjepa.data.decode import EXTENSIONS, MODES, Decoded, Picture, Pixels, open_image
from openjepa.data.decode import DecodeError as DecodeError  # part of a source's contract
from openjepa.data.idx import FASHION_MNIST_CLASSES, read_fashion_mnist
from openjepa.data.packed import is_pack, open_pack
from openjepa.data.sample import load_sample, read_index

Labels = Int64[np.ndarray, " N"]
PARTS = ("train", "test")
KINDS = "a folder of images, a pack of them, sample:train, sample:test, fashion-mnist:FOLDER:train or fashion-mnist:FOLDER:test"


@runtime_checkable
class ImageSource(Protocol):
    """A numbered list of images."""

    @property
    def spec(self) -> str:
        """What the user wrote."""

    @property
    def channels(self) -> int:
        """Channels that every loaded image has."""

    @property
    def labels(self) -> Labels | None:
        """A class number (N,) per image, or None where images have no classes."""

    @property
    def classes(self) -> list[str]:
        """Class names by number; empty where labels is None."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> Picture:
        """An image, to be decoded as finely as is needed. Raises DecodeError if it cannot be read."""

    def load(self, index: int) -> Pixels:
        """Pixels (H, W, channels) of an image. Raises DecodeError if it cannot be read."""

    def path(self, index: int) -> str:
        """Where the image is, in printable characters."""


def open_source(spec: str, channels: int) -> ImageSource:
    """Open what the user names: a folder, a pack, "sample:train|test" or "fashion-mnist:FOLDER:train|test".

    Images are converted to so many channels. Raises ValueError with one line if there is nothing to read.
    """
    kind, _, rest = spec.partition(":")
    if kind == "sample" and rest:
        images, labels = load_sample(_check_part(spec, rest))
        return ArraySource(spec, channels, images, labels, read_index()["classes"])
    if kind == "fashion-mnist" and rest:
        folder, _, part = rest.rpartition(":")
        images, labels = read_fashion_mnist(Path(folder).expanduser(), _check_part(spec, part))
        return ArraySource(spec, channels, images, labels, FASHION_MNIST_CLASSES)
    return open_pack(spec, channels) if is_pack(Path(spec).expanduser()) else open_folder(spec, channels)


def canonical_spec(spec: str) -> str:
    """The same name for the same data, however a user writes it: absolute, without links and final slashes, `~` expanded."""
    kind, _, rest = spec.partition(":")
    if kind == "sample" and rest:
        return spec
    if kind == "fashion-mnist" and rest:
        folder, _, part = rest.rpartition(":")
        return f"{kind}:{os.path.realpath(os.path.expanduser(folder))}:{part}"
    return os.path.realpath(os.path.expanduser(spec))


def printable(name: str) -> str:
    """A path or class name in characters that can be printed; bytes that are not UTF-8 become backslash escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class ArraySource:
    """Grey images in memory: (N, H, W) uint8, shown with 1 to 4 channels."""

    spec: str
    channels: int
    images: UInt8[np.ndarray, "N H W"] = field(repr=False)
    labels: Labels | None = field(repr=False)
    classes: list[str] = field(repr=False)

    def __post_init__(self) -> None:
        if self.channels not in MODES:
            raise ValueError(f"{self.spec} has grey images, which give 1 to 4 channels; data.channels is {self.channels}")

    def __len__(self) -> int:
        return len(self.images)

    def open(self, index: int) -> Picture:
        """The image is in memory already."""
        return Decoded(self.load(index))

    def load(self, index: int) -> Pixels:
        """Grey as it is, repeated for colour; a fourth or second channel is opaque alpha."""
        grey: Pixels = self.images[index][:, :, None]
        if self.channels == 1:
            return grey
        pixels = np.repeat(grey, self.channels, axis=2)
        if self.channels in (2, 4):
            pixels[:, :, -1] = 255
        return pixels

    def path(self, index: int) -> str:
        """The spec and the number: these images are no files."""
        return f"{self.spec}[{index}]"


@dataclass(frozen=True)
class FolderSource:
    """Image files under a folder, decoded when asked for."""

    spec: str
    channels: int
    files: list[str] = field(repr=False)
    labels: Labels | None = field(repr=False)
    classes: list[str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.files)

    def open(self, index: int) -> Picture:
        """Read the file's header, and if it is no JPEG its pixels."""
        return open_image(self.files[index], self.channels)

    def load(self, index: int) -> Pixels:
        """Read and convert the file."""
        return self.open(index).decode()

    def path(self, index: int) -> str:
        """The file's path in printable characters."""
        return printable(self.files[index])


def name_held_out(spec: str) -> str | None:
    """The test part that goes with a training part: of the sample, of Fashion-MNIST, or a folder test beside a folder train."""
    if not spec.endswith("train"):
        return None
    test = spec.removesuffix("train") + "test"
    return test if spec == "sample:train" or spec.startswith("fashion-mnist:") or Path(test).is_dir() else None


def open_folder(spec: str, channels: int) -> FolderSource:
    """List a folder's images. First-level sub-folders are classes if every image lies in one.

    Raises ValueError if the path is missing or no folder, or holds no images; OSError where it may not be read.
    """
    root = Path(spec).expanduser()
    if not root.exists():
        raise ValueError(f"there is no {spec}; DATA is {KINDS}")
    if not root.is_dir():
        raise ValueError(f"{spec} is a file; DATA is {KINDS}")
    found = list_files(root)
    names = [name for name in found if os.path.splitext(name)[1].lower() in EXTENSIONS]
    if not names:
        raise ValueError(f"{spec} holds no images: {_describe_files(found)}; JPEG, PNG, WebP, BMP, TIFF, GIF and .npy are read")
    folders = [name.split("/", 1)[0] if "/" in name else None for name in names]
    classes = sorted({folder for folder in folders if folder is not None})
    files = [os.path.join(root, name) for name in names]
    if None in folders:
        return FolderSource(spec, channels, files, None, [])
    numbers = {folder: number for number, folder in enumerate(classes)}
    labels = np.array([numbers[folder] for folder in folders if folder is not None], np.int64)
    return FolderSource(spec, channels, files, labels, [printable(name) for name in classes])


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


def _check_part(spec: str, part: str) -> str:
    if part not in PARTS:
        raise ValueError(f"{spec} does not end in :train or :test; DATA is {KINDS}")
    return part


def _describe_files(names: list[str]) -> str:
    """How many files there are, and of which kinds, commonest first."""
    if not names:
        return "no files"
    kinds = Counter(os.path.splitext(name)[1].lower() or "without extension" for name in names)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
    others = f" and {len(kinds) - 5} more kinds" if len(kinds) > 5 else ""
    return f"{len(names)} file{'s' if len(names) > 1 else ''}, {listed}{others}"
