"""What every source is: the contract, and names that can be printed."""

from __future__ import annotations

import os
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from openjepa.data.decode import DecodeError as DecodeError
from openjepa.data.decode import Picture, Pixels

Labels = Int64[np.ndarray, " N"]


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


def spread(count: int, most: int) -> Int64[np.ndarray, " chosen"]:
    """Numbers 0 to count - 1, or `most` of them spread evenly, the first and the last among them; none of 0."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def printable(name: str) -> str:
    """A path or class name in characters that can be printed; bytes that are not UTF-8 become backslash escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def one_line(text: str) -> str:
    """A path or a reason with its tabs and line ends written as escapes."""
    return text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
