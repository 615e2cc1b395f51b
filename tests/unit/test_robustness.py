"""Robustness on images whose corruption is known: what is encoded, how it is counted, and that clean is the usual k-NN."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openjepa.data.sources import ArraySource
from openjepa.data.views import evaluation_view
from openjepa.evals import TASKS, robustness
from openjepa.evals.features import FeatureStore, RawPixels
from openjepa.evals.knn import score_knn
from openjepa.evals.outcome import score_mean
from openjepa.evals.robustness import CorruptedViews, load_views
from openjepa.evals.task import TaskSettings


def make_bars(spec, count, seed):
    """Bars that lie or stand, on noise: blur and noise hide them, brightness does not change which is nearest by much."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 40, size=(count, 16, 16))
    labels = np.arange(count) % 2
    for image, label in zip(images, labels, strict=True):
        place = generator.integers(3, 12)
        (image if label else image.T)[place : place + 2] = 200
    return ArraySource(spec, 1, images.astype(np.uint8), labels, ["lying", "standing"])


@pytest.fixture
def few_images(monkeypatch):
    monkeypatch.setattr(robustness, "MOST_IMAGES", 10)


def measure(seed=0):
    store = FeatureStore(RawPixels((16, 16), 1), "pixels")
    train, test = make_bars("train", 60, 0), make_bars("test", 20, 1)
    return TASKS["robustness"].evaluate(store, train, test, TaskSettings(), seed), store, train, test


def test_scores_are_means_of_what_was_counted(few_images):
    found, store, train, test = measure()
    table = found.to_record()["by_severity"]
    assert found.num_test == 10
    for name, row in table.items():
        assert found.scores[name].value == pytest.approx(np.mean(row))
    assert found.score == pytest.approx(np.mean(list(table.values())))
    assert found.scores["clean"].value >= found.score
    low, high = found.scores["corrupted"].interval
    assert 0 <= low <= found.score <= high <= 1
    assert measure()[0].to_record() == found.to_record()
    assert measure(1)[0].to_record() != found.to_record()
    everything = score_knn(store.extract(train), store.extract(test))
    idx, _ = load_views(test, (16, 16))
    assert np.array_equal(found.predictions, everything.predictions[idx[1]])  # the clean ones


def test_a_view_is_not_resized_again():
    test = make_bars("test", 5, 0)
    (views, image_idx), _ = load_views(test, (12, 10))
    seen = CorruptedViews(test, views, image_idx, 0)
    for index, view in enumerate(views):
        assert np.array_equal(evaluation_view(seen.open(index), (12, 10)), view)
        assert np.array_equal(evaluation_view(test.open(index), (12, 10)), view)


@settings(max_examples=20)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=40), st.integers(0, 3))
def test_the_interval_of_a_mean_holds_it_and_not_the_order(values, seed):
    score = score_mean(np.array(values), seed)
    low, high = score.interval
    assert 0 <= low <= score.value <= high <= 1 + 1e-6
    assert score_mean(np.array(values[::-1]), seed) == score


def test_the_interval_of_a_mean_is_that_of_the_central_limit():
    values = np.random.default_rng(0).beta(2, 5, size=2000)
    score = score_mean(values, 0)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert score.interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)
