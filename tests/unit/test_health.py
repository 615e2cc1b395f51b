"""The verdict as laws over rows, the measurements against numpy and scipy, and what a replay says."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openjepa.commands.health import replay_verdicts
from openjepa.health import verdict as health
from openjepa.health.measure import effective_rank, measure_features
from openjepa.health.verdict import RunFacts
from openjepa.masks import Masks
from openjepa.methods.masked import explain_variance, variance_within_positions
from openjepa.recipe.check import recipe_keys
from openjepa.recipe.files import load_recipe
from openjepa.recipe.methods import SECTIONS
from openjepa.runs.folder import RunFolder, write_json

LABELS = {"too early", "not learning yet", "healthy", "collapsing", "collapsed", "diverging"}
RANKS = st.lists(st.floats(1.0, 60.0), min_size=3, max_size=12)


def make_rows(ranks, **last):
    rows = [
        {"step": 10 * i, "effective_rank_pooled": rank, "loss": 1.0, "explained_variance": 0.5, "image_cosine": 0.3,
         "feature_variance": 0.1, "grad_norm": 1.0, "skipped_in_a_row": 0}
        for i, rank in enumerate(ranks)
    ]  # fmt: skip
    rows[-1] |= last
    return rows


def untrained(first, limit=64):
    """The facts of a run whose encoder had this effective rank before training."""
    return RunFacts(untrained_rank=first, rank_limit=limit)


def judge(ranks, first=None, limit=64, **last):
    """The verdict on a run of these ranks; the first of them is the untrained encoder's unless told otherwise."""
    return health.judge(make_rows(ranks, **last), untrained(ranks[0] if first is None else first, limit))


@given(RANKS)
def test_every_series_has_a_known_label_a_reason_and_advice(ranks):
    verdict = judge(ranks)
    assert verdict.label in LABELS
    assert verdict.reason.endswith(".") and verdict.advice.endswith((".", "?"))
    assert verdict.step == 10 * (len(ranks) - 1)


@given(RANKS)
def test_features_on_a_line_are_never_healthy(ranks):
    assert judge([*ranks, 1.0]).label in ("collapsed", "collapsing")
    assert judge([*ranks, 1.0, 1.0]).label == "collapsed"


@given(RANKS, st.floats(1.1, 60.0), st.floats(0.0, 1.0), st.sampled_from([64, 256]))
def test_features_no_richer_than_the_untrained_ones_are_never_healthy(ranks, first, share, limit):
    """Whatever the first rank: small grey images have 1.7, textured scenes 56."""
    last = 1 + share * (first - 1)
    assert judge([*ranks, last], first, limit).label in ("not learning yet", "collapsing", "collapsed")


@given(st.floats(1.2, 56.0), st.integers(3, 10), st.floats(0.97, 1.03))
def test_an_encoder_that_stays_as_it_was_is_not_learning_yet(first, count, factor):
    """As at a learning rate of 1e-12."""
    assert judge([first] * count + [max(first * factor, 1.06)], first, 64).label == "not learning yet"


@given(st.floats(1.2, 60.0), st.floats(0.0, 0.39))
def test_collapse_is_found_from_every_first_rank(first, share):
    """Two measurements at less than 0.4 of the untrained encoder's excess over 1."""
    last = 1 + share * (first - 1)
    assert judge([first, first, last, last], first, 64).label == "collapsed"


@given(st.floats(1.1, 56.0))
def test_growth_can_be_healthy_from_every_first_rank(first):
    limit = health.find_healthy_rank(first, 64)
    assert first < limit < 64
    assert judge([first, first, limit + 1e-3], first, 64).label == "healthy"
    assert judge([first, first, limit - 1e-3], first, 64).label == "not learning yet"


@given(RANKS, st.floats(-5, 0))
def test_a_predictor_that_explains_nothing_is_never_healthy(ranks, explained):
    assert judge(ranks, explained_variance=explained).label != "healthy"


@given(RANKS, st.floats(0, 100))
def test_more_rank_never_makes_the_verdict_worse(ranks, more):
    order = ["collapsed", "collapsing", "not learning yet", "healthy"]
    low, high = (judge([*ranks[:-1], rank]).label for rank in (ranks[-1], ranks[-1] + more))
    assert order.index(low) <= order.index(high)


@given(RANKS)
def test_a_rising_rank_is_never_called_collapsing(ranks):
    assert judge(sorted(ranks)).label != "collapsing"


@pytest.mark.parametrize(
    ("ranks", "limit", "label"),
    [
        ([1.7], 64, "too early"),
        ([1.7, 9.0], 64, "too early"),
        ([1.7, 4.0, 9.0], 64, "healthy"),
        ([1.7, 1.7, 1.8], 64, "not learning yet"),
        ([1.7, 1.2, 1.1], 64, "collapsed"),
        ([1.7, 1.5, 1.3], 64, "collapsing"),  # as the brief's recipe began, which learned: once is not enough
        ([1.7, 12.0, 4.4], 64, "collapsing"),
        ([1.7, 12.0, 4.0, 9.0], 64, "healthy"),  # once lower, but no longer falling
        ([17.6, 17.6, 17.6], 256, "not learning yet"),  # ViT-B at 224 px with a rate of 1e-12
        ([17.6, 12.0, 12.0], 256, "not learning yet"),
        ([17.6, 3.0, 3.0], 256, "collapsed"),
        ([1.0001, 1.0002, 1.0001], 64, "collapsed"),
    ],
)
def test_labels(ranks, limit, label):
    assert judge(ranks, limit=limit).label == label


def test_a_run_from_trained_weights_is_compared_with_the_untrained_encoder():
    """--init starts at a high rank, which is a high rank all the same."""
    assert judge([40.0, 41.0, 40.0], first=1.7, limit=64).label == "healthy"
    assert judge([40.0, 41.0, 40.0], first=39.0, limit=64).label == "not learning yet"


def test_images_that_look_alike_from_the_start_are_the_images_fault():
    assert "Look at the images" in judge([1.0, 1.0, 1.0]).advice
    assert "Look at the images" not in judge([1.7, 1.1, 1.1]).advice


def test_images_that_allow_nothing_are_blamed_whatever_the_features():
    facts = RunFacts(hopeless="only 9 images")
    for ranks, label in (([1.7, 9.0, 9.0], "not learning yet"), ([1.7, 1.0, 1.0], "collapsed"), ([1.7], "not learning yet")):
        verdict = health.judge(make_rows(ranks), facts)
        assert verdict.label == label
        assert verdict.reason == "only 9 images."
    assert health.judge(make_rows([1.7, 9.0, 9.0], loss=math.nan), facts).label == "diverging"


@pytest.mark.parametrize(
    "last", [{"skipped_in_a_row": 2}, {"loss": 11.0}, {"loss": math.nan}, {"effective_rank_pooled": math.nan}]
)
def test_diverging_wins_over_all_else(last):
    assert judge([1.7, 5.0, 9.0], **last).label == "diverging"
    assert judge([1.7], **({} if last == {"loss": 11.0} else last) | {"loss": math.nan}).label == "diverging"
    assert judge([1.7, 5.0, 9.0], loss=9.0).label == "healthy"


def test_a_run_that_stopped_is_diverging_at_its_last_step():
    verdict = health.judge(make_rows([1.7, 5.0, 9.0]), RunFacts(stopped=(27, "ten steps in a row were not finite.")))
    assert (verdict.label, verdict.step) == ("diverging", 27)
    assert "ten steps" in verdict.reason


def test_a_predictor_that_lost_what_it_knew_is_diverging_however_rich_the_features():
    """As three runs at a rate too high for their width: ranks of 50 and more, and 20-NN accuracy no better than untrained."""
    explained = (-3.3, 0.56, 0.42, 0.25, 0.1)
    rows = make_rows([1.8, 38.6, 55.2, 56.2, 50.9])
    rows = [row | {"explained_variance": value} for row, value in zip(rows, explained, strict=True)]
    labels = [verdict.label for verdict in health.replay(rows, untrained(1.8, 96))]
    assert labels == ["too early", "too early", "healthy", "diverging", "diverging"]
    assert "optim.lr" in health.judge(rows, untrained(1.8, 96)).advice


@given(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=10))
def test_a_predictor_that_keeps_two_thirds_of_its_best_is_not_diverging(explained):
    best, kept = 0.0, []
    for value in explained:
        kept.append(max(value, 2 / 3 * best))
        best = max(best, kept[-1])
    rows = make_rows([1.7, *[9.0] * (len(kept) - 1)])
    rows = [row | {"explained_variance": value} for row, value in zip(rows, kept, strict=True)]
    assert {verdict.label for verdict in health.replay(rows, untrained(1.7, 64))} <= {"too early", "healthy"}


@pytest.mark.parametrize(
    ("entropies", "words", "key"),
    [
        ({"teacher_entropy": 1.0, "usage_entropy": 1.0}, "alike", "method.teacher_temperature.end"),
        ({"teacher_entropy": 0.0, "usage_entropy": 0.0}, "the same prototype", "method.centre_momentum"),
    ],
)
def test_assignments_that_tell_nothing_are_a_collapse_however_rich_the_features(entropies, words, key):
    """Twice in a row; assignments that are merely sharp or merely even are none."""
    rows = [row | entropies for row in make_rows([1.7, 9.0, 9.0, 9.0])]
    values = load_recipe("dino_small").model_dump(mode="json")
    verdict = health.judge(rows, RunFacts(recipe=values, untrained_rank=1.7, rank_limit=64))
    assert verdict.label == "collapsed" and words in verdict.reason
    assert key in verdict.advice
    rows[-2] |= {"teacher_entropy": 0.9, "usage_entropy": 0.95}
    assert health.judge(rows, RunFacts(recipe=values, untrained_rank=1.7, rank_limit=64)).label == "healthy"


@pytest.mark.parametrize(
    "recipe",
    ["demo", "mae_demo", "paper_vit_base_16", "brief_vit_base_16", *(f"{name}_small" for name in SECTIONS if name != "ijepa")],
)
@pytest.mark.parametrize(
    "rows",
    [
        make_rows([1.7, 1.1, 1.1]),
        make_rows([1.7, 9.0, 4.0]),
        make_rows([1.7, 1.7, 1.7]),
        make_rows([1.7, 9.0, 9.0], loss=math.nan),
    ],
)
def test_advice_names_keys_that_act_on_the_run_and_are_not_set_that_way(recipe, rows):
    values = load_recipe(recipe).model_dump(mode="json")
    verdict = health.judge(rows, RunFacts(recipe=values, untrained_rank=1.7, rank_limit=64))
    named = re.findall(r"\b(?:data|views|model|mask|method|optim|momentum|train)(?:\.\w+)+", verdict.advice)
    assert verdict.label != "healthy" and named
    assert set(named) <= set(recipe_keys(values["method"]["name"]))
    if values["method"].get("regularizer"):
        assert "method.regularizer.name" not in named
    if values["optim"]["clip_grad_norm"] is not None:
        assert "optim.clip_grad_norm" not in named


@given(st.floats(1.0, 64.0), st.floats(1.0, 64.0), st.sampled_from([64, 256]))
def test_the_healthy_rank_is_above_the_first_and_rises_with_it(first, other, limit):
    low, high = sorted((first, other))
    assert health.find_healthy_rank(low, limit) > low
    assert health.find_healthy_rank(low, limit) <= health.find_healthy_rank(high, limit)


@pytest.mark.parametrize(("first", "limit", "odds"), [(1.7, 64, 3.7), (17.9, 64, 1.55), (17.6, 256, 2.3)])
def test_healthy_odds_are_fewer_times_the_first_ones_where_those_are_high(first, limit, odds):
    rank = health.find_healthy_rank(first, limit)
    assert (rank - 1) / (limit + 1 - rank) == pytest.approx(odds * (first - 1) / (limit + 1 - first), rel=0.02)


def test_features_that_are_not_finite_have_no_rank():
    broken = torch.full((8, 4), math.nan)
    assert math.isnan(effective_rank(broken))
    measured = measure_features(broken, broken, None)
    assert math.isnan(measured["effective_rank_pooled"])
    row = {"step": 3, "loss": 1.0, **measured}
    assert health.judge([row], RunFacts()).label == "diverging"


def test_effective_rank_of_known_spectra():
    axes = torch.linalg.qr(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)))[0]
    assert effective_rank(axes) == pytest.approx(8, rel=1e-4)
    two = axes * torch.tensor([3.0, 1, 0, 0, 0, 0, 0, 0])
    assert effective_rank(two) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))), rel=1e-3)


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


def write_run(path, rows, total_steps=100, **facts):
    folder = RunFolder(path)
    folder.create()
    write_json(folder.run_json, {"total_steps": total_steps} | facts)
    for row in rows:
        folder.append_metrics({"kind": "health", **row})
    return folder


def test_replay_says_where_the_verdict_changes(tmp_path):
    write_run(tmp_path, make_rows([1.7, 2.0, 2.0, 2.1, 9.0, 9.1]))
    lines = replay_verdicts(tmp_path)
    assert [line.split(": ")[1] for line in lines[:-1]] == ["too early", "not learning yet", "healthy"]
    assert lines[2].startswith("step 40 (41% of the run): healthy: effective rank 9.0, 1.7 untrained")
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


def test_replay_blames_the_images_as_the_run_did(tmp_path):
    write_run(tmp_path, make_rows([1.7, 5.0, 9.0]), findings=[["a few flat images", False], ["only 9 images", True]])
    assert replay_verdicts(tmp_path)[-1].startswith("now: step 20 (21% of the run): not learning yet: only 9 images.")


def test_replay_knows_that_a_run_stopped(tmp_path):
    write_run(tmp_path, make_rows([1.7, 5.0, 9.0]), stopped=[25, "ten steps in a row were not finite."])
    assert replay_verdicts(tmp_path)[-1].startswith("now: step 25 (26% of the run): diverging: ten steps")
