"""Robustness: accuracy on corrupted test images of 20 nearest neighbours among clean training images.

Every corruption of openjepa/data/corruptions.py (after Hendrycks and Dietterich 2019, arXiv 1903.12261) at its five severities
is applied to the evaluation view, on the fly, of at most MOST_IMAGES test images spread evenly over the data. The main score is
the mean over corruptions and severities. Intervals are over test images: an image's value is its share of right answers. Left
out: the paper's division by another model's errors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import UInt8

from openjepa.data.corruptions import CORRUPTIONS, NUM_SEVERITIES, corrupt
from openjepa.data.decode import Decoded, Pixels
from openjepa.data.loader import evaluation_batches
from openjepa.data.reading import AS_STORED, Reading
from openjepa.data.sources import ImageSource, Labels, spread
from openjepa.evals.features import Features, FeatureStore, extract_features
from openjepa.evals.knn import NEIGHBOURS, TEMPERATURE, predict_knn
from openjepa.evals.labels import pair_up
from openjepa.evals.outcome import Outcome, score_mean, score_share
from openjepa.evals.task import TaskSettings, open_classified

MOST_IMAGES = 500  # each of which is encoded 51 times


@dataclass(frozen=True)
class CorruptedViews:
    """Evaluation views of images of a source, under one corruption; clean where it is None."""

    source: ImageSource
    views: UInt8[np.ndarray, "N C H W"] = field(repr=False)
    image_idx: Labels  # (N,) numbers in the source
    seed: int
    corruption: str | None = None
    severity: int = 0

    @property
    def spec(self) -> str:
        return self.source.spec

    @property
    def channels(self) -> int:
        return self.source.channels

    @property
    def labels(self) -> Labels | None:
        return None if self.source.labels is None else self.source.labels[self.image_idx]

    @property
    def classes(self) -> list[str]:
        return self.source.classes

    def __len__(self) -> int:
        return len(self.views)

    def open(self, index: int) -> Decoded:
        """The image is in memory already."""
        return Decoded(self.load(index))

    def load(self, index: int) -> Pixels:
        """The corrupted view."""
        pixels: Pixels = self.views[index].transpose(1, 2, 0)
        if self.corruption is None:
            return pixels
        return corrupt(pixels, self.corruption, self.severity, seed=self.seed, image=int(self.image_idx[index]))

    def path(self, index: int) -> str:
        """Where the image is."""
        return self.source.path(int(self.image_idx[index]))


@dataclass(frozen=True)
class Robustness:
    """The row of TASKS."""

    title: str = "Robustness"

    def open(
        self, train: str, test: str, channels: int, settings: TaskSettings, reading: Reading = AS_STORED
    ) -> tuple[ImageSource, ImageSource]:
        """Images with a class each."""
        return open_classified("robustness", (), train, test, channels, settings, reading)

    def evaluate(
        self, features: FeatureStore, train: ImageSource, test: ImageSource, settings: TaskSettings, seed: int
    ) -> Outcome:
        """Accuracy `corrupted`, that on `clean` images and one of each corruption. The seed draws the noise.

        Raises ValueError as labels.pair_up does.
        """
        encoder = features.with_layers(settings.layers)
        views, skipped = load_views(test, encoder.size)

        def extract(seen: CorruptedViews) -> Features:
            label = f"{features.label}: {seen.corruption or 'clean'} {seen.severity or ''}"
            return extract_features(encoder, seen, device=features.device, label=features.label and label.rstrip())

        clean = extract(CorruptedViews(test, *views, seed))
        pair = pair_up(features.extract(train, settings.layers), clean)
        k = min(NEIGHBOURS, len(pair.train_labels))

        def predict(rows: torch.Tensor) -> torch.Tensor:
            return predict_knn(pair.train, pair.train_labels, rows, len(pair.classes), k, TEMPERATURE)

        predictions = predict(pair.test)
        is_right = np.empty((len(CORRUPTIONS), NUM_SEVERITIES, len(clean.image_idx)), np.bool_)
        for place, name in enumerate(CORRUPTIONS):
            for severity in range(1, NUM_SEVERITIES + 1):
                seen = extract(CorruptedViews(test, *views, seed, name, severity))
                is_right[place, severity - 1] = (predict(torch.from_numpy(seen.rows)) == pair.test_labels).numpy()
        scores = {"corrupted": score_mean(is_right.mean((0, 1)), seed)}
        scores["clean"] = score_share(int((predictions == pair.test_labels).sum()), len(predictions))
        scores |= {name: score_mean(rows.mean(0), seed) for name, rows in zip(CORRUPTIONS, is_right, strict=True)}
        worst = min(CORRUPTIONS, key=lambda name: scores[name].value)
        return Outcome(
            task="robustness",
            scores=scores,
            main="corrupted",
            num_train=len(pair.train_labels),
            num_test=len(predictions),
            num_classes=len(pair.classes),
            seed=seed,
            hyper_parameters={"k": k, "temperature": TEMPERATURE, "severities": NUM_SEVERITIES},
            warnings=pair.warnings + ([f"{len(skipped)} images of {test.spec} could not be read"] if skipped else []),
            predictions=predictions.numpy(),
            classes=pair.classes,
            note=f"clean {scores['clean'].value:.1%}",
            words=f"20-NN on {len(predictions):,} test images is right about {scores['clean'].value:.1%} of clean ones and "
            f"{scores['corrupted'].value:.1%} of corrupted ones; worst under {worst}, {scores[worst].value:.1%}.",
            details={"by_severity": {name: rows.mean(1).tolist() for name, rows in zip(CORRUPTIONS, is_right, strict=True)}},
        )


def load_views(
    source: ImageSource, size: tuple[int, int]
) -> tuple[tuple[UInt8[np.ndarray, "N C H W"], Labels], list[tuple[str, str]]]:
    """Evaluation views of at most MOST_IMAGES images with their numbers, and what could not be read."""
    batches = list(evaluation_batches(source, size, indices=spread(len(source), MOST_IMAGES)))
    views = torch.cat([batch[0] for batch in batches]).numpy()
    image_idx = torch.cat([batch[1] for batch in batches]).numpy()
    return (views, image_idx), [pair for batch in batches for pair in batch[2]]
