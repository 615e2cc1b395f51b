"""Grey images in memory: the embedded sample, and the files of Fashion-MNIST."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from openjepa.data.decode import MODES, Decoded, Picture, Pixels
from openjepa.data.decode import DecodeError as DecodeError
from openjepa.data.reading import Reading
from openjepa.data.sample import load_sample, read_index
from openjepa.data.sources.contract import Labels
from openjepa.data.sources.idx import FASHION_MNIST_CLASSES, read_fashion_mnist
from openjepa.runs.paths import user_path


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
        """Grey unchanged, repeated for colour; a fourth or second channel is opaque alpha."""
        grey: Pixels = self.images[index][:, :, None]
        if self.channels == 1:
            return grey
        pixels = np.repeat(grey, self.channels, axis=2)
        if self.channels in (2, 4):
            pixels[:, :, -1] = 255
        return pixels

    def path(self, index: int) -> str:
        """The spec and the number: these images have no file."""
        return f"{self.spec}[{index}]"


def open_sample(spec: str, half: str, channels: int, _reading: Reading) -> ArraySource:
    """The embedded sample's half "train" or "test"."""
    images, labels = load_sample(_check_half(spec, half))
    return ArraySource(spec, channels, images, labels, read_index()["classes"])


def open_fashion_mnist(spec: str, rest: str, channels: int, _reading: Reading) -> ArraySource:
    """FOLDER:train or FOLDER:test of the original files. ValueError as read_fashion_mnist raises it."""
    folder, _, half = rest.rpartition(":")
    images, labels = read_fashion_mnist(user_path(folder), _check_half(spec, half))
    return ArraySource(spec, channels, images, labels, FASHION_MNIST_CLASSES)


def _check_half(spec: str, half: str) -> str:
    if half not in ("train", "test"):
        raise ValueError(f"{spec} does not end in :train or :test")
    return half
