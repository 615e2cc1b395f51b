"""The simple feature pyramid: maps of several scales made of the last feature map of a plain ViT.

Source: Li et al. 2022, ViTDet (arXiv 2203.16527, section 3 and appendix A.2). From the last map alone, with a stride of one
patch: a quarter of that stride by two deconvolutions of 2 x 2 with LayerNorm and GELU between them, half of it by one, the map
itself, and twice the stride by 2 x 2 max pooling. Each is then brought to one number of channels by a 1 x 1 and a 3 x 3
convolution, both with LayerNorm. At patches of 16 px the strides are the paper's 4, 8, 16 and 32.

The encoder reads images of any size that its patches divide; its positions are resized (nn/positions.py). Deviations: all layers
attend globally, where the paper has windows in most; and the map is the one after the encoder's final LayerNorm, which is what
its users see. Tests: tests/unit/test_pyramid.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openjepa.engine.precision import widen
from openjepa.nn.vit import VisionTransformer, initialise

SCALES = (4.0, 2.0, 1.0, 0.5)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each cell of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, maps: Float[Tensor, "batch channels down across"]) -> Float[Tensor, "batch channels down across"]:
        """The same shape, normalised."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FeaturePyramid(nn.Module):
    """Maps of `channels` channels at each scale of a ViT's grid of patches: 4, 2, 1 or 0.5 cells for a patch's side."""

    def __init__(self, width: int, channels: int, scales: Sequence[float] = SCALES) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_make_level(width, channels, scale) for scale in scales)
        initialise(self)

    def forward(self, patches: Float[Tensor, "batch width down across"]) -> list[Float[Tensor, "batch channels _ _"]]:
        """One map a scale, from the ViT's last."""
        return [level(patches) for level in self.levels]


def _make_level(width: int, channels: int, scale: float) -> nn.Sequential:
    if scale == 4:
        half, quarter = width // 2, width // 4
        first = nn.ConvTranspose2d(width, half, 2, stride=2)
        resize: list[nn.Module] = [first, ChannelNorm(half), nn.GELU(), nn.ConvTranspose2d(half, quarter, 2, stride=2)]
        width = quarter
    elif scale == 2:
        resize = [nn.ConvTranspose2d(width, width // 2, 2, stride=2)]
        width = width // 2
    else:
        assert scale in (1, 0.5), scale
        resize = [nn.MaxPool2d(2, ceil_mode=True)] if scale == 0.5 else []
    return nn.Sequential(
        *resize,
        nn.Conv2d(width, channels, 1, bias=False), ChannelNorm(channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False), ChannelNorm(channels),
    )  # fmt: skip


class PyramidBackbone(nn.Module):
    """A ViT with its pyramid, as detectors call it: normalised images to named maps.

    frozen: the ViT gets no gradients and stays in eval mode. with_coarser: also every second cell of the coarsest map, as FPN has
    it for proposals (arXiv 1612.03144). stride_px: of the maps but this, in pixels.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        channels: int,
        scales: Sequence[float] = SCALES,
        *,
        frozen: bool = False,
        with_coarser: bool = False,
    ) -> None:
        super().__init__()
        self.vit, self.frozen, self.with_coarser, self.out_channels = vit, frozen, with_coarser, channels
        self.stride_px = [vit.patch_size / scale for scale in scales]
        self.vit_dtype: torch.dtype | None = None  # of autocast for the ViT alone, under a caller that has turned it off
        self.pyramid = FeaturePyramid(vit.embed_dim, channels, scales)
        self.train(self.training)

    def release_vit(self) -> None:
        """Go on using the ViT without holding it as a part: whoever holds it moves, saves and trains it."""
        self.__dict__["vit"] = self._modules.pop("vit")

    def train(self, mode: bool = True) -> PyramidBackbone:
        """A frozen ViT does not take part."""
        super().train(mode)
        if self.frozen:
            self.vit.eval()
        return self

    def forward(self, images: Float[Tensor, "batch image_channels height width"]) -> dict[str, Tensor]:
        """Maps by number, "0" the finest. Sides are multiples of the patch size."""
        grid = (images.shape[-2] // self.vit.patch_size, images.shape[-1] // self.vit.patch_size)
        reduced = nullcontext() if self.vit_dtype is None else torch.autocast(images.device.type, self.vit_dtype)
        with torch.no_grad() if self.frozen else nullcontext(), reduced:
            tokens: Tensor = self.vit(images)
        maps = self.pyramid(widen(tokens).transpose(1, 2).unflatten(2, grid))
        if self.with_coarser:
            maps.append(maps[-1][:, :, ::2, ::2])
        return {str(number): found for number, found in enumerate(maps)}
