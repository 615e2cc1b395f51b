"""The training loop. One step, in order: rates, gradients, unscale, clip, check, optimizer, what follows the weights.

State is one integer: rates and every random draw are functions of the step. On a CPU a resume from weights,
optimizer and step is bit-equal to a run never stopped (tests/chaos/test_kill_and_resume.py). On a GPU it sees the same
images, views, masks and rates, but the backward pass of attention adds up in no fixed order: two equal runs agree to
rounding, and so does a resumed one. A step whose loss or gradient is not finite is skipped before the optimizer sees it.
It is one of two things. An overflow is routine in fp16: the loss is finite, the scaled gradients are not, and the scaler
lowers its scale. Anything else is a broken step; ten in a row stop the run. The host blocks on a GPU only before and
after logged steps: a step is skipped on the device, and the host reads the flag one step later (engine/prefetch.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.optim import AdamW

from openjepa.data.batch import Batch
from openjepa.engine.optim import clip_gradients, set_rates, step_where
from openjepa.engine.precision import LEAST_SCALE, Precision, autocast, read_scale
from openjepa.engine.prefetch import Answer, place_ahead, wait_for
from openjepa.engine.world import World, current
from openjepa.methods.contract import Method, Rates, Schedule
from openjepa.nn.encoder import normalise

MAX_SKIPPED_IN_A_ROW = 10


@dataclass(frozen=True)
class Schedules:
    """Rates as functions of a place, 0 to total_steps - 1, and each step's place (pace.py)."""

    total_steps: int
    rates: dict[str, Schedule]
    """lr, and the method's own."""
    place: Callable[[int], float] = float

    def at(self, step: int) -> dict[str, float]:
        """The rates of a step."""
        place = self.place(step)
        return {name: schedule(place) for name, schedule in self.rates.items()}


class StepImages(NamedTuple):
    """Which images a step trained on."""

    step: int
    image_idx: Int64[Tensor, " images"]  # numbers in the source


@dataclass
class StepRecord:
    """What one step did; tensors stay on the device until they are logged."""

    step: int
    metrics: dict[str, Tensor]
    grad_norm: Tensor  # before clipping, of the last step whose gradients did not overflow; 0 before there is one
    rates: dict[str, float]  # lr, weight_decay, and the method's own
    unreadable: list[tuple[str, str]]  # (path, reason) of image files that others replaced
    skipped: list[StepImages]  # broken steps found since the last one: on a CPU this step's or none, on a GPU the one before
    skipped_in_a_row: int  # broken steps
    num_skipped: int  # broken steps
    num_overflows: int  # steps skipped because fp16 gradients overflowed while the scaler looked for its scale
    data_wait_s: float = 0.0
    step_s: float = 0.0


class Timed:
    """An iterator that counts the seconds spent waiting for its items."""

    def __init__(self, items: Iterable[Batch]) -> None:
        self.items, self.waited_s = iter(items), 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        asked = time.perf_counter()
        try:
            return next(self.items)
        finally:
            self.waited_s += time.perf_counter() - asked


@dataclass
class Trainer:
    """A method, its optimizer and schedules, and how a step is computed."""

    method: Method
    optimizer: AdamW
    scaler: torch.amp.GradScaler
    schedules: Schedules
    device: torch.device
    precision: Precision
    mean: Tensor
    std: Tensor
    seed: int
    world: World = field(default_factory=current)
    accumulation_steps: int = 1
    clip_grad_norm: float | None = None
    log_every_steps: int = 1
    pad_multiple: int = 1
    num_skipped: int = 0
    skipped_in_a_row: int = 0
    num_overflows: int = 0
    is_updating: bool = False  # the weights are between two steps: an error then leaves no state to save
    unread: list[tuple[StepImages, Answer]] = field(default_factory=list)  # of each step: was it finite, did it overflow
    weights: list[nn.Parameter] = field(init=False)
    grad_norm: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.weights = [weight for weight in self.method.parameters() if weight.requires_grad]
        self.grad_norm = torch.zeros((), device=self.device)

    def steps(self, batches: Iterable[Batch]) -> Iterator[StepRecord]:
        """Train on micro-batches, accumulation_steps of them at a time, and give a record after every step.

        Raises ArithmeticError after ten broken steps in a row.
        """
        self.method.train()
        batches = Timed(place_ahead(batches, self.place, self.device))
        started = time.perf_counter()
        while (first := next(batches, None)) is not None:
            record = self.step(chain([first], islice(batches, self.accumulation_steps - 1)))
            self.wait_if_logged(record.step)
            record.data_wait_s = batches.waited_s
            record.step_s = time.perf_counter() - started - record.data_wait_s
            yield record
            if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise ArithmeticError(
                    f"{MAX_SKIPPED_IN_A_ROW} steps in a row, the last being step {record.step - len(self.unread)}, had a loss or "
                    "gradient that is not finite"
                )
            self.wait_if_logged(record.step + 1)  # a logged step's time is its own
            batches.waited_s, started = 0.0, time.perf_counter()

    def step(self, batches: Iterable[Batch]) -> StepRecord:
        """One optimizer step on the micro-batches of one step.

        Each counts by its share of the real target tokens, so that together they are the large batch.
        """
        batches = iter(batches)
        first = next(batches)
        step = first.step
        torch.manual_seed(self.seed * 1_000_003 + step)  # whatever the method draws is a function of the step
        rates = self.schedules.at(step)
        set_rates(self.optimizer, rates["lr"], self.schedules.place(step), self.schedules.total_steps)
        metrics: dict[str, Tensor] = {}
        image_idx, unreadable = [], []
        for batch in chain([first], batches):
            for key, value in self.accumulate_gradients(batch, rates).items():
                metrics[key] = metrics.get(key, torch.zeros_like(value)) + batch.share * value
            image_idx.append(batch.image_idx)
            unreadable += batch.skipped
        self.world.add_gradients(self.weights)
        metrics = self.world.add_metrics(metrics)
        self.scaler.unscale_(self.optimizer)
        grad_norm = clip_gradients(self.weights, self.clip_grad_norm)
        is_loss_finite, are_gradients_finite = torch.isfinite(metrics["loss"]), torch.isfinite(grad_norm)
        finite = self.world.all(is_loss_finite & are_gradients_finite)
        self.is_updating = True
        step_where(finite, self.optimizer)
        self.method.after_step(rates, finite)
        self.is_updating = False
        scale = read_scale(self.scaler, self.device)
        self.scaler.update()
        falls = (read_scale(self.scaler, self.device) < scale) & (scale >= LEAST_SCALE)
        overflowed = is_loss_finite & ~are_gradients_finite & falls
        self.grad_norm = torch.where(overflowed, self.grad_norm, grad_norm)
        self.optimizer.zero_grad(set_to_none=True)
        self.unread.append((StepImages(step, torch.cat(image_idx)), Answer(torch.stack([finite, overflowed]))))
        skipped = self.find_skipped(leave=1 if self.device.type == "cuda" else 0)
        rates["weight_decay"] = max(float(group["weight_decay"]) for group in self.optimizer.param_groups)
        return StepRecord(
            step, metrics, self.grad_norm, rates, unreadable,
            skipped, self.skipped_in_a_row, self.num_skipped, self.num_overflows,
        )  # fmt: skip

    def accumulate_gradients(self, batch: Batch, rates: Rates) -> dict[str, Tensor]:
        """Add the gradients of a micro-batch's mean loss times its share, and give its metrics."""
        batch = self.place(batch).map_images(lambda images: normalise(images, self.mean, self.std))
        with autocast(self.device, self.precision):
            loss, metrics = self.method(batch, rates)
        self.scaler.scale(loss * batch.share).backward()
        measured: dict[str, Tensor] = metrics
        return measured

    def place(self, batch: Batch) -> Batch:
        """The micro-batch on the device, its masks padded to a multiple of pad_multiple. A second time changes nothing."""
        return batch.to(self.device, self.pad_multiple)

    def find_skipped(self, leave: int = 0) -> list[StepImages]:
        """Count overflows and broken steps, and give the broken ones; the last `leave` steps are not asked for yet."""
        skipped = []
        while len(self.unread) > leave:
            images, answer = self.unread.pop(0)
            finite, overflowed = answer.read()
            if finite:
                self.skipped_in_a_row = 0
            elif overflowed:
                self.num_overflows += 1
            else:
                self.skipped_in_a_row += 1
                self.num_skipped += 1
                skipped.append(images)
        return skipped

    def wait_if_logged(self, step: int) -> None:
        """Block until a GPU's queued work is done, if the step is a logged one."""
        if step % self.log_every_steps == 0:
            wait_for(self.device)
