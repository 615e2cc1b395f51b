"""Targets cut from the image, for the seed's ablation of targets: pixels, each patch's normalised pixels, PCA of pixels.

Normalised pixels are MAE's (He et al. 2022, arXiv 2111.06377, section 3). The PCA is fitted once, on the first batch
and travels with the weights; its components are scaled to variance 1. Left out: targets of an encoder (ijepa.py).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from openjepa import config
from openjepa.nn.encoder import gather_tokens, patchify

COMPONENTS_FRAC = 0.25  # of a patch's pixels; of Fashion-MNIST's 4 x 4 patches four components hold 92 % of the variance


class PixelTargets(nn.Module):
    """Called on normalised images and target indices it gives (batch, blocks, target, width)."""

    components: Tensor
    centre: Tensor
    is_fitted: Tensor

    def __init__(self, settings: config.Method, patch_size: int, channels: int) -> None:
        """patch_size in pixels."""
        super().__init__()
        self.patch_size, self.normalise = patch_size, settings.target_norm == "layer"
        self.width = num_pixels = patch_size**2 * channels
        self.projects = settings.targets == "pca"
        if self.projects:
            self.width = max(round(COMPONENTS_FRAC * num_pixels), 1)
            self.register_buffer("components", torch.zeros(num_pixels, self.width))
            self.register_buffer("centre", torch.zeros(num_pixels))
            self.register_buffer("is_fitted", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "batch channels height width"], target_idx: Int[Tensor, "batch blocks target"]
    ) -> Float[Tensor, "batch blocks target out"]:
        """The pixels of the target patches: as they are, normalised within each patch, or on the principal components."""
        images = images.float()
        if not self.projects:
            return cut_pixels(images, target_idx, self.patch_size, self.normalise)
        if not self.is_fitted:
            self._fit(patchify(images, self.patch_size).flatten(0, 1))
        return (cut_pixels(images, target_idx, self.patch_size, False) - self.centre) @ self.components

    def _fit(self, rows: Float[Tensor, "patches pixels"]) -> None:
        """The directions of largest variance, each divided by its standard deviation."""
        centred = rows - rows.mean(0)
        values, vectors = torch.linalg.eigh((centred.T @ centred / len(rows)).double())
        deviations = values[-self.width :].clamp_min(1e-6).sqrt()
        self.components.copy_(vectors[:, -self.width :] / deviations)
        self.centre.copy_(rows.mean(0))
        self.is_fitted.fill_(True)


def cut_pixels(
    images: Float[Tensor, "batch channels height width"],
    target_idx: Int[Tensor, "batch blocks target"],
    patch_size: int,
    normalise: bool,
) -> Float[Tensor, "batch blocks target pixels"]:
    """The pixels of the target patches; with normalise, of mean 0 and variance 1 in each patch.

    The standard deviation is that of the MAE authors' code: the variance over pixels - 1 ones, plus 1e-6.
    """
    pixels = gather_tokens(patchify(images, patch_size), target_idx.flatten(1))
    if normalise:
        variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
        pixels = (pixels - mean) / (variance + 1e-6).sqrt()
    targets: Tensor = pixels.unflatten(1, tuple(target_idx.shape[1:]))
    return targets
