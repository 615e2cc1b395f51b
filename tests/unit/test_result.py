"""The bootstrap interval against resampling images one by one, and against the normal approximation."""

import numpy as np
import pytest

from openjepa.evals.outcome import bootstrap_interval


@pytest.mark.parametrize(("num_correct", "num_test"), [(150, 200), (37, 40), (1900, 2000)])
def test_agrees_with_drawing_images(num_correct, num_test):
    correct = np.arange(num_test) < num_correct
    drawn = np.random.default_rng(0).integers(num_test, size=(20_000, num_test))
    expected = np.quantile(correct[drawn].mean(1), [0.025, 0.975])
    # 1,000 resamples place a 2.5 % quantile to within about a tenth of the interval
    assert np.array(bootstrap_interval(num_correct, num_test, 1)) == pytest.approx(
        expected, abs=0.1 * np.ptp(expected) + 1 / num_test
    )


def test_covers_the_true_accuracy_about_95_times_in_100():
    true, num_test = 0.8, 500
    counts = np.random.default_rng(1).binomial(num_test, true, size=1000)
    intervals = [bootstrap_interval(int(count), num_test, seed) for seed, count in enumerate(counts)]
    covered = np.mean([low <= true <= high for low, high in intervals])
    assert 0.92 < covered < 0.975


def test_width_is_that_of_the_normal_approximation():
    low, high = bootstrap_interval(8000, 10_000, 0)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 10_000), rel=0.1)


def test_is_a_function_of_the_seed():
    assert bootstrap_interval(700, 1000, 3) == bootstrap_interval(700, 1000, 3)
    assert len({bootstrap_interval(700, 1000, seed) for seed in range(20)}) > 1


@pytest.mark.parametrize("num_correct", [0, 10])
def test_all_wrong_or_all_right_has_no_width(num_correct):
    assert bootstrap_interval(num_correct, 10, 0) == (num_correct / 10, num_correct / 10)
