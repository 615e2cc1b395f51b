"""Draws of few labels are balanced, nested and seeded; their scores against scikit-learn and a closed form."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression

from openjepa.evals import draws
from openjepa.evals.draws import LinearOfFew, draw_images, knn_of
from openjepa.evals.labels import pair_up
from openjepa.evals.lowshot import score_draws, score_lowshot
from tests.contract.test_tasks import make_clusters


def test_draws_are_balanced_nested_and_seeded():
    labels = torch.from_numpy(np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [20, 7, 50])))
    few, more = (draw_images(labels, count, 3, 1) for count in (2, 7))
    assert labels[few].bincount().tolist() == [2, 2, 2]
    assert labels[more].bincount().tolist() == [7, 7, 7]
    assert set(few.tolist()) < set(more.tolist())
    assert torch.equal(draw_images(labels, 2, 3, 1), few)
    assert not torch.equal(draw_images(labels, 2, 3, 2), few)
    assert not torch.equal(draw_images(labels, 2, 4, 1), few)


def test_a_draw_is_classified_as_scikit_learn_does():
    pair = pair_up(make_clusters("train", spread=0.5), make_clusters("test", 40, spread=0.5, seed=1))
    drawn_idx = draw_images(pair.train_labels, 10, 0, 0)
    linear = LinearOfFew(pair, 0)
    linear.strengths[10] = 1e-2
    std, mean = pair.train.numpy().std(0), pair.train.numpy().mean(0)
    train, test = ((rows.numpy() - mean) / std for rows in (pair.train[drawn_idx], pair.test))
    other = LogisticRegression(C=1 / (1e-2 * len(drawn_idx)), max_iter=5000).fit(train, pair.train_labels[drawn_idx].numpy())
    assert (linear(drawn_idx, 10).numpy() == other.predict(test)).mean() > 0.99


def test_one_label_votes_as_the_nearest_image():
    pair = pair_up(make_clusters("train", spread=0.5), make_clusters("test", 40, spread=0.5, seed=1))
    drawn_idx = draw_images(pair.train_labels, 1, 0, 0)
    cosines = torch.nn.functional.cosine_similarity(pair.test[:, None], pair.train[drawn_idx][None], dim=2)
    assert torch.equal(knn_of(pair)(drawn_idx, 1), pair.train_labels[drawn_idx][cosines.argmax(1)])


def test_only_counts_that_the_smallest_class_has(monkeypatch):
    monkeypatch.setattr(draws, "DRAWS", 2)
    train = make_clusters("train", 12)
    kept = np.r_[0:7, 12:48]  # seven ants
    train.__dict__.update(rows=train.rows[kept], labels=train.labels[kept], image_idx=train.image_idx[kept])
    found = score_lowshot(train, make_clusters("test", 5, seed=1))
    assert set(found.scores) == {"linear_1", "linear_5", "knn_1", "knn_5"}
    assert found.main == "linear_5"
    assert "ant, has 7" in found.words
    assert [point["labels_per_class"] for point in found.details["curves"]["knn"]] == [1, 5]


def test_the_interval_is_wide_enough_for_draws_and_for_test_images():
    accuracies = np.array([0.4, 0.5, 0.6, 0.55, 0.45])
    mean, (low, high) = score_draws(accuracies, 10**8)  # so many that draws alone count
    expected = stats.t.interval(0.95, 4, accuracies.mean(), stats.sem(accuracies))
    assert (mean, low, high) == pytest.approx((0.5, *expected), abs=1e-3)
    same = score_draws(np.full(5, 0.5), 100)  # as if nothing depended on the draw
    wilson = stats.binomtest(50, 100).proportion_ci(method="wilson")
    assert same.interval == pytest.approx((wilson.low, wilson.high))
    both = score_draws(accuracies, 100)
    assert both.interval[0] < min(same.interval[0], low) and both.interval[1] > max(same.interval[1], high)
