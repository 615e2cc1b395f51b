"""A UPerNet-like head: the class of every pixel from a plain ViT's last feature map, seen at four scales.

Source: Xiao et al. 2018, UPerNet (arXiv 1807.10221, section 3.1), for objects alone: pyramid pooling on the coarsest level
(PSPNet, arXiv 1612.01105, section 3.2: means over 1, 2, 3 and 6 cells a side), a top-down path with lateral connections (FPN,
arXiv 1612.03144), all levels brought to the finest one, side by side, and fused. The levels are those of ViTDet's simple pyramid
(arXiv 2203.16527, nn/pyramid.py): 4, 2, 1 and 1/2 cells for a patch's side.

Deviations: LayerNorm over channels in place of batch normalisation, which small batches upset, and as the pyramid has it; the
pyramid ends in convolutions to the head's channels, so there are no lateral 1 x 1 ones; a quarter of the ViT's width in channels,
but 32 at least, in place of 512, to be of use on a CPU. Tests: tests/unit/test_upernet.py.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from openjepa.nn.pyramid import SCALES, ChannelNorm, FeaturePyramid

POOLED_SIDES = (1, 2, 3, 6)
WIDTH_FRAC, LEAST_CHANNELS = 0.25, 32


class UPerNet(nn.Module):
    """Called on patch features and a size in pixels it gives scores of classes."""

    def __init__(self, width: int, num_classes: int) -> None:
        """width: of the patch features."""
        super().__init__()
        self.channels = channels = max(round(WIDTH_FRAC * width), LEAST_CHANNELS)
        self.pyramid = FeaturePyramid(width, channels)
        self.pooled = nn.ModuleList(_block(channels, channels, 1) for _ in POOLED_SIDES)
        self.bottleneck = _block((1 + len(POOLED_SIDES)) * channels, channels, 3)
        self.smooth = nn.ModuleList(_block(channels, channels, 3) for _ in SCALES[:-1])
        self.fuse = _block(len(SCALES) * channels, channels, 3)
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(
        self, tokens: Float[Tensor, "images down across width"], size: tuple[int, int]
    ) -> Float[Tensor, "images classes height width_px"]:
        """Scores at every pixel of maps of a height and width."""
        levels = self.pyramid(tokens.permute(0, 3, 1, 2))
        levels[-1] = self.pool(levels[-1])
        for finer, coarser in reversed(list(pairwise(range(len(levels))))):
            levels[finer] = levels[finer] + _resize(levels[coarser], levels[finer])
        smoothed = [*(smooth(level) for smooth, level in zip(self.smooth, levels[:-1], strict=True)), levels[-1]]
        fused = self.fuse(torch.cat([_resize(level, levels[0]) for level in smoothed], dim=1))
        scores: Tensor = functional.interpolate(self.classify(fused), size, mode="bilinear", align_corners=False)
        return scores

    def pool(self, level: Float[Tensor, "images channels down across"]) -> Float[Tensor, "images channels down across"]:
        """Pyramid pooling: the level and its means over larger and larger cells, fused."""
        means = [
            _resize(block(functional.adaptive_avg_pool2d(level, side)), level)
            for block, side in zip(self.pooled, POOLED_SIDES, strict=True)
        ]
        pooled: Tensor = self.bottleneck(torch.cat([level, *means], dim=1))
        return pooled


def _block(width: int, channels: int, side: int) -> nn.Sequential:
    """A convolution of side x side cells, normalised."""
    return nn.Sequential(nn.Conv2d(width, channels, side, padding=side // 2, bias=False), ChannelNorm(channels), nn.ReLU())


def _resize(maps: Tensor, like: Tensor) -> Tensor:
    size = (like.shape[-2], like.shape[-1])
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False)
