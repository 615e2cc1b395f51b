"""Grey images in memory: the embedded sample and Fashion-MNIST."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from openjepa.data.decode import MODES, Decoded, Picture, Pixels
from openjepa.data.decode import DecodeError as DecodeError
from openjepa.data.sources.contract import Labels


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
