"""Learning rate, weight decay and momentum of the recipes, as a run makes them: the release's values, and the brief's by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from openjepa.engine.schedule import target_momentum, warmup_cosine
from openjepa.methods.make import make_method
from openjepa.recipe.files import load_recipe
from openjepa.training.build import make_schedules
from tests.parity.agreement import compare_schedules, load_release


def test_schedules_equal_the_releases(shared: Path):
    facts = load_release(shared)[1]
    rows = compare_schedules(facts)
    assert [row.compared for row in rows] == [len(facts["schedule"]["rows"])] * 3
    assert rows[0].compared >= 12
    for row in rows:
        row.check()


@pytest.mark.parametrize(
    ("step", "lr", "momentum"),
    # By calculator from arXiv 2301.08243, section A.1: 300 epochs of 10 steps, 40 of them warm-up; the 1000th step is
    # (1000 - 400) / 2600 of the way down: 1e-6 + (1e-3 - 1e-6) x (1 + cos(pi x 3 / 13)) / 2.
    [
        (0, 2.02e-4, 0.996),
        (199, 6e-4, 0.99626533333),
        (399, 1e-3, 0.996532),
        (999, 8.743811e-4, 0.997332),
        (2999, 1e-6, 0.99999866667),
    ],
)
def test_the_papers_schedules_by_hand(step: int, lr: float, momentum: float):
    recipe = load_recipe("paper_vit_huge_14")
    with torch.device("meta"):
        method = make_method(recipe)
    rates = make_schedules(recipe, method, 3000).at(step)
    assert rates == {"lr": pytest.approx(lr, rel=1e-6), "momentum": pytest.approx(momentum, rel=1e-9)}


def test_the_briefs_schedules_by_hand():
    """The brief: warm-up from 0, cosine to 0; momentum 0.996 to 1 by half a cosine."""
    rates = [warmup_cosine(step, 100, 10, 0.0, 1.0, 0.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == 1.0 == max(rates)
    assert rates[54] == pytest.approx(0.5)  # half way down at the middle of the remaining 90 steps
    assert rates[99] == pytest.approx(0.0, abs=1e-12)
    assert target_momentum(0, 100, "cosine", 0.996, 1.0) == pytest.approx(0.996)
    assert target_momentum(50, 100, "cosine", 0.996, 1.0) == pytest.approx(0.998)
    assert target_momentum(100, 100, "cosine", 0.996, 1.0) == pytest.approx(1.0)
    assert {target_momentum(step, 100, "fixed", 0.99, 1.0) for step in range(100)} == {0.99}
