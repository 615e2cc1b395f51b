"""A run of so many minutes keeps to them however the pace changes, and its rates never jump."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import deque
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openjepa.commands.pretrain import pretrain
from openjepa.recipe.sections import Recipe
from openjepa.runs.stop import Interrupted
from openjepa.training import prepare
from openjepa.training.build import StepTime
from openjepa.training.pace import Pace, typical_step_s
from openjepa.training.session import Session
from openjepa.training.trainer import StepRecord
from tests.machine import Machine, measure_on
from tests.models import small_recipe

CHECKS = 10  # a run is timed at least so often


@given(st.integers(20, 5000), st.floats(0.2, 5))
def test_a_wrong_guess_of_the_pace_is_made_good(planned: int, slower: float):
    """Planned for steps of 1 s, which then take `slower` seconds each: the time is kept within a few parts in a hundred."""
    pace, budget_s, done = Pace([(0, planned)]), float(planned), 0
    while done < pace.total_steps:
        done += 1
        if done % max(pace.total_steps // CHECKS, 1) == 0:
            pace.replan(done, budget_s - done * slower, slower)
    assert abs(done * slower / budget_s - 1) <= 0.06 + slower / budget_s


PLANS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 300)), max_size=5)


@given(st.integers(2, 200), PLANS)
def test_schedules_are_walked_from_end_to_end(first: int, more: list[tuple[int, int]]):
    """Whatever is planned when: places rise, none is skipped to, and the last step has the schedules' last place."""
    pace, done = Pace([(0, first)]), 0
    for further, left in more:
        done += further
        if done < pace.total_steps:
            pace.replan(done, float(left), 1.0)
    end = first - 1
    places = [pace.place(step) for step in range(pace.total_steps)]
    assert places[0] == 0
    assert places[-1] == end  # exactly
    strides = [after - before for before, after in pairwise(places)]
    assert all(stride >= 0 for stride in strides)
    for number, (since, total) in enumerate(pace.plans):
        until = pace.plans[number + 1][0] if number + 1 < len(pace.plans) else total
        reached = places[since - 1] if since else 0.0
        even = max(
            end / max(total - 1, 1), (end - reached) / (total - since)
        )  # in proportion, or catching up from what was reached
        assert all(stride <= even + 1e-9 for stride in strides[max(since - 1, 0) : until - 1])


@given(st.integers(20, 300), st.floats(0, 0.9), st.floats(1.2, 50), st.floats(0.05, 0.5))
def test_a_longer_plan_keeps_the_share_of_a_warm_up_that_is_not_over(first: int, planned: float, longer: float, share: float):
    """The warm-up ends at its share of the steps that are run, whenever before its end the plan was made longer."""
    end = share * (first - 1)
    done = min(int(planned * end) + 1, int(end))
    pace = Pace([(0, first)])
    if done < 1 or not pace.replan(done, first * longer - done, 1.0):
        return
    assert find_place(pace, end) == pytest.approx(share * (pace.total_steps - 1), abs=1.001)


def find_place(pace: Pace, place: float) -> int:
    """The first step that lies there or later."""
    return bisect_left(range(pace.total_steps), place, key=pace.place)


def simulate(
    minutes_hold: int, slow_before: int, slow_in_run: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, int]:
    """A run on a machine whose steps take 1 s, after some of 100 s each that compile: while a step is timed, and in the run.

    Its number of steps, and how many of them are warm-up.
    """
    budget_s = float(minutes_hold)
    machine = Machine(lambda step: 100.0 if step < slow_before else 0.01, compute_s=1.0)
    measured = measure_on(machine, monkeypatch, 0.05 * budget_s, compiled=True)
    pace = Pace([(0, max(int(budget_s / measured.seconds), 1))])
    timed: deque[tuple[int, float]] = deque(maxlen=4)
    done, spent_s = 0, 0.0
    while done < pace.total_steps:
        spent_s += 100.0 if done < slow_in_run else 1.0
        if done % max(pace.total_steps // CHECKS, 1) == 0:
            timed.append((done + 1, spent_s))
            if len(timed) > 1:
                pace.replan(done + 1, budget_s - spent_s, typical_step_s(timed))
        done += 1
    return done, find_place(pace, share * (pace.planned_steps - 1))


@pytest.mark.parametrize("minutes_hold", [2000, 20_000])
@pytest.mark.parametrize("slow_before", [0, 5, 19])
@pytest.mark.parametrize("slow_in_run", [0, 3])
@pytest.mark.parametrize("share", [0.02, 0.3])
def test_compilation_spoils_neither_the_length_nor_the_warm_up(
    monkeypatch: pytest.MonkeyPatch, minutes_hold: int, slow_before: int, slow_in_run: int, share: float
):
    steps, warmup = simulate(minutes_hold, slow_before, slow_in_run, share, monkeypatch)
    possible = minutes_hold - 99 * slow_in_run
    assert 0.94 * possible <= steps <= 1.06 * possible  # a plan as close as 5 % is kept
    assert 0.6 * share <= warmup / steps <= 1.4 * share


def test_a_rare_long_interval_does_not_count():
    assert typical_step_s([(1, 0.0), (11, 10.0)]) == 1.0
    assert typical_step_s([(1, 0.0), (11, 300.0), (21, 310.0)]) == 1.0
    assert typical_step_s([(1, 0.0), (11, 10.0), (21, 310.0), (31, 330.0)]) == 2.0


@given(st.integers(1, 10**6))
def test_a_run_that_keeps_its_plan_has_the_steps_as_places(total: int):
    pace = Pace([(0, total)])
    for step in {0, total // 3, total - 1}:
        assert pace.place(step) == step
    assert not pace.replan(total // 2, float(total - total // 2), 1.0)


def small() -> Recipe:
    return small_recipe(
        "ijepa", data__image_size=28, data__batch_size=16, model__width=32, method__predictor__depth=1, optim__warmup_frac=0.1,
        train__length="1minutes", train__precision="fp32", train__device="cpu", train__log_every_steps=1,
        checkpoint__every_steps=5, checkpoint__keep=100, health__num_images=16,
    )  # fmt: skip


def test_a_slower_machine_shortens_a_run_and_a_resume_goes_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Planned for 58 steps of a second; each takes two from the start, by a clock that counts steps."""
    monkeypatch.setattr(prepare, "measure_step", lambda *_: StepTime(1.0, 0.0))
    monkeypatch.setattr(Session, "trained_s", lambda run: 2.0 * (run.last_step + 1))
    pretrain("sample:train", small(), tmp_path / "whole")

    stop_after = 17

    def after_step(run: Session, record: StepRecord) -> bool:
        if record.step == stop_after:
            run.signals.caught = 2
        return original(run, record)

    original = Session.after_step
    monkeypatch.setattr(Session, "after_step", after_step)
    with pytest.raises(Interrupted):
        pretrain("sample:train", small(), tmp_path / "broken")
    monkeypatch.setattr(Session, "after_step", original)
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
