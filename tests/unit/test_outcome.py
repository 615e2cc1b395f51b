"""Wilson's interval against the closed form, statsmodels-free, and by drawing test sets."""

import math

import numpy as np
import pytest

from openjepa.evals.outcome import score_share


@pytest.mark.parametrize(("num_right", "num_test"), [(150, 200), (37, 40), (1900, 2000), (0, 10), (10, 10)])
def test_is_the_set_of_shares_that_the_count_does_not_reject(num_right, num_test):
    """Wilson 1927: the bounds are where the observed share is 1.96 standard errors of the true share away."""
    share, (low, high) = score_share(num_right, num_test)
    assert share == num_right / num_test
    for bound in (low, high):
        if 0 < bound < 1:
            assert abs(share - bound) / math.sqrt(bound * (1 - bound) / num_test) == pytest.approx(1.959964, rel=1e-5)


def test_covers_the_true_share_about_95_times_in_100():
    for true, num_test in ((0.8, 500), (0.99, 200)):
        counts = np.random.default_rng(1).binomial(num_test, true, size=4000)
        intervals = {count: score_share(int(count), num_test).interval for count in set(counts.tolist())}
        covered = np.mean([intervals[count][0] <= true <= intervals[count][1] for count in counts.tolist()])
        assert 0.92 < covered < 0.98


def test_all_wrong_or_all_right_has_a_width():
    assert score_share(10, 10).interval[0] < 0.8 and score_share(0, 10).interval[1] > 0.2
