"""A k-NN probe that a run takes of itself at fixed intervals, beside the untrained encoder and raw pixels."""

from __future__ import annotations

from typing import Any

from openjepa.data.sources import ImageSource
from openjepa.evals.features import RawPixels, extract_features
from openjepa.evals.knn import score_knn
from openjepa.nn.encoder import Encoder


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
        return score_knn(features[0], features[1]).score
