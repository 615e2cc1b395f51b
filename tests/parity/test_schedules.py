"""Learning rate, weight decay and momentum at the steps that the release recorded, to 1e-9 relative."""

import json
from pathlib import Path

import pytest

from openjepa.engine.schedule import cosine_weight_decay, target_momentum, warmup_cosine


def test_schedules_equal_the_releases(shared: Path):
    facts = json.loads((shared / "golden" / "official_step.json").read_text())["schedule"]
    per_epoch = facts["iterations_per_epoch"]
    total, warmup = facts["epochs"] * per_epoch, facts["warmup_epochs"] * per_epoch
    assert len(facts["rows"]) >= 12
    for row in facts["rows"]:
        step = row["step"] - 1  # the release counts from 1
        lr = warmup_cosine(step, total, warmup, facts["start_lr"], facts["lr"], facts["final_lr"])
        assert lr == pytest.approx(row["lr"], rel=1e-9)
        assert cosine_weight_decay(step, total, *facts["weight_decay"]) == pytest.approx(row["weight_decay"], rel=1e-9)
        assert target_momentum(step, total, "linear", *facts["momentum"]) == pytest.approx(row["momentum"], rel=1e-9)


def test_the_seeds_schedules_by_hand():
    """The seed: warm-up from 0, cosine to 0; momentum 0.996 to 1 by half a cosine."""
    rates = [warmup_cosine(step, 100, 10, 0.0, 1.0, 0.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == 1.0 == max(rates)
    assert rates[54] == pytest.approx(0.5)  # half way down at the middle of the remaining 90 steps
    assert rates[99] == pytest.approx(0.0, abs=1e-12)
    assert target_momentum(0, 100, "cosine", 0.996, 1.0) == pytest.approx(0.996)
    assert target_momentum(50, 100, "cosine", 0.996, 1.0) == pytest.approx(0.998)
    assert target_momentum(100, 100, "cosine", 0.996, 1.0) == pytest.approx(1.0)
    assert {target_momentum(step, 100, "fixed", 0.99, 1.0) for step in range(100)} == {0.99}
