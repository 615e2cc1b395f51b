"""Classifiers of few labels: balanced draws of the training images, and which test images each draw's classifier gets right.

lowshot and labels-needed share this. A draw gives every class a random order of its images, and n labels per class are the
first n, so that more labels of a draw contain fewer. Features are standardised over all training images: that uses no label.

The strength of the logistic regression (openjepa/evals/linear.py) is one for each number of labels: the one that is right most
often about a held-out fifth of each draw's labelled images. No other label and no test image has a part in it. With one label
per class nothing can be held out, and it is ONE_LABEL_L2: on the sample, strengths from 1 to 1e-7 gave a demo encoder of 100
steps 34.1 to 34.5 % and an untrained one 22.8 to 23.2 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from openjepa.engine.threads import threads_for
from openjepa.evals.knn import NEIGHBOURS, TEMPERATURE, predict_knn
from openjepa.evals.labels import LabelledPair
from openjepa.evals.linear import (
    L2_STRENGTHS,
    PATIENCE,
    SEARCH_TOLERANCE,
    Moments,
    Probe,
    factor_gram,
    fit_probe,
    is_wide,
    measure_columns,
    measure_moments,
    widen,
)

DRAWS = 10
ONE_LABEL_L2 = 1e-2
EVERY = 5  # one labelled image in so many is held out
ENOUGH_HELD_OUT = 1000  # images, after which no further draw is looked at
DRAW = 13  # what a generator is for: the second number of its seed

Predict = Callable[[Int[Tensor, " drawn"], int], Int[Tensor, " num_test"]]  # (numbers of drawn images, labels per class)


class Curve(NamedTuple):
    """What classifiers of few labels predict."""

    counts: list[int]
    """Labels per class."""
    predictions: Int[Tensor, "counts draws num_test"]
    is_right: Bool[Tensor, "counts draws num_test"]

    @property
    def accuracies(self) -> Float[np.ndarray, "counts draws"]:
        """The share of test images that are right."""
        shares: Float[np.ndarray, "counts draws"] = self.is_right.double().mean(2).numpy()
        return shares


def measure_curve(pair: LabelledPair, counts: Sequence[int], predict: Predict, seed: int) -> Curve:
    """Predictions of classifiers of each number of labels per class, DRAWS of them; no count is above the smallest class's."""
    sizes = pair.train_labels.bincount(minlength=len(pair.classes))
    rows = []
    for count in counts:
        num_draws = 1 if bool((sizes == count).all()) else DRAWS  # all images: every draw is the same
        drawn = [predict(draw_images(pair.train_labels, count, seed, draw), count) for draw in range(num_draws)]
        rows.append(torch.stack(drawn).expand(DRAWS, -1))
    predictions = torch.stack(rows)
    return Curve(list(counts), predictions, predictions == pair.test_labels)


def draw_images(labels: Int[Tensor, " num_train"], count: int, seed: int, draw: int) -> Int[Tensor, " drawn"]:
    """The numbers of so many images of every class, in rising order."""
    order = torch.from_numpy(np.random.default_rng([seed, DRAW, draw]).permutation(len(labels)))
    by_class = order[labels[order].argsort(stable=True)]
    sizes = labels.bincount()
    first = sizes.cumsum(0) - sizes
    rank = torch.arange(len(labels)) - first[labels[by_class]]
    return by_class[rank < count].sort().values


def smallest_class(pair: LabelledPair) -> tuple[str, int]:
    """The name and the number of training images of the class that has fewest."""
    sizes = pair.train_labels.bincount(minlength=len(pair.classes))
    return pair.classes[int(sizes.argmin())], int(sizes.min())


def knn_of(pair: LabelledPair) -> Predict:
    """The weighted vote of n neighbours, but 20 at most: no class can be outvoted for want of images."""

    def predict(drawn_idx: Int[Tensor, " drawn"], count: int) -> Int[Tensor, " num_test"]:
        rows, labels = pair.train[drawn_idx], pair.train_labels[drawn_idx]
        return predict_knn(rows, labels, pair.test, len(pair.classes), min(count, NEIGHBOURS), TEMPERATURE)

    return predict


class LinearOfFew:
    """Logistic regression; `strengths` holds the l2 of each number of labels per class that it was asked for."""

    def __init__(self, pair: LabelledPair, seed: int) -> None:
        mean, std = measure_columns(pair.train)
        self.train, self.test = (pair.train - mean).div_(std), (pair.test - mean).div_(std)
        self.labels, self.num_classes = pair.train_labels, len(pair.classes)
        self.seed, self.strengths = seed, dict[int, float]()

    def __call__(self, drawn_idx: Int[Tensor, " drawn"], count: int) -> Int[Tensor, " num_test"]:
        rows, labels = self.train[drawn_idx], self.labels[drawn_idx]
        if count not in self.strengths:
            self.strengths[count] = self._choose_strength(count) if count > 1 else ONE_LABEL_L2
        with threads_for(rows.numel()):
            fitted, factor = self._narrow(rows)
            moments = measure_moments(fitted)
            probe = fit_probe(fitted, labels, self.num_classes, self.strengths[count], moments, tolerance=SEARCH_TOLERANCE)
            return (probe if factor is None else widen(probe, factor, rows)).predict(self.test)

    def _narrow(self, rows: Float[Tensor, "drawn dim"]) -> tuple[Float[Tensor, "drawn _"], Tensor | None]:
        """The rows in as few coordinates as they need, and the factor where these are not their own."""
        factor = factor_gram(rows) if is_wide(len(rows), rows.shape[1], self.num_classes) else None
        return (rows, None) if factor is None else (factor.float(), factor)

    def _choose_strength(self, count: int) -> float:
        """The l2 that is right most often about held-out labelled images, the strongest of those that tie."""
        trials = self._hold_out(count)
        num_right: list[int] = []
        for l2 in L2_STRENGTHS:
            num_right.append(sum(trial.count_right(l2, self.num_classes) for trial in trials))
            if num_right.index(max(num_right)) < len(num_right) - PATIENCE:
                break
        return L2_STRENGTHS[num_right.index(max(num_right))]

    def _hold_out(self, count: int) -> list[_Trial]:
        """The first draws, a stratified fifth of each held out, until that is ENOUGH_HELD_OUT images."""
        trials: list[_Trial] = []
        while len(trials) < DRAWS and sum(int(trial.held_out_mask.sum()) for trial in trials) < ENOUGH_HELD_OUT:
            drawn_idx = draw_images(self.labels, count, self.seed, len(trials))
            labels = self.labels[drawn_idx]
            shuffled = torch.from_numpy(np.random.default_rng([self.seed, DRAW, len(trials), count]).permutation(len(labels)))
            by_class = shuffled[labels[shuffled].argsort(stable=True)]
            held_out_mask = torch.zeros(len(labels), dtype=torch.bool)
            held_out_mask[by_class[len(trials) % EVERY :: EVERY]] = True
            rows, _ = self._narrow(self.train[drawn_idx])
            trials.append(_Trial(rows, labels, held_out_mask, measure_moments(rows)))
        return trials


@dataclass
class _Trial:
    """A draw of which some images are held out; each probe starts from the one before."""

    rows: Float[Tensor, "drawn dim"]
    labels: Int[Tensor, " drawn"]
    held_out_mask: Bool[Tensor, " drawn"]
    moments: Moments
    probe: Probe | None = None

    def count_right(self, l2: float, num_classes: int) -> int:
        """How many held-out images a probe of this strength, fitted on the others, is right about."""
        fitted, labels = self.rows[~self.held_out_mask], self.labels[~self.held_out_mask]
        self.probe = fit_probe(fitted, labels, num_classes, l2, self.moments, self.probe, SEARCH_TOLERANCE)
        return int((self.probe.predict(self.rows[self.held_out_mask]) == self.labels[self.held_out_mask]).sum())
