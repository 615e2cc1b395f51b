"""Targets cut from the image: a patch's pixels, normalised or as they are, or their principal components.

Normalised pixels are MAE's (He et al. 2022, arXiv 2111.06377, section 3); all three are in the brief's
ablation of targets. The PCA is fitted once, on the patches of the first batch, and travels with the
weights; its components are scaled to variance 1. It is fitted in float64 and applied in float32, whatever
the precision of the step: in bf16 small components are rounding error. Left out: targets of an encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from openjepa.engine.precision import full_precision
from openjepa.engine.world import current
from openjepa.nn.vit import gather_tokens, patchify
from openjepa.recipe import methods

COMPONENTS_FRAC = 0.25  # of a patch's pixels; of Fashion-MNIST's 4 x 4 patches four components hold 92 % of the variance
FITTED_ROWS = 2**14  # patches at a time: 100 MB of float64 where a patch has 768 values


class PixelTargets(nn.Module):
    """Called on normalised images and target indices it gives (batch, blocks, target, width)."""

    components: Tensor
    centre: Tensor
    is_fitted: Tensor

    def __init__(self, settings: methods.MAE, patch_size: int, channels: int) -> None:
        """patch_size in pixels."""
        super().__init__()
        self.patch_size, self.normalise = patch_size, settings.targets == "normalised_pixels"
        self.width = num_pixels = patch_size**2 * channels
        self.projects = settings.targets == "pca"
        self.knows_fit = False  # is_fitted as the CPU knows it, which would have to ask a GPU in every step
        if self.projects:
            self.width = max(round(COMPONENTS_FRAC * num_pixels), 1)
            self.register_buffer("components", torch.zeros(num_pixels, self.width))
            self.register_buffer("centre", torch.zeros(num_pixels))
            self.register_buffer("is_fitted", torch.zeros((), dtype=torch.bool))
            self.register_load_state_dict_post_hook(_know_fit)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "batch channels height width"], target_idx: Int[Tensor, "batch blocks target"]
    ) -> Float[Tensor, "batch blocks target out"]:
        """The pixels of the target patches: as they are, normalised within each patch, or on the principal components."""
        with full_precision(images.device):
            images = images.float()
            if not self.projects:
                return cut_pixels(images, target_idx, self.patch_size, self.normalise)
            if not self.knows_fit:
                self.fit(patchify(images, self.patch_size).flatten(0, 1))
            return (cut_pixels(images, target_idx, self.patch_size, False) - self.centre) @ self.components

    def fit(self, patches: Float[Tensor, "patches pixels"]) -> None:
        """The directions of largest variance, each divided by its standard deviation."""
        world = current()
        centre = world.add_up(patches.mean(0, dtype=torch.float64)) / world.size
        covariance = torch.zeros(len(centre), len(centre), dtype=torch.float64, device=patches.device)
        for part in patches.split(FITTED_ROWS):
            centred = part - centre
            covariance += centred.T @ centred / len(patches)
        values, vectors = torch.linalg.eigh(world.add_up(covariance) / world.size)
        deviations = values[-self.width :].clamp_min(1e-6).sqrt()
        components = {"": vectors[:, -self.width :] / deviations}  # of which another machine may find another sign
        self.components.copy_(world.share_tensors(components, patches.device)[""])
        self.centre.copy_(centre)
        self.is_fitted.fill_(True)
        self.knows_fit = True


def _know_fit(module: PixelTargets, _incompatible_keys: Any) -> None:
    module.knows_fit = bool(module.is_fitted)


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
