"""What every protocol returns: accuracy on the test images with a bootstrap interval, and what it was measured with.

Interval: percentile bootstrap over test images (Efron 1979). Drawing n test images with replacement and counting those
predicted right is drawing from a binomial distribution with n trials and the measured accuracy, so no image is drawn. The
interval speaks for the choice of test images alone, not for the seed of training; at accuracy 0 or 1 it has no width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from openjepa.evals.features import Integers

RESAMPLES = 1000
LEVEL = 0.95

# What a generator is for: the second number of its seed.
BOOTSTRAP, HOLD_OUT = 10, 11


@dataclass(frozen=True)
class Result:
    """One protocol's outcome. accuracy and interval are shares in [0, 1]."""

    protocol: str
    accuracy: float
    interval: tuple[float, float]  # 95 %, over test images
    num_train: int
    num_test: int
    num_classes: int
    seed: int
    hyper_parameters: dict[str, float | int]
    warnings: list[str]
    predictions: Integers = field(repr=False)  # (num_test,) predicted class of each test image, in the order of its features
    classes: list[str] = field(repr=False)  # what predictions are indices into

    def to_record(self) -> dict[str, Any]:
        """Everything but the predictions as plain values, for a run folder."""
        record = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in ("predictions", "classes")}
        return record | {"interval": list(self.interval)}


def bootstrap_interval(num_correct: int, num_test: int, seed: int) -> tuple[float, float]:
    """Bounds of the 95 % interval of the accuracy num_correct / num_test, shares in [0, 1]."""
    assert 0 <= num_correct <= num_test and num_test > 0, (num_correct, num_test)
    generator = np.random.default_rng([seed, BOOTSTRAP])
    accuracies = generator.binomial(num_test, num_correct / num_test, size=RESAMPLES) / num_test
    low, high = np.quantile(accuracies, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
