"""Scores of predicted label maps: intersection over union by class, its mean, of all that is no background, and pixel accuracy.

An IoU is a sum over all test pixels divided by another, not a mean over images; a class that no pixel has or is given has none.
Pixels without a class count nowhere, whatever was predicted there. Intervals are percentiles of a bootstrap over images.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int64

from openjepa.data.label_maps import IGNORED, LabelMap
from openjepa.evals.outcome import LEVEL, Score

RESAMPLES = 1000
BOOTSTRAP = 14  # what a generator is for: the second number of its seed

Counts = Int64[np.ndarray, "images kinds"]


class Tally:
    """Pixels of each class in the truth, the prediction and both, image by image."""

    def __init__(self, num_classes: int, background: int | None) -> None:
        self.num_classes, self.background = num_classes, background
        self.both: list[Int64[np.ndarray, " kinds"]] = []
        self.either: list[Int64[np.ndarray, " kinds"]] = []

    def add(self, truth: LabelMap, guess: LabelMap) -> None:
        """Count an image's maps. The last two kinds are all classes but background as one, and all pixels."""
        counted = truth != IGNORED
        table = np.bincount(
            truth[counted].astype(np.int64) * self.num_classes + guess[counted], minlength=self.num_classes**2
        ).reshape(self.num_classes, self.num_classes)
        both, of_truth, of_guess = table.diagonal(), table.sum(1), table.sum(0)
        inner_mask = np.arange(self.num_classes) != self.background
        total = table.sum()
        self.both.append(np.array([*both, table[inner_mask][:, inner_mask].sum(), both.sum()]))
        outside = table[~inner_mask][:, ~inner_mask].sum()
        self.either.append(np.array([*(of_truth + of_guess - both), total - outside, total]))

    def miou(self) -> float:
        """The mean IoU over classes that have one; 0 where no pixel counted."""
        either = np.sum(self.either, axis=0, keepdims=True)[:, :-2]
        mean = _mean(_divide(np.sum(self.both, axis=0, keepdims=True)[:, :-2], either))[0]
        return 0.0 if np.isnan(mean) else float(mean)

    def score(self, classes: list[str], seed: int) -> dict[str, Score]:
        """miou, pixel_accuracy, foreground_iou where there is a background, and the IoU of each class that has one."""
        both, either = np.stack(self.both), np.stack(self.either)
        draws = np.random.default_rng([seed, BOOTSTRAP]).multinomial(len(both), np.full(len(both), 1 / len(both)), RESAMPLES)
        shares = _divide(both.sum(0, keepdims=True), either.sum(0, keepdims=True))
        drawn = _divide(draws @ both, draws @ either)
        names = [*(f"iou {name}" for name in classes), "foreground_iou", "pixel_accuracy"]
        kept_mask = ~np.isnan(shares[0])
        if self.background is None:
            kept_mask[-2] = False
        by_name = {"miou": (_mean(shares[:, :-2])[0], _mean(drawn[:, :-2]))}
        by_name |= {name: (shares[0, kind], drawn[:, kind]) for kind, name in enumerate(names) if kept_mask[kind]}
        order = dict.fromkeys(["miou", "pixel_accuracy", "foreground_iou", *by_name])
        return {name: Score(float(by_name[name][0]), _interval(by_name[name][1])) for name in order if name in by_name}


def _divide(part: Counts, whole: Counts) -> Float64[np.ndarray, "images kinds"]:
    """part / whole, NaN where whole is 0."""
    shares: Float64[np.ndarray, "images kinds"] = np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
    return shares


def _mean(shares: Float64[np.ndarray, "draws kinds"]) -> Float64[np.ndarray, " draws"]:
    """Over the kinds that have a share; NaN where none has."""
    there: Bool[np.ndarray, "draws kinds"] = ~np.isnan(shares)
    mean: Float64[np.ndarray, " draws"] = np.where(there, shares, 0).sum(1) / np.where(there.any(1), there.sum(1), np.nan)
    return mean


def _interval(drawn: Float64[np.ndarray, " draws"]) -> tuple[float, float]:
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
