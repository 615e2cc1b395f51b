"""What every task returns: scores on the test images with intervals, and what they were measured with.

An accuracy's interval is Wilson's (1927) for a binomial share. That of a mean over test images is a percentile bootstrap
(Efron 1979). Both speak for the choice of test images alone, not for the seed of training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from openjepa.evals.features import Integers

LEVEL = 0.95
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)  # shares below the two ends of an interval
RESAMPLES = 1000

HOLD_OUT, BOOTSTRAP = 11, 15  # what a generator is for: the second number of its seed


class Score(NamedTuple):
    """A value and its 95 % interval; None where a task gives none. In [0, 1] and more is better, but for an Outcome's unit."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a task measured. scores: by name, `main` being the one that tables show.

    unit: of the main score, where it is a number and no share. note: a few words that tables put beside it. words: what came
    out, in a sentence or two, where a share does not say it. details: what else a record holds, plain values by name.
    """

    task: str
    scores: dict[str, Score]
    main: str
    num_train: int
    num_test: int
    num_classes: int
    seed: int
    hyper_parameters: dict[str, float | int]
    warnings: list[str]
    predictions: Integers = field(repr=False)  # (num_test,) predicted class of each test image; none where images have no class
    classes: list[str] = field(repr=False)  # what predictions are indices into
    unit: str = ""
    note: str = ""
    words: str = ""
    details: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def score(self) -> float:
        """The main score's value."""
        return self.scores[self.main].value

    def to_record(self) -> dict[str, Any]:
        """Everything but the predictions as plain values, for a run folder; the main score also under its own name."""
        scores = {
            name: {"value": value, "interval": interval and list(interval)} for name, (value, interval) in self.scores.items()
        }
        same = ("num_train", "num_test", "num_classes", "seed", "hyper_parameters", "warnings")
        optional = {name: getattr(self, name) for name in ("unit", "note", "words") if getattr(self, name)}
        return {
            "task": self.task,
            "main": self.main,
            self.main: self.score,
            "interval": scores[self.main]["interval"],
            "scores": scores,
            **{name: getattr(self, name) for name in same},
            **optional,
            **self.details,
        }


def score_share(num_right: int, num_test: int) -> Score:
    """The share num_right / num_test with its Wilson interval."""
    from scipy.stats import binomtest  # here: importing it takes two seconds, which every command would pay

    assert 0 <= num_right <= num_test and num_test > 0, (num_right, num_test)
    interval = binomtest(num_right, num_test).proportion_ci(LEVEL, method="wilson")
    return Score(num_right / num_test, (float(interval.low), float(interval.high)))


def score_mean(values: Float[np.ndarray, " num_test"], seed: int) -> Score:
    """The mean of one value in [0, 1] a test image, in whatever order; no interval of a single image."""
    assert len(values) > 0
    if len(values) == 1:
        return Score(float(values[0]))
    sorted_values = np.sort(values.astype(np.float64))
    counts = count_resamples(np.random.default_rng([seed, BOOTSTRAP]), len(values))
    low, high = np.quantile(counts @ sorted_values / len(values), TAILS)
    mean = float(sorted_values.mean())
    return Score(mean, (min(float(low), mean), max(float(high), mean)))


def count_resamples(generator: np.random.Generator, count: int) -> Float[np.ndarray, "resamples {count}"]:
    """How often each of so many things is drawn in each bootstrap resample of them."""
    counts = np.empty((RESAMPLES, count), np.float32)
    for row in counts:
        row[:] = np.bincount(generator.integers(count, size=count), minlength=count)
    return counts
