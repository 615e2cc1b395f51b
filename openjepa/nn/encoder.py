"""The encoder as evaluations and users see it: from images as they are to one vector an image and one a patch."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from openjepa.nn.vit import VisionTransformer

# Of float images; bicubic and Lanczos resizing overshoot [0, 1] by 0.69 at most, normalised images and 0 to 255 by more.
LEAST_PIXEL, MOST_PIXEL = -0.75, 1.75


class EncoderOutput(NamedTuple):
    """What an encoder makes of a batch: one vector an image, and one a patch."""

    pooled: Float[Tensor, "batch dim"]
    patches: Float[Tensor, "batch down across dim"]


class Encoder(nn.Module):
    """A trained (or random) encoder as evaluation and users see it: from images as they are to features."""

    mean: Tensor
    std: Tensor

    def __init__(self, vit: VisionTransformer, mean: list[float], std: list[float], num_layers: int = 1) -> None:
        """mean and std: one value a channel, for images in [0, 1]. num_layers: how many last layers `pooled` is of."""
        super().__init__()
        if not 1 <= num_layers <= len(vit.blocks):
            raise ValueError(f"features of {num_layers} layers were asked for, the encoder has {len(vit.blocks)}")
        assert len(mean) == len(std) == vit.channels, (mean, std, vit.channels)
        self.vit, self.num_layers = vit, num_layers
        self.width: int = vit.embed_dim
        self.size, self.patch_size, self.channels = vit.size, vit.patch_size, vit.channels
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def with_layers(self, num_layers: int) -> Encoder:
        """The same weights with `pooled` of the last `num_layers` layers. ValueError if the encoder has fewer."""
        if num_layers == self.num_layers:
            return self
        mean, std = self.mean.flatten().tolist(), self.std.flatten().tolist()
        return Encoder(self.vit, mean, std, num_layers).to(self.mean.device).train(self.training)

    def forward(self, images: Tensor) -> EncoderOutput:
        """Features of uint8 images (B, C, H, W), or of float images in [0, 1]; any size that the patch size divides.

        ValueError for other images (require_images).
        pooled is the mean over patches, as the paper evaluates (2301.08243, section A.2); of several layers, of which the paper
        takes four, the mean over patches of each, layer-normed, side by side. patches are the last layer's.
        """
        require_images(images)
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        normalised = normalise(images, self.mean, self.std)
        if self.num_layers == 1:
            tokens: Tensor = self.vit(normalised)
            return EncoderOutput(tokens.mean(1), tokens.unflatten(1, grid))
        layers = self.vit.last_layers(normalised, self.num_layers)
        return EncoderOutput(torch.cat([tokens.mean(1) for tokens in layers], 1), layers[-1].unflatten(1, grid))


def require_images(images: Tensor) -> None:
    """ValueError unless these are images that an encoder takes: (B, C, H, W), uint8 or floats in [0, 1].

    Floats may overshoot a little, as resizing makes them. Their check waits for the device, and is left out while torch compiles
    or exports the encoder; uint8 costs nothing.
    """
    if images.ndim != 4:
        raise ValueError(f"images have the shape {tuple(images.shape)}; an encoder takes (batch, channels, height, width)")
    kind, wanted = str(images.dtype).removeprefix("torch."), "an encoder takes uint8 (0 to 255) or floats in [0, 1]"
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images are {kind}; {wanted}: convert 0 to 255 with images.to(torch.uint8), any other range to floats")
    if images.dtype == torch.uint8 or images.numel() == 0 or torch.compiler.is_compiling():
        return
    low, high = torch.stack(torch.aminmax(images.detach())).tolist()
    if not math.isfinite(low + high):
        raise ValueError(f"{kind} images hold NaN or infinity; {wanted}: leave out the damaged ones")
    if low < LEAST_PIXEL or high > MOST_PIXEL:
        cure = "divide 0 to 255 by 255, and leave normalising to the encoder"
        raise ValueError(f"{kind} images run from {low:.3g} to {high:.3g}; {wanted}: {cure}")


def normalise(
    images: UInt8[Tensor, "batch channels height width"] | Float[Tensor, "batch channels height width"],
    mean: Float[Tensor, "statistics 1 1"],
    std: Float[Tensor, "statistics 1 1"],
) -> Float[Tensor, "batch channels height width"]:
    """(image in [0, 1] - mean) / std in the precision of mean, from uint8 or from floats already in [0, 1]."""
    assert images.dtype == torch.uint8 or images.is_floating_point(), images.dtype
    if images.shape[1] != mean.shape[0]:
        raise ValueError(f"images have {images.shape[1]} channels, the encoder takes {mean.shape[0]}")
    exact = images.to(torch.promote_types(mean.dtype, torch.float32))
    scaled = exact / 255 if images.dtype == torch.uint8 else exact
    return ((scaled - mean) / std).to(mean.dtype)
