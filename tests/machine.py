"""A simulated machine: a CPU that queues work, a GPU that does it, a loader that delivers, and one clock for all three."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from openjepa.data.sources import open_source
from openjepa.recipe.check import build_recipe
from openjepa.training import build
from openjepa.training import trainer as train
from openjepa.training.build import StepTime, measure_step
from openjepa.training.trainer import StepRecord, Trainer

SOURCE = open_source("sample:test", 1)  # which nobody looks at


class Record(StepRecord):
    """A step's times alone."""

    def __init__(self, step: int, data_wait_s: float) -> None:
        self.step, self.data_wait_s, self.step_s, self.num_skipped = step, data_wait_s, 0.0, 0


class Machine:
    """Time passes where the CPU queues a step, waits for the GPU or waits for a batch, and nowhere else."""

    def __init__(self, queue_s: Callable[[int], float], compute_s: float, deliver_s: float = 0.0) -> None:
        """Seconds in which the CPU queues the n-th step made here, the GPU computes one, and the loader makes a batch."""
        self.queue_s, self.compute_s, self.deliver_s = queue_s, compute_s, deliver_s
        self.now = self.idle_from = self.delivered = 0.0
        self.num_steps = 0

    def perf_counter(self) -> float:
        return self.now

    def wait(self, device: torch.device) -> None:
        self.now = max(self.now, self.idle_from)

    def deliver(self, steps: range) -> Iterator[int]:
        """Batches one after another, a few ready before they are asked for."""
        for step in steps:
            self.delivered += self.deliver_s
            self.now = max(self.now, self.delivered)
            yield step

    def step(self, step: int, data_wait_s: float) -> Record:
        """Queue a step; like a trainer, read the answer of the step before, which the GPU must have done by then."""
        before = self.idle_from
        self.idle_from = max(self.now, self.idle_from) + self.compute_s
        self.now = max(self.now + self.queue_s(self.num_steps), before)
        self.num_steps += 1
        return Record(step, data_wait_s)


class SimulatedTrainer(Trainer):
    """The real loop on a simulated machine."""

    def __init__(self, machine: Machine, log_every_steps: int) -> None:
        self.machine, self.device, self.log_every_steps, self.skipped_in_a_row = machine, torch.device("cuda"), log_every_steps, 0

    def steps(self, batches: Iterator[int]) -> Iterator[StepRecord]:
        """As Trainer.steps: wait before and after a logged step."""
        asked = self.machine.now
        for step in batches:
            started = self.machine.now
            record = self.machine.step(step, started - asked)
            self.wait_if_logged(step)
            record.step_s = self.machine.now - started
            yield record
            self.wait_if_logged(step + 1)
            asked = self.machine.now


def measure_on(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, max_s: float, *, compiled: bool = False, log_every_steps: int = 10
) -> StepTime:
    """What measure_step finds on a simulated machine."""
    recipe = build_recipe({"train": {"compile": compiled, "device": "cpu", "precision": "fp32"}})
    with monkeypatch.context() as patch:
        patch.setattr(build, "make_trainer", lambda *_: SimulatedTrainer(machine, log_every_steps))
        patch.setattr(build, "make_batches", lambda _recipe, _source, start, total: machine.deliver(range(start, total)))
        for module in (build, train):
            patch.setattr(module, "time", machine)
            patch.setattr(module, "wait_for", machine.wait, raising=False)
        return measure_step(recipe, SOURCE, [0.5], [0.25], max_s)
