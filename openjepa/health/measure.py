"""Label-free measurements of an encoder's features: rank, spread and drift.

Effective rank: RankMe, Garrido et al. 2023 (arXiv 2210.02885, equation 2). Measured on the same training images throughout,
whole and uncropped; first of the untrained encoder, before any weights are loaded. Left out: LiDAR, which did worse on
benchmarks/health_bed.py and costs more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from openjepa.data.loader import evaluation_batches
from openjepa.data.sources import ImageSource, spread
from openjepa.nn.encoder import Encoder
from openjepa.nn.vit import VisionTransformer


def effective_rank(features: Float[Tensor, "samples dim"]) -> float:
    """RankMe: exp of the entropy of the normalised singular values; between 1 and min(samples, dim), NaN if one is not finite."""
    if not bool(features.isfinite().all()):
        return math.nan
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + 1e-7  # 1e-7 as in RankMe
    return math.exp(float(-(shares * shares.log()).sum()))


def measure_features(
    context_pooled: Float[Tensor, "images dim"],
    context_patches: Float[Tensor, "tokens dim"],
    target_patches: Float[Tensor, "tokens dim"] | None,
) -> dict[str, float]:
    """Rank, spread and drift of features of the same images, in float32; NaN where features are not finite.

    rank_limit: what the effective rank of pooled features cannot exceed, the smaller of images and width. feature_std: mean
    over dimensions of the standard deviation over images. image_cosine: mean cosine between the pooled features of different
    images. context_target_drift: 1 - mean cosine between the two encoders' tokens of a patch, left out where there is no
    target encoder.
    """
    num_images = len(context_pooled)
    unit = functional.normalize(context_pooled, dim=1)
    cosine = (unit.sum(0).square().sum() - num_images) / (num_images * (num_images - 1))
    drift = {}
    if target_patches is not None:
        drift["context_target_drift"] = float(1 - functional.cosine_similarity(context_patches, target_patches).mean())
    return {
        "effective_rank_pooled": effective_rank(context_pooled),
        "rank_limit": min(context_pooled.shape),
        "effective_rank_patches": effective_rank(context_patches),
        "feature_std": float(context_pooled.std(0).mean()),
        "feature_variance": float(context_pooled.var(0).mean()),
        "image_cosine": float(cosine),
    } | drift


TOKENS_PER_IMAGE = 4  # enough tokens for a rank, few enough for a fast singular value decomposition


class HealthMonitor:
    """Measures rank, spread and drift of the encoders on a fixed set of images."""

    def __init__(self, source: ImageSource, size: tuple[int, int], num_images: int, batch_size: int = 64) -> None:
        chosen_idx = spread(len(source), num_images)
        batches = evaluation_batches(source, size, batch_size=batch_size, indices=chosen_idx)
        self.batches: list[Tensor] = [images for images, _, _ in batches]

    @torch.inference_mode()
    def measure(self, encoders: Mapping[str, VisionTransformer], mean: Tensor, std: Tensor) -> dict[str, float]:
        """The numbers of measure_features for a method's encoders by name: context, and target where there is one."""
        training = {name: vit.training for name, vit in encoders.items()}
        pooled: list[Tensor] = []
        tokens: dict[str, list[Tensor]] = {name: [] for name in encoders}
        for images in self.batches:
            for name, vit in encoders.items():
                vit.eval()
                encoder = Encoder(vit, mean.flatten().tolist(), std.flatten().tolist()).to(mean.device)
                output = encoder(images.to(mean.device))
                patches = output.patches.flatten(1, 2)
                kept_idx = torch.linspace(0, patches.shape[1] - 1, TOKENS_PER_IMAGE, device=mean.device).long()
                tokens[name].append(patches[:, kept_idx].flatten(0, 1).cpu())
                if name == "context":
                    pooled.append(output.pooled.cpu())
        for name, vit in encoders.items():
            vit.train(training[name])
        target_patches = torch.cat(tokens["target"]) if "target" in tokens else None
        return measure_features(torch.cat(pooled), torch.cat(tokens["context"]), target_patches)
