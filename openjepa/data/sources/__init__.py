"""Where images come from: a folder, a pack of one, the embedded sample, or the files of Fashion-MNIST.

A source is a fixed list of images, each loaded by number, with labels and class names where there are any.
"""

from __future__ import annotations

import os
from pathlib import Path

from openjepa.data.decode import DecodeError as DecodeError  # part of a source's contract
from openjepa.data.sample import load_sample, read_index
from openjepa.data.sources.arrays import ArraySource as ArraySource
from openjepa.data.sources.contract import ImageSource as ImageSource
from openjepa.data.sources.contract import Labels as Labels
from openjepa.data.sources.contract import printable as printable
from openjepa.data.sources.contract import spread as spread
from openjepa.data.sources.folder import KINDS, open_folder
from openjepa.data.sources.folder import FolderSource as FolderSource
from openjepa.data.sources.folder import list_files as list_files
from openjepa.data.sources.idx import FASHION_MNIST_CLASSES, read_fashion_mnist
from openjepa.data.sources.packed import is_pack, open_pack

PARTS = ("train", "test")


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


def name_held_out(spec: str) -> str | None:
    """The test part that goes with a training part: of the sample, of Fashion-MNIST, or a folder test beside a folder train."""
    if not spec.endswith("train"):
        return None
    test = spec.removesuffix("train") + "test"
    return test if spec == "sample:train" or spec.startswith("fashion-mnist:") or Path(test).is_dir() else None


def _check_part(spec: str, part: str) -> str:
    if part not in PARTS:
        raise ValueError(f"{spec} does not end in :train or :test; DATA is {KINDS}")
    return part


def open_labelled(spec: str, channels: int) -> ImageSource:
    """The data that a probe needs. ValueError, beyond open_source's, if it has no labels."""
    source = open_source(spec, channels)
    if source.labels is None:
        raise ValueError(f"{spec} has no labels; put each class's images into a sub-folder of its own")
    return source
