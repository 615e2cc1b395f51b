"""The linear probe against scikit-learn's logistic regression and the conditions of an optimum; how its strength is chosen."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.preprocessing import StandardScaler
from torch.utils._python_dispatch import TorchDispatchMode

from openjepa.engine import threads
from openjepa.evals import linear
from openjepa.evals.features import Features
from openjepa.evals.linear import (
    factor_gram,
    fit_probe,
    hold_out,
    measure_columns,
    measure_moments,
    score_linear,
    try_strengths,
    widen,
)

NUM_CLASSES = 5


def make_features(spec, count, seed, dim=20, signal=1.0):
    """Correlated features, as an encoder's are, that know a little of the class."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(NUM_CLASSES, size=count)
    mixing = np.random.default_rng(99).standard_normal((dim, dim)) * np.logspace(0, -3, dim)
    pooled = (generator.standard_normal((count, dim)) + signal * np.eye(dim)[labels]) @ mixing + 3
    return Features(pooled.astype(np.float32), labels, np.arange(count), [str(number) for number in range(NUM_CLASSES)], spec)


def standardise(features):
    rows = torch.from_numpy(features.rows)
    mean, std = measure_columns(rows)
    return (rows - mean) / std, torch.from_numpy(features.labels)


@pytest.mark.parametrize("l2", [1e-1, 1e-3, 1e-5])
def test_agrees_with_scikit_learn(l2):
    rows, labels = standardise(make_features("train", 400, 0))
    probe = fit_probe(rows, labels, NUM_CLASSES, l2, measure_moments(rows))
    # C weighs the sum of losses against |W|^2 / 2, l2 weighs |W|^2 / 2 against their mean.
    reference = LogisticRegression(C=1 / (len(rows) * l2), max_iter=20_000, tol=1e-8).fit(rows.double().numpy(), labels.numpy())
    shares = torch.softmax(rows @ probe.weights.T + probe.bias, 1).numpy()
    assert probe.converged
    assert np.abs(shares - reference.predict_proba(rows.double().numpy())).max() < 0.01


def reference_of(rows, labels, l2):
    """scikit-learn's minimum of the same objective."""
    return LogisticRegression(C=1 / (len(rows) * l2), max_iter=20_000, tol=1e-8).fit(rows.double().numpy(), labels.numpy())


def objective(rows, labels, weights, bias, l2):
    """Mean cross-entropy + l2 / 2 * |weights|^2 in double precision."""
    scores = rows.double() @ torch.as_tensor(weights).double().T + torch.as_tensor(bias).double()
    return float(torch.nn.functional.cross_entropy(scores, labels) + l2 / 2 * torch.as_tensor(weights).double().square().sum())


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize(("count", "dim"), [(400, 20), (400, 150), (90, 300)])
def test_the_objective_is_as_low_as_scikit_learn_gets_it(count, dim, l2):
    rows, labels = standardise(make_features("train", count, 0, dim=dim))
    found = fit_probe(rows, labels, NUM_CLASSES, l2, measure_moments(rows))
    lowest = reference_of(rows, labels, l2)
    least = objective(rows, labels, lowest.coef_, lowest.intercept_, l2)
    assert objective(rows, labels, found.weights, found.bias, l2) < 1.005 * least


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4, 1e-6])
def test_the_span_of_few_rows_holds_the_minimum_of_wide_features(l2, copies):
    rows, labels = standardise(make_features("train", 90, 0, dim=700))
    rows, labels = rows.repeat(copies, 1), labels.repeat(copies)  # a row twice makes the Gram matrix singular once more
    factor = factor_gram(rows)
    assert (factor @ factor.T - rows.double() @ rows.double().T).abs().max() < 1e-9 * rows.square().sum(1).max()
    fitted = factor.float()
    found = widen(fit_probe(fitted, labels, NUM_CLASSES, l2, measure_moments(fitted)), factor, rows)
    lowest = reference_of(rows, labels, l2)
    least = objective(rows, labels, lowest.coef_, lowest.intercept_, l2)
    assert objective(rows, labels, found.weights, found.bias, l2) < 1.005 * least
    others = standardise(make_features("test", 300, 1, dim=700))[0].double().numpy()
    assert (found.predict(torch.from_numpy(others).float()).numpy() == lowest.predict(others)).mean() > 0.95


def test_wide_features_are_probed_alike_with_and_without_reduction(monkeypatch):
    train, test = make_features("train", 120, 0, dim=600), make_features("test", 300, 1, dim=600)
    results = []
    for reduces in (True, False):
        monkeypatch.setattr(linear, "is_wide", lambda *_, reduces=reduces: reduces)
        results.append(score_linear(train, test))
    assert results[0].hyper_parameters["l2"] == results[1].hyper_parameters["l2"]
    assert (results[0].predictions == results[1].predictions).mean() > 0.98


class LargestTensor(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that is computed meanwhile."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, torch.Tensor):
                self.most = max(self.most, one.numel())
        return out


@pytest.mark.parametrize(("count", "dim"), [(60, 1000), (1100, 1400)])
def test_wide_features_need_no_more_room_than_they_take(count, dim):
    """Of 64 px colour images, D = 12,288, a D x D matrix takes 0.6 GB and its eigenvectors minutes."""
    train, test = make_features("train", count, 0, dim=dim), make_features("test", 10, 1, dim=dim)
    with LargestTensor() as seen:
        score_linear(train, test)
    assert seen.most <= count * dim


def make_hidden(spec, count, seed, scale=1e-3):
    """Nearly parallel features, as an untrained encoder's: what tells the classes apart is a thousandth of what they share."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(NUM_CLASSES, size=count)
    shared = generator.standard_normal((count, 1)) * np.ones(10)
    own = np.eye(10)[labels] + 0.3 * generator.standard_normal((count, 10))
    pooled = (shared + scale * own).astype(np.float32)
    return Features(pooled, labels, np.arange(count), [str(number) for number in range(NUM_CLASSES)], spec)


@pytest.mark.parametrize("scale", [1e-1, 1e-2, 1e-3])
def test_the_search_goes_on_while_it_knows_no_more_than_the_commonest_class(scale):
    result = score_linear(make_hidden("train", 1000, 0, scale), make_hidden("test", 500, 1, scale))
    assert result.score > 0.9


def test_the_commonest_class_and_a_little_luck_are_chance():
    labels = torch.tensor([0] * 60 + [1] * 40)
    held_out_labels = torch.tensor([0] * 64 + [1] * 36)
    assert linear.bound_chance(labels, held_out_labels) == pytest.approx(0.64 + 2 * 0.48 / 10)


@pytest.mark.parametrize("l2", [1e-1, 1e-4])
def test_the_gradient_vanishes_at_the_solution(l2):
    rows, labels = standardise(make_features("train", 300, 0))
    probe = fit_probe(rows, labels, NUM_CLASSES, l2, measure_moments(rows))
    rows, weights = rows.double(), probe.weights.double()
    errors = torch.softmax(rows @ weights.T + probe.bias.double(), 1) - torch.eye(NUM_CLASSES, dtype=torch.float64)[labels]
    assert errors.mean(0).abs().max() < 1e-3
    assert (errors.T @ rows / len(rows) + l2 * weights).abs().max() < 1e-3
    assert errors.abs().mean() > 0.01  # not a perfect fit, where the gradient would vanish anyway


def test_the_start_changes_only_the_time():
    rows, labels = standardise(make_features("train", 300, 0))
    moments = measure_moments(rows)
    cold = fit_probe(rows, labels, NUM_CLASSES, 1e-2, moments)
    warm = fit_probe(rows, labels, NUM_CLASSES, 1e-2, moments, start=fit_probe(rows, labels, NUM_CLASSES, 1.0, moments))
    assert (warm.weights - cold.weights).abs().max() < 0.02 * cold.weights.abs().max()


def test_accuracy_is_that_of_scikit_learn_at_the_chosen_strength():
    train, test = make_features("train", 500, 0), make_features("test", 1000, 1)
    result = score_linear(train, test)
    scaler = StandardScaler().fit(train.rows.astype(np.float64))
    reference = LogisticRegression(C=1 / (500 * result.hyper_parameters["l2"]), max_iter=20_000, tol=1e-8)
    reference.fit(scaler.transform(train.rows.astype(np.float64)), train.labels)
    expected = reference.predict(scaler.transform(test.rows.astype(np.float64)))
    assert (result.predictions == expected).mean() > 0.99
    assert result.score == pytest.approx(accuracy_score(test.labels, expected), abs=0.01)
    assert 0.4 < result.score < 0.95


def test_test_images_have_no_say_in_what_is_chosen():
    train = make_features("train", 300, 0)
    tests = [make_features("test", 200, 1), make_features("test", 100, 2, signal=0.0)]
    first, second = (score_linear(train, test) for test in tests)
    assert first.hyper_parameters == second.hyper_parameters
    assert np.array_equal(
        score_linear(train, replace(tests[0], labels=tests[0].labels[::-1].copy())).predictions, first.predictions
    )


def test_held_out_images_have_no_say_in_what_is_fitted():
    rows, labels = standardise(make_features("train", 300, 0))
    held_out_mask = hold_out(labels, 0)
    changed = torch.where(held_out_mask, (labels + 1) % NUM_CLASSES, labels)
    fits = [try_strengths(rows, either, NUM_CLASSES, held_out_mask, measure_moments(rows)) for either in (labels, changed)]
    for first, second in zip(*fits, strict=False):  # the search may end elsewhere
        assert torch.equal(first.probe.weights, second.probe.weights)
    assert fits[0][0].accuracy != fits[1][0].accuracy


def test_features_of_noise_get_a_stronger_penalty_than_features_of_signal():
    noisy = score_linear(make_features("a", 200, 0, dim=150, signal=0.7), make_features("b", 200, 1, dim=150, signal=0.7))
    clear = score_linear(make_features("a", 2000, 0, signal=2.0), make_features("b", 200, 1, signal=2.0))
    assert noisy.hyper_parameters["l2"] > clear.hyper_parameters["l2"]


def test_shift_and_scale_of_features_do_not_matter():
    train, test = make_features("train", 300, 0), make_features("test", 300, 1)
    scale = np.logspace(-2, 3, 20).astype(np.float32)
    moved = [replace(features, rows=features.rows * scale - 5 * scale) for features in (train, test)]
    assert (score_linear(*moved).predictions == score_linear(train, test).predictions).mean() > 0.99


@given(st.lists(st.integers(1, 60), min_size=2, max_size=6), st.integers(0, 2**32 - 1))
def test_a_tenth_of_every_class_is_held_out(counts, seed):
    labels = torch.from_numpy(np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts)))
    held_out_mask = hold_out(labels, seed)
    assert 1 <= held_out_mask.sum() < len(labels)
    assert abs(int(held_out_mask.sum()) - len(labels) / 10) <= 1
    for label, count in enumerate(counts):
        assert abs(int(held_out_mask[labels == label].sum()) - count / 10) < 1
    assert torch.equal(held_out_mask, hold_out(labels, seed))


def test_every_image_is_held_out_about_equally_often():
    labels = torch.arange(50) % 5
    rates = torch.stack([hold_out(labels, seed) for seed in range(2000)]).double().mean(0)
    assert (rates - 0.1).abs().max() < 5 * (0.1 * 0.9 / 2000) ** 0.5


def test_columns_that_do_not_vary_are_left_alone():
    rows = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    rows[:, 1] = 0.1
    mean, std = measure_columns(rows)
    assert std[1] == 1
    assert torch.allclose(std[[0, 2]], rows[:, [0, 2]].std(0, correction=0))
    assert torch.allclose(mean, rows.mean(0), atol=1e-6)


@pytest.mark.parametrize(("grid", "warned"), [((1e-1, 1e-2, 1e-3, 1e-4, 1e-5), False), ((10.0, 1.0), True), ((1e-4, 1e-5), True)])
def test_a_strength_at_the_edge_of_the_grid_is_mentioned(monkeypatch, grid, warned):
    monkeypatch.setattr(linear, "L2_STRENGTHS", grid)
    result = score_linear(make_features("train", 300, 0, dim=40), make_features("test", 100, 1, dim=40))
    assert any("edge of the grid" in line for line in result.warnings) == warned


def test_a_probe_that_did_not_converge_is_mentioned(monkeypatch):
    monkeypatch.setattr(linear, "MAX_ITERATIONS", 2)
    result = score_linear(make_features("train", 300, 0), make_features("test", 100, 1))
    assert any("not converged after 2 iterations" in line for line in result.warnings)


@pytest.mark.parametrize(("limit", "expected"), [(300 * 20, 1), (300 * 20 - 1, 3)])
def test_small_problems_take_one_thread_and_give_the_others_back(monkeypatch, limit, expected):
    seen = []
    solve = linear.fit_probe
    monkeypatch.setattr(threads, "ONE_THREAD_NUMBERS", limit)
    monkeypatch.setattr(
        linear, "fit_probe", lambda *args, **kwargs: seen.append(torch.get_num_threads()) or solve(*args, **kwargs)
    )
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        score_linear(make_features("train", 300, 0), make_features("test", 100, 1))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {expected}
