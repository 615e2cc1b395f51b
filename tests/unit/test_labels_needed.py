"""Labels needed, on features whose learning curve has a closed form, and the law: more accuracy never needs fewer labels."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openjepa.evals.draws import LinearOfFew
from openjepa.evals.features import Features
from openjepa.evals.labels_needed import find_needed, list_counts, score_labels_needed

NUM_KINDS = 8


def make_kinds(spec, per_class, seed):
    """Two classes of NUM_KINDS kinds of image each, every kind with a feature of its own: a classifier is right about the kinds
    that it has seen and guesses at the others."""
    generator = np.random.default_rng(seed)
    labels = np.repeat([0, 1], per_class)
    kinds = labels * NUM_KINDS + generator.integers(NUM_KINDS, size=2 * per_class)
    rows = np.eye(2 * NUM_KINDS, dtype=np.float32)[kinds] + generator.normal(0, 1e-3, (2 * per_class, 2 * NUM_KINDS))
    return Features(rows.astype(np.float32), labels, np.arange(2 * per_class), ["ant", "bee"], spec)


@pytest.fixture(autouse=True)
def one_strength(monkeypatch):
    """Any would do, and to choose one takes most of the time."""
    monkeypatch.setattr(LinearOfFew, "_choose_strength", lambda *_: 1e-2)


def test_a_known_learning_curve():
    """Of n labels a kind is unseen with probability (1 - 1/K)^n, and half of the unseen are right."""
    accuracy = 0.85
    expected = math.log(2 * (1 - accuracy)) / math.log(1 - 1 / NUM_KINDS)
    found = score_labels_needed(make_kinds("train", 40, 0), make_kinds("test", 300, 1), accuracy=accuracy)
    value, (low, high) = found.scores["labels_per_class"]
    assert low <= math.ceil(expected) <= high
    assert value == pytest.approx(expected, rel=0.35)
    assert found.details["is_reached"]


def test_more_than_you_have():
    train, test = make_kinds("train", 3, 0), make_kinds("test", 200, 1)
    found = score_labels_needed(train, test, accuracy=0.99)
    assert not found.details["is_reached"] and not found.details["end_is_reached"]
    assert found.scores["labels_per_class"].value == 3
    assert "more labels than you have" in found.words


@pytest.mark.parametrize("accuracy", [0.0, -0.1, 1.01, math.nan])
def test_an_accuracy_that_is_no_share_is_refused(accuracy):
    train = make_kinds("train", 3, 0)
    with pytest.raises(ValueError, match="--accuracy must be above 0"):
        score_labels_needed(train, train, accuracy=accuracy)


shares = st.floats(0, 1)
curves = st.lists(shares, min_size=1, max_size=9)


@given(curves, shares, shares)
def test_more_accuracy_never_needs_fewer_labels(accuracies, one, other):
    counts = list_counts(600)[: len(accuracies)]
    lower, higher = (find_needed(counts, np.array(accuracies), target) for target in sorted((one, other)))
    assert counts[0] <= lower <= higher
    assert higher == math.inf or higher <= counts[-1] * (1 + 1e-9)


@given(st.floats(0.05, 0.3), st.floats(0.01, 0.12), st.floats(0.06, 0.9))
def test_a_curve_straight_over_log_labels_is_inverted_exactly(start, slope, target):
    counts = list_counts(1000)
    accuracies = start + slope * np.log(counts)
    needed = find_needed(counts, accuracies, target)
    if target <= start:
        assert needed == 1
    elif target > accuracies[-1]:
        assert needed == math.inf
    else:
        assert needed == pytest.approx(math.exp((target - start) / slope), rel=1e-6)


def test_counts():
    assert list_counts(1) == [1]
    assert list_counts(10) == [1, 2, 5, 10]
    assert list_counts(73) == [1, 2, 5, 10, 20, 50, 73]
