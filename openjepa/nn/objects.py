"""What a detector learns from in one image, and how large it sees it; without torchvision, so that a plain install has it."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Bool, Float, Int64
from torch import Tensor


class Target(NamedTuple):
    """What is in an image: boxes (left, top, right, bottom) in its pixels, labels from 0, masks for Mask R-CNN. No crowds."""

    boxes: Float[Tensor, "objects 4"]
    labels: Int64[Tensor, " objects"]
    masks: Bool[Tensor, "objects height width"] | None = None


def fit_size(size: tuple[int, int], canvas: tuple[int, int], factor: float = 1.0) -> tuple[int, int]:
    """Height and width of an image that is as large as fits a canvas, times a factor; its aspect stays, to a pixel."""
    scale = factor * min(canvas[0] / size[0], canvas[1] / size[1])
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)
