"""A run of so many minutes keeps to them however the pace changes, and its rates never jump."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openjepa import run as run_module
from openjepa.build import StepTime
from openjepa.config import Recipe, build_recipe, load_recipe
from openjepa.engine.pace import Pace
from openjepa.run import Run, pretrain
from openjepa.signals import Interrupted

CHECKS = 10  # a run is timed at least so often


@given(st.integers(20, 5000), st.floats(0.2, 5), st.integers(10, 40_000))
def test_a_wrong_guess_of_the_pace_is_made_good(planned: int, slower: float, most_steps: int):
    """Planned for steps of 1 s, which then take `slower` seconds each: the time is kept within a few parts in a hundred."""
    planned = min(planned, most_steps)
    pace, budget_s, done = Pace([(0, planned)]), float(planned), 0
    while done < pace.total_steps:
        done += 1
        if done % max(pace.total_steps // CHECKS, 1) == 0:
            pace.replan(done, budget_s - done * slower, slower, most_steps)
    assert done <= most_steps
    over = done * slower / budget_s - 1
    assert over <= 0.06 + slower / budget_s
    if done < most_steps:
        assert over >= -0.06 - slower / budget_s


PLANS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 300)), max_size=5)


@given(st.integers(2, 200), PLANS)
def test_schedules_are_walked_from_end_to_end(first: int, more: list[tuple[int, int]]):
    """Whatever is planned when, places rise by even steps between two plans, and no schedule is cut off or overrun."""
    pace, done = Pace([(0, first)]), 0
    for further, left in more:
        done += further
        if done < pace.total_steps:
            pace.replan(done, float(left), 1.0, 10_000)
    places = [pace.place(step) for step in range(pace.total_steps)]
    assert places[0] == 0
    strides = [after - before for before, after in pairwise(places)]
    assert all(stride >= 0 for stride in strides)
    if len(pace.plans) == 1 or pace.plans[-1][0] < pace.total_steps - 1:
        assert places[-1] == pytest.approx(first - 1)
    starts = {since for since, _ in pace.plans}
    for step in range(1, len(strides)):
        if step not in starts:
            assert strides[step] == pytest.approx(strides[step - 1], abs=1e-6)


@given(st.integers(1, 10**6))
def test_a_run_that_keeps_its_plan_has_the_steps_as_places(total: int):
    pace = Pace([(0, total)])
    for step in {0, total // 3, total - 1}:
        assert pace.place(step) == step
    assert not pace.replan(total // 2, float(total - total // 2), 1.0, total)


def small() -> Recipe:
    values = load_recipe("demo").model_dump()
    values["data"] |= {"batch_size": 16, "workers": 0}
    values["model"] |= {"width": 32, "depth": 2, "heads": 2, "predictor_width": 16, "predictor_depth": 1, "predictor_heads": 2}
    values["train"] |= {"precision": "fp32", "device": "cpu", "max_minutes": 1.0, "log_every_steps": 1}
    values["checkpoint"] |= {"every_steps": 5, "keep": 100}
    values["health"] |= {"num_images": 16}
    return build_recipe(values)


def test_a_slower_machine_shortens_a_run_and_a_resume_goes_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Planned for 58 steps of a second; each takes two from the start, by a clock that counts steps."""
    monkeypatch.setattr(run_module, "measure_step", lambda *_: StepTime(1.0, 0.0))
    monkeypatch.setattr(Run, "_trained_s", lambda run: 2.0 * (run.last_step + 1))
    pretrain("sample:train", small(), tmp_path / "whole")

    stop_after = 17

    def after_step(run: Run, record: run_module.StepRecord) -> bool:
        if record.step == stop_after:
            run.signals.caught = 2
        return original(run, record)

    original = Run.after_step
    monkeypatch.setattr(Run, "after_step", after_step)
    with pytest.raises(Interrupted):
        pretrain("sample:train", small(), tmp_path / "broken")
    monkeypatch.setattr(Run, "after_step", original)
    for checkpoint in (tmp_path / "broken" / "checkpoints").iterdir():
        if checkpoint.stem > "step-00000005":  # back to before the second plan, made after six steps
            checkpoint.unlink()
    pretrain("sample:train", small(), tmp_path / "broken", resume=True)

    facts = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("whole", "broken")]
    assert facts[0]["plans"] == facts[1]["plans"] and facts[0]["plans"] == [[0, 58], [6, 30]]
    assert facts[0]["total_steps"] == 30
    rows = [
        [row for row in map(json.loads, (tmp_path / name / "metrics.jsonl").open()) if row["kind"] == "train"]
        for name in ("whole", "broken")
    ]
    for key in ("step", "lr", "momentum", "loss", "grad_norm"):
        assert [row[key] for row in rows[0]] == [row[key] for row in rows[1]], key
    assert len(rows[0]) == facts[0]["total_steps"]
    rates = [row["lr"] for row in rows[0]]
    assert rates[-1] < 0.02 * max(rates)  # the schedule came to its end
