"""The verdict as laws over rows, the measurements against numpy and scipy, and what a replay says."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import eigh

from benchmarks import health_bed
from openjepa import health
from openjepa.masks import Masks
from openjepa.methods.ijepa import explain_variance, variance_within_positions
from openjepa.records import RunFolder, write_json
from openjepa.replay import replay_verdicts

LABELS = {"too early", "not learning yet", "healthy", "collapsing", "collapsed", "diverging"}
RANKS = st.lists(st.floats(1.0, 200.0), min_size=3, max_size=12)


def make_rows(ranks, **last):
    rows = [
        {"step": 10 * i, "effective_rank_pooled": rank, "loss": 1.0, "explained_variance": 0.5, "image_cosine": 0.3,
         "feature_variance": 0.1, "grad_norm": 1.0, "skipped_in_a_row": 0}
        for i, rank in enumerate(ranks)
    ]  # fmt: skip
    rows[-1] |= last
    return rows


@given(RANKS)
def test_every_series_has_a_known_label_a_reason_and_advice(ranks):
    verdict = health.judge(make_rows(ranks))
    assert verdict.label in LABELS
    assert verdict.reason.endswith(".") and verdict.advice.endswith((".", "?"))
    assert verdict.step == 10 * (len(ranks) - 1)


@given(RANKS)
def test_features_on_a_line_are_never_healthy(ranks):
    assert health.judge(make_rows([*ranks, 1.0])).label in ("collapsed", "collapsing")
    assert health.judge(make_rows([*ranks, 1.0, 1.0])).label == "collapsed"


@given(RANKS)
def test_features_no_richer_than_the_untrained_ones_are_never_healthy_and_never_collapsed(ranks):
    first = min(max(ranks[0], 1.1), health.MOST_UNTRAINED_RANK)
    assert health.judge(make_rows([first, *ranks[1:], first])).label in ("not learning yet", "collapsing")


@given(RANKS, st.floats(0, 100))
def test_more_rank_never_makes_the_verdict_worse(ranks, more):
    order = ["collapsed", "collapsing", "not learning yet", "healthy"]
    low, high = (health.judge(make_rows([*ranks[:-1], rank])).label for rank in (ranks[-1], ranks[-1] + more))
    assert order.index(low) <= order.index(high)


@given(RANKS)
def test_a_rising_rank_is_never_called_collapsing(ranks):
    assert health.judge(make_rows(sorted(ranks))).label != "collapsing"


@pytest.mark.parametrize(
    ("ranks", "label"),
    [
        ([1.7], "too early"),
        ([1.7, 9.0], "too early"),
        ([1.7, 4.0, 9.0], "healthy"),
        ([1.7, 1.7, 1.8], "not learning yet"),
        ([1.7, 1.2, 1.1], "collapsed"),
        ([1.7, 1.5, 1.3], "collapsing"),  # as the seed's recipe began, which learned: once is not enough
        ([1.7, 12.0, 4.9], "collapsing"),
        ([1.7, 12.0, 4.0, 4.9], "healthy"),  # low, but no longer falling
        ([60.0, 61.0, 60.0], "healthy"),  # started from trained weights
        ([1.0001, 1.0002, 1.0001], "collapsed"),
    ],
)
def test_labels(ranks, label):
    assert health.judge(make_rows(ranks)).label == label


def test_images_that_look_alike_from_the_start_are_the_images_fault():
    assert "Look at the images" in health.judge(make_rows([1.0, 1.0, 1.0])).advice
    assert "Look at the images" not in health.judge(make_rows([1.7, 1.1, 1.1])).advice


@pytest.mark.parametrize("last", [{"skipped_in_a_row": 2}, {"loss": 11.0}, {"loss": math.nan}, {"grad_norm": math.inf}])
def test_diverging_wins_over_all_else(last):
    assert health.judge(make_rows([1.7, 5.0, 9.0], **last)).label == "diverging"
    assert health.judge(make_rows([1.7], **({} if last == {"loss": 11.0} else last) | {"loss": math.nan})).label == "diverging"
    assert health.judge(make_rows([1.7, 5.0, 9.0], loss=9.0)).label == "healthy"


def test_a_predictor_that_lost_what_it_knew_is_diverging_however_rich_the_features():
    """As three runs at a rate too high for their width: ranks of 50 and more, and 20-NN accuracy no better than untrained."""
    explained = (-3.3, 0.56, 0.42, 0.25, 0.1)
    rows = make_rows([1.8, 38.6, 55.2, 56.2, 50.9])
    rows = [row | {"explained_variance": value} for row, value in zip(rows, explained, strict=True)]
    assert [verdict.label for verdict in health.replay(rows)] == ["too early", "too early", "healthy", "diverging", "diverging"]
    assert "optim.lr" in health.judge(rows).advice


@given(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=10))
def test_a_predictor_that_keeps_two_thirds_of_its_best_is_not_diverging(explained):
    best, kept = 0.0, []
    for value in explained:
        kept.append(max(value, 2 / 3 * best))
        best = max(best, kept[-1])
    rows = make_rows([1.7, *[9.0] * (len(kept) - 1)])
    rows = [row | {"explained_variance": value} for row, value in zip(rows, kept, strict=True)]
    assert {verdict.label for verdict in health.replay(rows)} <= {"too early", "healthy"}


def test_advice_names_no_momentum_where_there_is_no_target_encoder():
    assert "momentum" not in health.judge(make_rows([1.7, 1.1, 1.1])).advice
    assert "momentum.start" in health.judge(make_rows([1.7, 1.1, 1.1], context_target_drift=0.1)).advice


def test_the_healthy_rank_is_where_the_verdict_turns():
    assert health.find_healthy_rank(50.0) == health.find_healthy_rank(4.0)
    for first in (1.0, 1.7, 3.0, 4.0):
        limit = health.find_healthy_rank(first)
        below, above = (health.judge(make_rows([first, first, limit + d])).label for d in (-1e-3, 1e-3))
        assert below != "healthy" and above == "healthy"


def test_effective_rank_of_known_spectra():
    axes = torch.linalg.qr(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)))[0]
    assert health.effective_rank(axes) == pytest.approx(8, rel=1e-4)
    two = axes * torch.tensor([3.0, 1, 0, 0, 0, 0, 0, 0])
    assert health.effective_rank(two) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))), rel=1e-3)


def test_variance_within_positions_is_numpys_pooled_variance():
    rng = np.random.default_rng(0)
    tokens, positions = rng.normal(size=(60, 5)), rng.integers(0, 7, 60)
    groups = [tokens[positions == p] for p in np.unique(positions)]
    expected = sum(((len(g) - 1) * g.var(0, ddof=1)).mean() for g in groups if len(g) > 1) / sum(len(g) - 1 for g in groups)
    assert float(variance_within_positions(torch.tensor(tokens), torch.tensor(positions), 9)) == pytest.approx(expected)
    assert float(variance_within_positions(torch.tensor(tokens[:3]), torch.tensor([4, 1, 0]), 9)) == 0


def test_who_knows_positions_alone_explains_variance_but_no_content():
    generator = torch.Generator().manual_seed(0)
    num_images, target_idx = 400, torch.arange(6).expand(400, 2, 6).contiguous()
    masks = Masks(torch.zeros(400, 1, dtype=torch.int64), torch.ones(400, dtype=torch.int64), target_idx,
                  torch.full((400, 2), 6))  # fmt: skip
    means = 3 * torch.randn(6, 8, generator=generator)
    content = torch.randn(num_images, 2, 6, 8, generator=generator)
    found = explain_variance(means.expand_as(content), means + content, masks, 6)
    assert float(found["explained_content"]) == pytest.approx(0, abs=0.01)
    assert float(found["explained_variance"]) > 0.8
    assert float(found["content_frac"]) == pytest.approx(1 - float(found["explained_variance"]), abs=0.01)
    half = explain_variance(means + content / 2, means + content, masks, 6)
    assert float(half["explained_content"]) == pytest.approx(0.75, abs=0.01)


def test_lidar_solves_the_generalised_eigenproblem():
    views = torch.randn(50, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * torch.arange(1, 7)
    views = views + 5 * views[:, :1]
    means = views.mean(1).numpy()
    within = sum(np.cov(image.numpy().T) for image in views) / 50 + 1e-4 * np.eye(6)
    expected = eigh(np.cov(means.T), within, eigvals_only=True)
    np.testing.assert_allclose(health_bed.between_over_within(views).numpy(), expected, rtol=1e-8)
    shares = expected / expected.sum()
    assert health_bed.lidar(views) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert health_bed.view_bits(views) == pytest.approx(np.log2(1 + expected).sum() / 2)


def write_run(path, rows, total_steps=100):
    folder = RunFolder(path)
    folder.create()
    write_json(folder.run_json, {"total_steps": total_steps})
    for row in rows:
        folder.append_metrics({"kind": "health", **row})
    return folder


def test_replay_says_where_the_verdict_changes(tmp_path):
    write_run(tmp_path, make_rows([1.7, 2.0, 2.0, 2.1, 9.0, 9.1]))
    lines = replay_verdicts(tmp_path)
    assert [line.split(": ")[1] for line in lines[:-1]] == ["too early", "not learning yet", "healthy"]
    assert lines[2].startswith("step 40 (41% of the run): healthy: effective rank 9.0, 1.7 at the start")
    assert lines[-1].startswith("now: step 50 (51% of the run): healthy: ")
    assert len(replay_verdicts(tmp_path, every=True)) == 7


def test_replay_of_an_old_run_says_what_it_was_judged_without(tmp_path):
    rows = [{name: row[name] for name in ("step", "effective_rank_pooled", "image_cosine")} for row in make_rows([1.7, 5.0, 9.0])]
    write_run(tmp_path, [*rows, {"step": 30}], total_steps=None)
    lines = replay_verdicts(tmp_path)
    assert lines[0].startswith("judged without loss, explained_variance, skipped_in_a_row")
    assert "1 rows left out" in lines[0]
    assert lines[-1].startswith("now: step 20: healthy: ")


def test_replay_of_nothing_is_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match="is not a run folder"):
        replay_verdicts(tmp_path / "none")
    folder = write_run(tmp_path, [])
    with pytest.raises(ValueError, match="no health measurement yet"):
        replay_verdicts(tmp_path)
    folder.append_metrics({"kind": "health", "step": 3})
    with pytest.raises(ValueError, match="1 health rows, but none holds both"):
        replay_verdicts(tmp_path)
