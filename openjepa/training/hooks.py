"""What a run does after each step: log, measure health, plan again, probe, save. One class each, with its own state.

`everywhere` says on which processes a hook is to run: on all of them, where they must agree on something, or on the first
alone, where it measures, writes or shows, while the others go on to the next step and wait there (engine/world.py).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor

from openjepa.data.skipped import SkippedFiles
from openjepa.engine.checkpoint import save_checkpoint
from openjepa.engine.optim import state_tensors
from openjepa.engine.precision import measure_peak
from openjepa.engine.world import alone, current
from openjepa.health.measure import HealthMonitor
from openjepa.health.verdict import RunFacts, Verdict, judge, warn_of_features, warn_of_gradients
from openjepa.nn.encoder import Encoder
from openjepa.runs.folder import write_json
from openjepa.training.cost import count_flops
from openjepa.training.memory import peak_bytes
from openjepa.training.pace import typical_step_s
from openjepa.training.speed import describe_speed
from openjepa.training.trainer import StepImages, StepRecord

if TYPE_CHECKING:
    from openjepa.training.session import Session

MIN_HEALTH_ROWS = 10  # a short run is measured more often than health.every_steps, or no trend could be seen
PACE_ROWS = 4  # the last health measurements, between which a step is timed for a plan
SPEED_ROWS = 5  # logged steps after which a run first says how fast it is; the very first is left out, it warms up

ProbeEncoder = Callable[[Encoder], dict[str, Any]]  # a row of metrics.jsonl from the encoder that is being trained

_peak = cache(measure_peak)  # the machine's, whichever run asks


class Hook(Protocol):
    """Called after every step, in the order of Session.hooks."""

    everywhere: ClassVar[bool]

    def after_step(self, record: StepRecord, is_last: bool) -> None:
        """is_last: whether the run ends with this step."""


class Skipped:
    """Unreadable files and broken steps, listed as they come."""

    everywhere: ClassVar[bool] = True

    def __init__(self, session: Session) -> None:
        self.session = session
        self.files: SkippedFiles  # the first process's
        if session.world.is_first:
            self.files = SkippedFiles(session.folder.skipped, len(session.source))

    def after_step(self, record: StepRecord, is_last: bool) -> None:
        """ValueError when too many files cannot be read."""
        if self.session.world.is_first:
            self.files.add(record.unreadable)
        name_skipped_steps(self.session, record.skipped)


def name_skipped_steps(session: Session, steps: list[StepImages]) -> None:
    """Record which files were in steps whose loss or gradient was not finite. The steps are the same on every process."""
    for step, own_idx in steps:
        image_idx = [index for part in current().collect(own_idx.tolist()) for index in part]
        if not session.world.is_first:
            continue
        files = [session.source.path(index) for index in image_idx]
        session.folder.append_metrics({"kind": "skipped_step", "step": step, "files": files})
        session.journal.say(f"step {step} skipped: loss or gradient not finite; files: {', '.join(files[:3])}, ...")


class Log:
    """A row of kind "train" every train.log_every_steps, and what the run's speed is."""

    everywhere: ClassVar[bool] = False

    def __init__(self, session: Session) -> None:
        self.session = session
        self.peak_flops = _peak(session.trainer.device, session.facts["precision"])
        self.image_flops = count_flops(session.trainer.method, session.recipe)
        self.rows: list[dict[str, Any]] = []

    def after_step(self, record: StepRecord, is_last: bool) -> None:
        """Log the step if it is due, or the last."""
        session = self.session
        recipe, journal = session.recipe, session.journal
        if record.step % recipe.train.log_every_steps and not is_last:
            return
        metrics = {name: float(value) for name, value in record.metrics.items()}
        total_s = record.data_wait_s + record.step_s
        flops = self.image_flops * session.recipe.batch_size / session.world.size
        row = {
            "step": record.step,
            "epoch": (record.step + 1) * recipe.batch_size / len(session.source),
            **metrics,
            "grad_norm": float(record.grad_norm),
            **record.rates,
            "images_per_s": recipe.batch_size / total_s,
            "fraction_of_peak": flops / total_s / self.peak_flops,
            "data_wait_frac": record.data_wait_s / total_s,
            "skipped_steps": record.num_skipped,
            "overflowed_steps": record.num_overflows,
            "trained_s": session.trained_s(),
            "peak_memory_gb": peak_bytes(session.trainer.device) / 2**30,
        }
        journal.write("train", row)
        if warning := warn_of_gradients(row):
            journal.say(warning)
        journal.advance(record.step, f"loss {row['loss']:.4f}  {row['images_per_s']:.0f} images/s")
        self.rows.append(row)
        if len(self.rows) == 1 + SPEED_ROWS or is_last:
            self._say_speed()

    def _say_speed(self) -> None:
        """What the logged steps so far say; the first one warms up and does not count if there are others."""
        words = describe_speed(
            self.rows[1:] or self.rows,
            workers=self.session.recipe.data.workers,
            num_cores=self.session.facts["hardware"]["num_cores"],
            device=self.session.trainer.device.type,
        )
        self.session.journal.say(f"speed: {words}")


class Health:
    """A row of kind "health" every health.every_steps, at least MIN_HEALTH_ROWS times a run, and the verdict."""

    everywhere: ClassVar[bool] = False

    def __init__(self, session: Session) -> None:
        self.session = session
        self.monitor: HealthMonitor
        self.rows: list[dict[str, Any]] = []

    def is_due(self, step: int, is_last: bool) -> bool:
        """Whether the step is measured."""
        session = self.session
        every = min(session.recipe.health.every_steps, max(session.total_steps // MIN_HEALTH_ROWS, 1))
        return step % every == 0 or is_last

    def after_step(self, record: StepRecord, is_last: bool) -> None:
        """Measure and judge if the step is due."""
        if not self.is_due(record.step, is_last):
            return
        row = {
            "step": record.step,
            **self.measure(),
            **{name: float(value) for name, value in record.metrics.items()},
            "grad_norm": float(record.grad_norm),
            "skipped_in_a_row": record.skipped_in_a_row,
        }
        self.rows.append(row)
        verdict, journal = self.write_verdict(), self.session.journal
        journal.write("health", row | {"label": verdict.label})
        if warning := warn_of_features(row):
            journal.say(warning)
        journal.say(f"step {record.step}: {verdict.label}: {verdict.reason}")

    def measure(self) -> dict[str, float]:
        """Rank, spread and drift of the method's encoders as they are now."""
        trainer = self.session.trainer
        return self.monitor.measure(trainer.method.encoders(), trainer.mean, trainer.std)

    def read_rows(self) -> None:
        """Take up the rows of earlier sessions; the verdict of a step that is dropped would contradict those that are left."""
        self.rows = self.session.folder.read_metrics("health")
        if self.session.start_step:
            self.write_verdict()

    def write_verdict(self) -> Verdict:
        """Judge the rows so far and write verdict.json."""
        verdict = judge(self.rows, RunFacts.read(self.session.facts))
        write_json(self.session.folder.verdict_json, verdict.to_record())
        return verdict


class Replan:
    """If minutes end the run and the machine is faster or slower than planned, another number of steps (pace.py).

    All processes follow the first one's clock.
    """

    everywhere: ClassVar[bool] = True

    def __init__(self, session: Session) -> None:
        self.session = session
        self.timed: deque[tuple[int, float]] = deque(maxlen=PACE_ROWS)  # steps done, seconds trained

    def after_step(self, record: StepRecord, is_last: bool) -> None:
        """Plan again where health was measured."""
        session, done = self.session, record.step + 1
        minutes, unit = session.recipe.train.run_length
        if not session.health.is_due(record.step, is_last):
            return
        if not self.timed or done > self.timed[-1][0]:
            self.timed.append((done, session.trained_s()))
        if unit != "minutes" or len(self.timed) < 2:
            return
        left_s, step_s = session.world.share((60 * minutes - self.timed[-1][1], typical_step_s(self.timed)))
        planned = session.total_steps
        if session.pace.replan(done, left_s, step_s) and session.world.is_first:
            session.facts |= {"total_steps": session.total_steps, "plans": session.pace.plans}
            write_json(session.folder.run_json, session.facts)
            session.journal.set_total(session.total_steps)
            words = f"a step takes {1000 * step_s:.0f} ms now: the run's minutes hold {session.total_steps} steps, not {planned}"
            session.journal.say(f"step {record.step}: {words}")


class Probe:
    """A row of kind "probe" every health.probe_every_steps, if the run was given a probe."""

    everywhere: ClassVar[bool] = False

    def __init__(self, session: Session) -> None:
        self.session = session
        self.measure: ProbeEncoder | None = None

    def start(self) -> None:
        """Measure the untrained encoder, where the run starts with it."""
        if self.session.start_step == 0:
            self._take(0)

    def after_step(self, record: StepRecord, is_last: bool) -> None:
        """Measure if it is due."""
        if is_last or (record.step + 1) % self.session.recipe.health.probe_every_steps == 0:
            self._take(record.step)

    def _take(self, step: int) -> None:
        if self.measure is None:
            return
        session, began_s = self.session, time.perf_counter()
        row = self.measure(session.context_encoder())
        session.started_s += time.perf_counter() - began_s
        session.journal.write("probe", {"step": step, "encoder": "context", **row})
        others = f"untrained encoder {row['knn_random_encoder']:.1%}, raw pixels {row['knn_raw_pixels']:.1%}"
        session.journal.say(f"step {step}: 20-NN {row['knn']:.1%} ({others})")


class Save:
    """Checkpoints as recipe.checkpoint asks, at the end, and when the run is told to stop."""

    everywhere: ClassVar[bool] = True

    def __init__(self, session: Session) -> None:
        self.session = session
        self.saving, self.saved_step = False, -1  # whether a save has begun and not ended; the step that the last one is of

    def after_step(self, record: StepRecord, is_last: bool, is_stopping: bool) -> None:
        """Save if it is due, or the run ends here."""
        due, permanent = self._is_due(record.step)
        if due or is_last or is_stopping:
            self.save(record.step + 1, permanent=permanent or is_last)

    def _is_due(self, step: int) -> tuple[bool, bool]:
        """Whether to save after this step, and whether to keep it for good: at the ends of epochs."""
        recipe = self.session.recipe
        settings, per_epoch = recipe.checkpoint, len(self.session.source) / recipe.batch_size
        epochs, epochs_before = math.floor((step + 1) / per_epoch), math.floor(step / per_epoch)
        permanent = epochs // settings.every_epochs > epochs_before // settings.every_epochs
        due = (step + 1) % settings.every_steps == 0 if settings.every_steps else epochs > epochs_before
        return due or permanent, permanent

    def save(self, step: int, permanent: bool) -> None:
        """Write the state from which step `step` would be computed next."""
        session, trainer, self.saving = self.session, self.session.trainer, True
        name_skipped_steps(session, trainer.find_skipped())  # so that the counts are this step's
        if not session.world.is_first:
            self.saving, self.saved_step = False, step
            return
        tensors: dict[str, Tensor] = {f"method.{name}": value for name, value in trainer.method.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in state_tensors(trainer.method, trainer.optimizer).items()}
        info = {
            "step": step,
            "recipe": session.recipe.model_dump(mode="json"),
            "mean": session.facts["mean"],
            "std": session.facts["std"],
            "num_classes": session.facts["num_classes"],
            "classes": session.facts.get("classes"),
            "num_skipped": trainer.num_skipped,
            "skipped_in_a_row": trainer.skipped_in_a_row,
            "scaler": trainer.scaler.state_dict(),
        }
        keep = session.recipe.checkpoint.keep
        save_checkpoint(session.folder.checkpoints, step, tensors, info, permanent=permanent, keep=keep)
        self.saving, self.saved_step = False, step

    def save_what_is_done(self) -> None:
        """After an error: save the last whole step, unless it is saved already or saving is what failed."""
        session = self.session
        done = session.last_step + 1
        if self.saving or self.saved_step == done or done == session.start_step:
            return
        if session.trainer.is_updating:
            session.say("The last step was broken off half-way; the newest checkpoint stands.", style="red")
            return
        try:
            with alone():  # the others may be gone
                self.save(done, permanent=False)
        except OSError as error:
            session.say(f"The state could not be saved: {error}", style="red")
