"""Few labels: accuracy with 1, 5, 10 and 100 labels per class on frozen features, by logistic regression and by neighbours.

Counts that the smallest class does not allow are left out. Each count has ten balanced draws of the labelled images
(openjepa/evals/draws.py); a score is the mean over draws. Its interval speaks for the draws and for the test images: distances
of Student's interval over draws and of Wilson's over test images, each squared, are added (Zou and Donner 2008). The main score
is logistic regression with 10 labels per class, or with the most below that are allowed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from openjepa.evals.draws import Curve, LinearOfFew, knn_of, measure_curve, smallest_class
from openjepa.evals.features import Features
from openjepa.evals.labels import LabelledPair, pair_up
from openjepa.evals.outcome import TAILS, Outcome, Score, score_share

COUNTS = (1, 5, 10, 100)
MAIN = 10
METHODS = {"linear": "logistic regression", "knn": "neighbours"}


def score_lowshot(train: Features, test: Features, seed: int = 0) -> Outcome:
    """Accuracies `linear_N` and `knn_N` of N labels per class. The seed makes the draws.

    Raises ValueError as labels.pair_up does.
    """
    pair = pair_up(train, test)
    counts = [count for count in COUNTS if count <= smallest_class(pair)[1]]
    linear = LinearOfFew(pair, seed)
    curves = {"linear": measure_curve(pair, counts, linear, seed), "knn": measure_curve(pair, counts, knn_of(pair), seed)}
    scores = {
        f"{method}_{count}": score_draws(accuracies, len(pair.test_labels))
        for method, curve in curves.items()
        for count, accuracies in zip(counts, curve.accuracies, strict=True)
    }
    shown = max(count for count in counts if count <= MAIN)
    return Outcome(
        task="lowshot",
        scores=scores,
        main=f"linear_{shown}",
        num_train=len(pair.train_labels),
        num_test=len(pair.test_labels),
        num_classes=len(pair.classes),
        seed=seed,
        hyper_parameters={"draws": curves["linear"].is_right.shape[1]}
        | {f"l2_{count}": l2 for count, l2 in linear.strengths.items()},
        warnings=pair.warnings,
        predictions=curves["linear"].predictions[counts.index(shown), 0].numpy(),  # of the first draw
        classes=pair.classes,
        note=f"{shown} label{'s' if shown > 1 else ''} per class",
        words=word_curves(pair, curves),
        details={"curves": {method: list_points(curve, len(pair.test_labels)) for method, curve in curves.items()}},
    )


def score_draws(accuracies: Float[np.ndarray, " draws"], num_test: int) -> Score:
    """The mean accuracy over draws, with an interval over draws and test images."""
    from scipy.stats import t  # here: importing it takes two seconds, which every command would pay

    mean = float(accuracies.mean())
    share = score_share(round(mean * num_test), num_test)
    assert share.interval is not None
    of_draws = float(t.ppf(TAILS[1], len(accuracies) - 1) * accuracies.std(ddof=1)) / math.sqrt(len(accuracies))
    below, above = (math.hypot(of_draws, share.value - end) for end in share.interval)
    return Score(mean, (max(0.0, mean - below), min(1.0, mean + above)))


def list_points(curve: Curve, num_test: int) -> list[dict[str, Any]]:
    """The curve as plain values. spread: the standard deviation over draws."""
    points = []
    for count, accuracies in zip(curve.counts, curve.accuracies, strict=True):
        value, interval = score_draws(accuracies, num_test)
        spread = float(accuracies.std(ddof=1))
        found = {"mean": value, "interval": interval and list(interval), "spread": spread, "accuracies": accuracies.tolist()}
        points.append({"labels_per_class": count, **found})
    return points


def word_curves(pair: LabelledPair, curves: dict[str, Curve]) -> str:
    """Mean and spread at every count, and what limits the counts."""
    parts = []
    for method, curve in curves.items():
        cells = [
            f"{count}: {values.mean():.1%} ± {values.std(ddof=1):.1%}"
            for count, values in zip(curve.counts, curve.accuracies, strict=True)
        ]
        parts.append(f"{METHODS[method]} {', '.join(cells)}")
    name, size = smallest_class(pair)
    limit = f" The smallest class, {name}, has {size} training images, so no count above that." if size < COUNTS[-1] else ""
    num_draws = curves["linear"].is_right.shape[1]
    return f"Accuracy by labels per class, mean ± standard deviation of {num_draws} draws: {'; '.join(parts)}.{limit}"
