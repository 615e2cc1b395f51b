"""The training loop. One step, in order: rates of this step, gradients, unscale, clip, check, optimizer, momentum update.

State is one integer: rates, momentum and every random draw are functions of the step, so that a resume from weights, optimizer
and step is bit-equal to a run never stopped (tests/chaos/test_kill_and_resume.py). A step whose loss or gradient is not finite is
skipped before the optimizer sees it; ten in a row stop the run. Nobody waits for a GPU but where a step is logged: it skips by
itself, and its answer is read a step later (engine/ahead.py). Knows no recipe, no files: hooks are handed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from openjepa.data.loader import Batch, Part
from openjepa.engine.ahead import Answer, place_ahead, wait_for
from openjepa.engine.optim import clip_gradients, momentum_where, set_rates, step_where
from openjepa.engine.precision import Precision, autocast
from openjepa.methods import Method
from openjepa.nn.encoder import normalise

MAX_SKIPPED_IN_A_ROW = 10


@dataclass(frozen=True)
class Schedules:
    """Learning rate and momentum as functions of a place, 0 to total_steps - 1, and each step's place (engine/pace.py)."""

    total_steps: int
    lr: Callable[[int | float], float]
    momentum: Callable[[int | float], float]
    place: Callable[[int], float] = float


@dataclass
class StepRecord:
    """What one step did; tensors stay on the device until somebody logs them."""

    step: int
    metrics: dict[str, Tensor]
    grad_norm: Tensor
    lr: float
    weight_decay: float
    momentum: float
    batch: Batch
    skipped: list[Batch]  # found since the step before: on a CPU this step's or none, on a GPU that of the step before
    skipped_in_a_row: int
    num_skipped: int
    data_wait_s: float
    step_s: float


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
    accumulation_steps: int = 1
    clip_grad_norm: float | None = None
    log_every_steps: int = 1
    pad_multiple: int = 1
    num_skipped: int = 0
    skipped_in_a_row: int = 0
    unread: list[tuple[Batch, Answer]] = field(default_factory=list)
    weights: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.weights = [weight for weight in self.method.parameters() if weight.requires_grad]

    def run(self, batches: Iterator[Batch], after_step: Callable[[StepRecord], bool]) -> None:
        """Train on every batch; stop early when after_step returns True.

        Raises ArithmeticError after ten non-finite steps in a row.
        """
        self.method.train()
        asked = time.perf_counter()
        for batch in place_ahead(batches, self.place, self.device):
            started = time.perf_counter()
            record = self.step(batch, data_wait_s=started - asked)
            self.wait_if_logged(batch.step)
            record.step_s = time.perf_counter() - started
            if after_step(record):
                return
            if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise ArithmeticError(
                    f"{MAX_SKIPPED_IN_A_ROW} steps in a row, the last being step {batch.step - len(self.unread)}, had a loss or "
                    "gradient that is not finite"
                )
            self.wait_if_logged(batch.step + 1)  # a logged step's time is its own
            asked = time.perf_counter()

    def step(self, batch: Batch, data_wait_s: float = 0.0) -> StepRecord:
        """One optimizer step on one batch."""
        step, schedules = batch.step, self.schedules
        torch.manual_seed(self.seed * 1_000_003 + step)  # whatever the method draws is a function of the step
        place = schedules.place(step)
        lr, momentum = schedules.lr(place), schedules.momentum(place)
        set_rates(self.optimizer, lr, place, schedules.total_steps)
        metrics = self.accumulate_gradients(batch)
        self.scaler.unscale_(self.optimizer)
        grad_norm = clip_gradients(self.weights, self.clip_grad_norm)
        finite = torch.isfinite(metrics["loss"]) & torch.isfinite(grad_norm)
        step_where(finite, self.optimizer)
        self.method.update_target(momentum_where(finite, momentum))
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.unread.append((batch, Answer(finite)))
        skipped = self.find_skipped(leave=1 if self.device.type == "cuda" else 0)
        decay = max(float(group["weight_decay"]) for group in self.optimizer.param_groups)
        return StepRecord(
            step, metrics, grad_norm, lr, decay, momentum, batch,
            skipped, self.skipped_in_a_row, self.num_skipped, data_wait_s, step_s=0.0,
        )  # fmt: skip

    def accumulate_gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Gradients of the batch's mean loss, part by part, and its metrics.

        Each part counts by its number of real target tokens, so that the parts together are the large batch.
        """
        metrics: dict[str, Tensor] = {}
        for images, masks, share in batch.parts or self.place(batch).parts:
            with autocast(self.device, self.precision):
                loss, part_metrics = self.method(normalise(images, self.mean, self.std), masks)
            self.scaler.scale(loss * share).backward()
            for key, value in part_metrics.items():
                metrics[key] = metrics.get(key, torch.zeros_like(value)) + share * value
        return metrics

    def place(self, batch: Batch) -> Batch:
        """The batch with its parts on the device."""
        total = batch.masks.target_lengths.sum()
        images = batch.images.to(self.device, non_blocking=True).chunk(self.accumulation_steps)
        masks = batch.masks.split(self.accumulation_steps)
        shares = [float(part.target_lengths.sum() / total) for part in masks]
        placed = [part.pad(self.pad_multiple).to(self.device) for part in masks]
        return replace(batch, parts=[Part(*part) for part in zip(images, placed, shares, strict=True)])

    def find_skipped(self, leave: int = 0) -> list[Batch]:
        """Count and give the batches whose step was not finite; the last `leave` steps are not asked for yet."""
        skipped = []
        while len(self.unread) > leave:
            batch, finite = self.unread.pop(0)
            if finite.read():
                self.skipped_in_a_row = 0
            else:
                self.skipped_in_a_row += 1
                self.num_skipped += 1
                skipped.append(batch)
        return skipped

    def wait_if_logged(self, step: int) -> None:
        """Until a GPU has done what it was told, if the step is a logged one."""
        if step % self.log_every_steps == 0:
            wait_for(self.device)
