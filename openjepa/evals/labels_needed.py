"""How many labels per class a given accuracy needs, on frozen features, with an interval.

Logistic regressions of 1, 2, 5, 10, 20, 50 ... labels per class, as many as the smallest class has, of several balanced draws
each (openjepa/evals/draws.py), give a learning curve. Its mean over draws is made monotone by isotonic regression and read
between counts along a straight line over log(labels); the first crossing is the answer, rounded up. Nothing is extrapolated:
where the curve does not reach the accuracy, the answer is "more than you have". The accuracy is given, or 95 % of what a linear
probe of all labels (openjepa/evals/linear.py) has.

The interval is a percentile bootstrap over draws and, independently, over test images (Owen 2007). Where the default is asked
for, the probe of all labels is measured on the same resampled test images. More accuracy never needs fewer labels, which
tests/unit/test_labels_needed.py pins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count as count_up

import numpy as np
from jaxtyping import Bool, Float

from openjepa.evals.draws import Curve, LinearOfFew, measure_curve, smallest_class
from openjepa.evals.features import Features
from openjepa.evals.labels import pair_up
from openjepa.evals.linear import score_linear
from openjepa.evals.lowshot import list_points
from openjepa.evals.outcome import BOOTSTRAP, TAILS, Outcome, Score, count_resamples

SHARE_OF_ALL = 0.95  # of the accuracy with all labels, asked for where the user asks for nothing
UNIT = "labels per class"


def score_labels_needed(train: Features, test: Features, seed: int = 0, *, accuracy: float | None = None) -> Outcome:
    """Labels per class that an accuracy in (0, 1] needs. The seed makes draws and resamples.

    Where the curve does not reach it the score is the number of labels that there are, and the record's is_reached is false;
    likewise end_is_reached and the upper end of the interval. Raises ValueError as labels.pair_up does, or for an accuracy
    outside (0, 1].
    """
    if accuracy is not None and not 0 < accuracy <= 1:
        raise ValueError(f"--accuracy must be above 0 and at most 1, as in 0.9 for 90 %, not {accuracy:g}")
    pair = pair_up(train, test)
    most = smallest_class(pair)[1]
    counts = list_counts(most)
    linear = LinearOfFew(pair, seed)
    curve = measure_curve(pair, counts, linear, seed)
    everything = score_linear(train, test, seed)
    is_right = everything.predictions == pair.test_labels.numpy()
    target = everything.score * SHARE_OF_ALL if accuracy is None else accuracy
    needed = find_needed(counts, curve.accuracies.mean(1), target)
    resampled = resample_needed(curve, is_right, accuracy, seed)
    low, high = (float(value) for value in np.quantile(resampled, TAILS, method="inverted_cdf"))
    low, high = min(low, needed), max(high, needed)
    value, start, end = (float(most if math.isinf(labels) else math.ceil(labels - 1e-9)) for labels in (needed, low, high))
    is_reached, end_is_reached = math.isfinite(needed), math.isfinite(high)
    asked = f"{target:.1%}" + (
        "" if accuracy is not None else f", {SHARE_OF_ALL:.0%} of the {everything.score:.1%} of all labels"
    )
    range_ = " to ".join(f"{'more than ' if math.isinf(bound) else ''}{end_:,.0f}" for bound, end_ in ((low, start), (high, end)))
    range_ = f"more than {most:,}" if math.isinf(low) else range_
    best = f"the {most:,} labels per class that you have give {curve.accuracies[-1].mean():.1%}"
    answer = f"about {value:,.0f} labels per class" if is_reached else f"more labels than you have: {best}"
    return Outcome(
        task="labels-needed",
        scores={"labels_per_class": Score(value, (start, end)), "accuracy_of_all_labels": everything.scores["accuracy"]},
        main="labels_per_class",
        num_train=len(pair.train_labels),
        num_test=len(pair.test_labels),
        num_classes=len(pair.classes),
        seed=seed,
        hyper_parameters={"draws": curve.is_right.shape[1]} | {f"l2_{count}": l2 for count, l2 in linear.strengths.items()},
        warnings=everything.warnings,
        predictions=everything.predictions,
        classes=pair.classes,
        unit=UNIT,
        note=f"for {target:.1%}",
        words=f"An accuracy of {asked} needs {answer} (95 % interval {range_}).",
        details={
            "target": target,
            "is_reached": is_reached,
            "end_is_reached": end_is_reached,
            "curves": {"linear": list_points(curve, len(pair.test_labels))},
        },
    )


def list_counts(most: int) -> list[int]:
    """1, 2, 5, 10, 20, 50 ... below `most`, and `most` itself."""
    steps = (digit * 10**power for power in count_up() for digit in (1, 2, 5))
    counts = []
    while (count := next(steps)) < most:
        counts.append(count)
    return [*counts, most]


def find_needed(counts: Sequence[int], accuracies: Float[np.ndarray, " counts"], target: float) -> float:
    """Where the monotone curve first reaches the target; infinity where it does not, counts[0] where it starts there."""
    from sklearn.isotonic import isotonic_regression  # here: importing it takes seconds, which every command would pay

    curve = isotonic_regression(accuracies)
    if curve[-1] < target:
        return math.inf
    place = int(np.argmax(curve >= target))
    if place == 0:
        return float(counts[0])
    share = (target - curve[place - 1]) / (curve[place] - curve[place - 1])
    return float(counts[place - 1] * (counts[place] / counts[place - 1]) ** share)


def resample_needed(
    curve: Curve, is_right: Bool[np.ndarray, " num_test"], accuracy: float | None, seed: int
) -> Float[np.ndarray, " resamples"]:
    """The labels needed in each bootstrap resample. is_right: of each test image, by the probe of all labels."""
    generator = np.random.default_rng([seed, BOOTSTRAP])
    _, num_draws, num_test = curve.is_right.shape
    test_shares = count_resamples(generator, num_test) / num_test
    draw_shares = count_resamples(generator, num_draws) / num_draws
    by_draw = np.stack([rows.float().numpy() @ test_shares.T for rows in curve.is_right])  # (counts, draws, resamples)
    accuracies = np.einsum("cdr,rd->rc", by_draw, draw_shares)
    all_labels = test_shares @ is_right.astype(np.float32)
    targets = SHARE_OF_ALL * all_labels if accuracy is None else np.full(len(all_labels), accuracy)
    return np.array([find_needed(curve.counts, row, float(target)) for row, target in zip(accuracies, targets, strict=True)])
