"""k-NN against scikit-learn's, a vote counted by hand, and laws of cosine similarity."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from openjepa.engine import neighbours
from openjepa.evals.features import Features
from openjepa.evals.knn import predict_knn, score_knn

CLASSES = [str(number) for number in range(7)]


def make_features(spec, count, seed, dim=12):
    """Noisy features that know a little of the class."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(len(CLASSES), size=count)
    pooled = generator.standard_normal((count, dim)) + 1.5 * np.eye(dim)[labels]
    return Features(pooled.astype(np.float32), labels, np.arange(count), CLASSES, spec)


@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (1, 0.07), (5, 1.0), (300, 0.2)])
def test_agrees_with_scikit_learn(k, temperature):
    train, test = make_features("train", 300, 0), make_features("test", 500, 1)
    # brute: its distances are 1 - cosine
    reference = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    )
    expected = reference.fit(train.rows.astype(np.float64), train.labels).predict(test.rows.astype(np.float64))
    result = score_knn(train, test, k=k, temperature=temperature)
    assert np.array_equal(result.predictions, expected)
    assert result.score == pytest.approx(accuracy_score(test.labels, expected))
    assert result.hyper_parameters == {"k": k, "temperature": temperature}


def vote(temperature):
    """One training image at cosine 0.9 against two of another class at 0.8."""
    train = torch.tensor([[0.9, math.sqrt(1 - 0.81)], [0.8, 0.6], [0.8, -0.6]])
    return int(predict_knn(train, torch.tensor([1, 0, 0]), torch.tensor([[1.0, 0.0]]), 2, 3, temperature))


def test_the_temperature_decides_between_one_near_and_two_far():
    # exp(0.9 / t) > 2 exp(0.8 / t) exactly when t < 0.1 / ln 2 = 0.1443
    assert vote(0.14) == 1
    assert vote(0.15) == 0


def test_a_low_temperature_does_not_overflow():
    train, test = make_features("train", 300, 0), make_features("test", 200, 1)
    cold, nearest = score_knn(train, test, temperature=1e-6), score_knn(train, test, k=1)
    assert np.array_equal(cold.predictions, nearest.predictions)


def test_parts_of_the_test_set_change_nothing(monkeypatch):
    train, test = make_features("train", 300, 0), make_features("test", 101, 1)
    whole = score_knn(train, test).predictions
    for at_a_time in (1, 300, 301, 7 * 300):
        monkeypatch.setattr(neighbours, "MOST_SIMILARITIES", at_a_time)
        assert np.array_equal(score_knn(train, test).predictions, whole)


def test_lengths_of_features_do_not_matter():
    train, test = make_features("train", 200, 0), make_features("test", 200, 1)
    lengths = np.random.default_rng(2).uniform(0.01, 100, size=(200, 1)).astype(np.float32)
    stretched = Features(train.rows * lengths, train.labels, train.image_idx, CLASSES, "train")
    assert np.array_equal(score_knn(stretched, test).predictions, score_knn(train, test).predictions)


def test_with_fewer_training_images_than_k_all_vote_and_the_record_says_so():
    train, test = make_features("train", 15, 0), make_features("test", 50, 1)
    result = score_knn(train, test)
    assert result.hyper_parameters["k"] == 15
    assert result.warnings == ["all 15 training images vote, fewer than k = 20"]
    assert np.array_equal(result.predictions, score_knn(train, test, k=15).predictions)


@pytest.mark.parametrize("spread", [1e-3, 1e-5])
def test_nearly_parallel_features_have_the_neighbours_that_double_precision_gives(spread):
    """As of an untrained encoder: all cosines are above 1 - 1e-5, and differ where float32 has no digits."""
    direction = np.random.default_rng(5).standard_normal(12)
    features = [make_features("train", 400, 0), make_features("test", 500, 1)]
    train, test = (replace(one, rows=(direction + spread * one.rows).astype(np.float32)) for one in features)
    exact = KNeighborsClassifier(5, metric="cosine", algorithm="brute").fit(train.rows.astype(np.float64), train.labels)
    _, neighbour_idx = exact.kneighbors(test.rows.astype(np.float64))
    votes = np.stack([np.bincount(train.labels[row], minlength=len(CLASSES)) for row in neighbour_idx])
    clear = np.sort(votes, axis=1)[:, -1] > np.sort(votes, axis=1)[:, -2]  # where weights, all nearly 1, decide nothing
    predictions = score_knn(train, test, k=5).predictions
    assert clear.sum() > 300
    assert (predictions == votes.argmax(1))[clear].mean() == 1


@pytest.mark.parametrize(("k", "temperature"), [(0, 0.07), (20, 0.0), (20, -1.0)])
def test_values_without_meaning_are_refused(k, temperature):
    with pytest.raises(ValueError, match=f"not k {k} and temperature {temperature:g}"):
        score_knn(make_features("train", 15, 0), make_features("test", 5, 1), k=k, temperature=temperature)
