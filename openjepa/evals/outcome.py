"""What every task returns: scores on the test images with intervals, and what they were measured with.

An accuracy's interval is Wilson's (1927) for a binomial share. It speaks for the choice of test images alone, not for the
seed of training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from openjepa.evals.features import Integers

LEVEL = 0.95

HOLD_OUT = 11  # what a generator is for: the second number of its seed


class Score(NamedTuple):
    """A value in [0, 1], more is better, and its 95 % interval over test images; None where a task gives none."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a task measured. scores: by name, `main` being the one that tables show."""

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
        return {
            "task": self.task,
            "main": self.main,
            self.main: self.score,
            "interval": scores[self.main]["interval"],
            "scores": scores,
            **{name: getattr(self, name) for name in same},
        }


def score_share(num_right: int, num_test: int) -> Score:
    """The share num_right / num_test with its Wilson interval."""
    from scipy.stats import binomtest  # here: importing it takes two seconds, which every command would pay

    assert 0 <= num_right <= num_test and num_test > 0, (num_right, num_test)
    interval = binomtest(num_right, num_test).proportion_ci(LEVEL, method="wilson")
    return Score(num_right / num_test, (float(interval.low), float(interval.high)))
