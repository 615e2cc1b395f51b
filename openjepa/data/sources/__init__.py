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
from openjepa.data.sources.few import whole_of as whole_of
from openjepa.data.sources.folder import FolderSource as FolderSource
from openjepa.data.sources.folder import open_folder
from openjepa.data.sources.packed import is_pack, open_pack
from openjepa.runs.paths import absolute_path, quoted, user_path


class SourceKind(NamedTuple):
    """A row of SOURCES: what stands behind `NAME:`, and how it is opened.

    examples: specs, for messages. open: called on (spec, what follows the colon, channels, reading), it gives the source or
    raises ValueError. change_path: what follows the colon with its path, if it has one, changed.
    """

    examples: tuple[str, ...]
    open: Callable[[str, str, int, Reading], ImageSource]
    change_path: Callable[[str, Callable[[str], str]], str] = lambda rest, _change: rest


def _change_folder(rest: str, change: Callable[[str], str]) -> str:
    folder, colon, half = rest.rpartition(":") if ":" in rest else (rest, "", "")
    return f"{change(folder)}{colon}{half}"


def _change_whole(rest: str, change: Callable[[str], str]) -> str:
    labels, draw, whole = split_few(f"few:{rest}", rest)
    return f"{labels}:{draw}:{_with_path(whole, change)}"


SOURCES = {
    "sample": SourceKind(("sample:train", "sample:test"), open_sample),
    "fashion-mnist": SourceKind(("fashion-mnist:FOLDER:train", "fashion-mnist:FOLDER:test"), open_fashion_mnist, _change_folder),
    "few": SourceKind(
        ("few:LABELS:DRAW:DATA",),
        lambda spec, rest, channels, reading: open_few(spec, rest, lambda whole: open_source(whole, channels, reading)),
        _change_whole,
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
    path = user_path(spec)
    if not path.is_dir():
        *others, last = (example for kind in SOURCES.values() for example in kind.examples)
        kinds = f"a folder of images, a pack of them, {', '.join(others)} or {last}"
        if path.exists():
            raise ValueError(f"{quoted(spec)} is a file; DATA is {kinds}")
        near = f" (did you mean {spec.strip()}?)" if spec != spec.strip() and user_path(spec.strip()).exists() else ""
        raise ValueError(f"there is no {quoted(spec)}{near}; DATA is {kinds}")
    return open_pack(spec, channels) if is_pack(path) else open_folder(spec, channels, reading)


def canonical_spec(spec: str) -> str:
    """The same name for the same data, however a user writes it: absolute, without links and final slashes, `~` expanded."""
    return _with_path(spec, lambda path: os.path.realpath(user_path(path)))


def absolute_spec(spec: str) -> str:
    """The spec as it means the same from another working directory: its path absolute, links in it left."""
    return _with_path(spec, absolute_path)


def _with_path(spec: str, change: Callable[[str], str]) -> str:
    """The spec with its path, if it has one, changed."""
    name, _, rest = spec.partition(":")
    if name not in SOURCES or not rest:
        return change(spec)
    return f"{name}:{SOURCES[name].change_path(rest, change)}"


def name_held_out(spec: str) -> str | None:
    """The test part that goes with a training part: of the sample, of Fashion-MNIST, or a folder test beside a folder train."""
    name, _, rest = spec.partition(":")
    if name == "few" and rest:
        return name_held_out(split_few(spec, rest)[2])
    absolute = absolute_spec(spec)  # X/train/ and X/test/../train are X/train
    if not absolute.endswith("train"):
        return None
    test = absolute.removesuffix("train") + "test"
    return test if spec == "sample:train" or spec.startswith("fashion-mnist:") or Path(test).is_dir() else None


def describe_unlabelled(source: ImageSource) -> str:
    """Why a source has no labels, and what gives it some."""
    cause = ""
    if isinstance(source, FolderSource) and source.stray:
        more = f" and {len(source.stray) - 1} more images lie" if len(source.stray) > 1 else " lies"
        cause = f": {quoted(printable(source.stray[0]))}{more} beside its sub-folders"
    return f"{source.spec} has no labels{cause}; put each class's images into a sub-folder of its own"


def open_labelled(spec: str, channels: int, reading: Reading = AS_STORED) -> ImageSource:
    """The data that a probe needs. ValueError, beyond open_source's, if it has no labels."""
    source = open_source(spec, channels, reading)
    if source.labels is None:
        raise ValueError(describe_unlabelled(source))
    return source
