"""Where images come from. A data spec is the path of a folder or a pack, or NAME:REST with a NAME of SOURCES.

A source is a fixed list of images, each loaded by number, with labels and class names where there are any
(contract.py). A new kind of source is a file beside this one and a row of SOURCES.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from openjepa.data.decode import DecodeError as DecodeError  # part of a source's contract
from openjepa.data.reading import AS_STORED, Reading
from openjepa.data.sources.arrays import ArraySource as ArraySource
from openjepa.data.sources.arrays import open_fashion_mnist, open_sample
from openjepa.data.sources.contract import ImageSource as ImageSource
from openjepa.data.sources.contract import Labels as Labels
from openjepa.data.sources.contract import printable as printable
from openjepa.data.sources.contract import spread as spread
from openjepa.data.sources.few import FewSource as FewSource
from openjepa.data.sources.few import open_few, split_few
from openjepa.data.sources.folder import FolderSource as FolderSource
from openjepa.data.sources.folder import list_files as list_files
from openjepa.data.sources.folder import open_folder
from openjepa.data.sources.packed import is_pack, open_pack


class SourceKind(NamedTuple):
    """A row of SOURCES: what stands behind `NAME:`, and how it is opened.

    examples: specs, for messages. open: called on (spec, what follows the colon, channels, reading), it gives the source or
    raises ValueError. canonical: the same words for the same data, of what follows the colon.
    """

    examples: tuple[str, ...]
    open: Callable[[str, str, int, Reading], ImageSource]
    canonical: Callable[[str], str] = str


def _canonical_path(rest: str) -> str:
    """FOLDER or FOLDER:HALF with the folder's real path."""
    folder, colon, half = rest.rpartition(":") if ":" in rest else (rest, "", "")
    return f"{os.path.realpath(os.path.expanduser(folder))}{colon}{half}"


def _canonical_few(rest: str) -> str:
    labels, draw, whole = split_few(f"few:{rest}", rest)
    return f"{labels}:{draw}:{canonical_spec(whole)}"


SOURCES = {
    "sample": SourceKind(("sample:train", "sample:test"), open_sample),
    "fashion-mnist": SourceKind(("fashion-mnist:FOLDER:train", "fashion-mnist:FOLDER:test"), open_fashion_mnist, _canonical_path),
    "few": SourceKind(
        ("few:LABELS:DRAW:DATA",),
        lambda spec, rest, channels, reading: open_few(spec, rest, lambda whole: open_source(whole, channels, reading)),
        _canonical_few,
    ),
}


def open_source(spec: str, channels: int, reading: Reading = AS_STORED) -> ImageSource:
    """Open what the user names: a folder, a pack, or a spec of SOURCES.

    Images are converted to `channels` channels; reading: how those of more than 8 bits, stacks and arrays are read. Raises
    ValueError with one line if there is nothing to read.
    """
    name, _, rest = spec.partition(":")
    if name in SOURCES and rest:
        return SOURCES[name].open(spec, rest, channels, reading)
    path = Path(spec).expanduser()
    if not path.is_dir():
        *others, last = (example for kind in SOURCES.values() for example in kind.examples)
        kinds = f"a folder of images, a pack of them, {', '.join(others)} or {last}"
        raise ValueError(f"{spec} is a file; DATA is {kinds}" if path.exists() else f"there is no {spec}; DATA is {kinds}")
    return open_pack(spec, channels) if is_pack(path) else open_folder(spec, channels, reading)


def canonical_spec(spec: str) -> str:
    """The same name for the same data, however a user writes it: absolute, without links and final slashes, `~` expanded."""
    name, _, rest = spec.partition(":")
    if name not in SOURCES or not rest:
        return os.path.realpath(os.path.expanduser(spec))
    return f"{name}:{SOURCES[name].canonical(rest)}"


def name_held_out(spec: str) -> str | None:
    """The test part that goes with a training part: of the sample, of Fashion-MNIST, or a folder test beside a folder train."""
    if not spec.endswith("train"):
        return None
    test = spec.removesuffix("train") + "test"
    return test if spec == "sample:train" or spec.startswith("fashion-mnist:") or Path(test).is_dir() else None


def open_labelled(spec: str, channels: int, reading: Reading = AS_STORED) -> ImageSource:
    """The data that a probe needs. ValueError, beyond open_source's, if it has no labels."""
    source = open_source(spec, channels, reading)
    if source.labels is None:
        raise ValueError(f"{spec} has no labels; put each class's images into a sub-folder of its own")
    return source
