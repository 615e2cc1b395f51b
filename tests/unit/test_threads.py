"""The number of threads follows from the time of a step, on a machine whose clock the test moves."""

import pytest
import torch

from openjepa.data.sources import open_source
from openjepa.engine.threads import choose_threads
from openjepa.training import prepare
from openjepa.training.build import StepTime
from tests.models import small_recipe


class Machine:
    """A step takes alone_s with one thread and together_s with more."""

    def __init__(self, alone_s, together_s):
        self.alone_s, self.together_s, self.now, self.steps = alone_s, together_s, 0.0, 0

    def step(self):
        self.steps += 1
        self.now += self.alone_s if torch.get_num_threads() == 1 else self.together_s


@pytest.mark.parametrize(
    ("alone_s", "together_s", "threads"),
    [(0.15, 0.08, 2), (0.15, 8.3, 1), (0.01, 0.02, 1), (60.0, 40.0, 2), (60.0, 90.0, 2)],
)
def test_the_faster_number_is_taken(alone_s, together_s, threads):
    machine, before = Machine(alone_s, together_s), torch.get_num_threads()
    assert choose_threads(machine.step, 2, lambda: machine.now) == threads
    assert torch.get_num_threads() == before
    assert machine.now < 10 * max(alone_s, 1) + 2 * together_s  # a hopeless number is not tried again and again


def test_one_core_needs_no_measurement():
    machine = Machine(1.0, 1.0)
    assert choose_threads(machine.step, 1, lambda: machine.now) == 1
    assert machine.steps == 0


def test_a_run_is_planned_with_the_threads_that_it_trains_with(monkeypatch):
    """On a busy machine a step takes many times as long on all threads: the plan would hold a few steps."""
    seen = []

    def measure(*_):
        seen.append(torch.get_num_threads())
        return StepTime(1.0, 0.0)

    monkeypatch.setattr(prepare, "count_threads", lambda *_: 1)
    monkeypatch.setattr(prepare, "measure_step", measure)
    recipe = small_recipe(train__length="1minute")
    torch.set_num_threads(2)
    try:
        facts = prepare.describe_run(recipe, open_source("sample:test", 1), None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert seen == [1] and facts["threads"] == 1
