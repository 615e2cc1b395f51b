"""Measurements that a run takes of itself every so many steps: health without labels, and a k-NN probe with them.

Health is measured on the same training images throughout, whole and uncropped. Both are first taken of the untrained encoder,
before any weights are loaded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from openjepa.data.loader import evaluation_batches
from openjepa.data.sources import ImageSource
from openjepa.evals import PROTOCOLS
from openjepa.evals.features import RawPixels, extract_features
from openjepa.health import measure_features
from openjepa.methods import Method
from openjepa.nn.encoder import Encoder

TOKENS_PER_IMAGE = 4  # enough tokens for a rank, few enough for a fast singular value decomposition


class HealthMonitor:
    """Measures rank, spread and drift of the encoders on a fixed set of images."""

    def __init__(self, source: ImageSource, size: tuple[int, int], num_images: int, batch_size: int = 64) -> None:
        chosen_idx = np.unique(np.linspace(0, len(source) - 1, num_images).astype(np.int64))
        batches = evaluation_batches(source, size, batch_size=batch_size, indices=chosen_idx)
        self.batches: list[Tensor] = [images for images, _, _ in batches]

    @torch.inference_mode()
    def measure(self, method: Method, mean: Tensor, std: Tensor) -> dict[str, float]:
        """The numbers of health.measure_features for the method's encoders."""
        method.eval()
        pooled: list[Tensor] = []
        tokens: dict[str, list[Tensor]] = {name: [] for name in method.encoders()}
        for images in self.batches:
            for name, vit in method.encoders().items():
                encoder = Encoder(vit, mean.flatten().tolist(), std.flatten().tolist()).to(mean.device)
                output = encoder(images.to(mean.device))
                patches = output.patches.flatten(1, 2)
                kept_idx = torch.linspace(0, patches.shape[1] - 1, TOKENS_PER_IMAGE, device=mean.device).long()
                tokens[name].append(patches[:, kept_idx].flatten(0, 1).cpu())
                if name == "context":
                    pooled.append(output.pooled.cpu())
        method.train()
        target_patches = torch.cat(tokens["target"]) if "target" in tokens else None
        return measure_features(torch.cat(pooled), torch.cat(tokens["context"]), target_patches)


class Probe:
    """20-NN accuracy on a small labelled set, beside raw pixels and the untrained encoder, which are measured at once."""

    def __init__(self, train: ImageSource, test: ImageSource, size: tuple[int, int], channels: int, untrained: Encoder) -> None:
        """size in pixels; untrained: the run's encoder before its first step and before --init."""
        self.train, self.test = train, test
        self.baselines = {
            "knn_random_encoder": self._accuracy(untrained),
            "knn_raw_pixels": self._accuracy(RawPixels(size, channels)),
        }

    def measure(self, encoder: Encoder) -> dict[str, Any]:
        """Accuracy in [0, 1] of the encoder and of the two baselines. The encoder stays on its device."""
        return {"knn": self._accuracy(encoder), **self.baselines}

    def _accuracy(self, encoder: Encoder | RawPixels) -> float:
        device = encoder.mean.device if isinstance(encoder, Encoder) else "cpu"
        features = [extract_features(encoder, source, device=device) for source in (self.train, self.test)]
        return float(PROTOCOLS["knn"](features[0], features[1], 0).accuracy)
