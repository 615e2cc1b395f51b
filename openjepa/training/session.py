"""A run in progress: start, resume, train, record."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from openjepa.data.fingerprint import fingerprint
from openjepa.data.inspect import find_problems
from openjepa.data.loader import WORKER_DIED
from openjepa.data.skipped import SkippedFiles
from openjepa.data.sources import ImageSource
from openjepa.data.views import find_normalization
from openjepa.engine.checkpoint import find_latest, load_checkpoint, save_checkpoint
from openjepa.engine.optim import load_state_tensors, state_tensors
from openjepa.engine.precision import choose_precision, explain_precision, measure_peak, pick_device
from openjepa.engine.threads import choose_threads
from openjepa.health.measure import HealthMonitor
from openjepa.health.verdict import RunFacts, Verdict, judge, warn_of_features, warn_of_gradients
from openjepa.methods.cost import count_flops
from openjepa.methods.make import make_method
from openjepa.nn.encoder import Encoder
from openjepa.recipe.files import build_recipe, to_yaml
from openjepa.recipe.sections import Recipe
from openjepa.runs.environment import describe_machine, describe_versions, read_git_state
from openjepa.runs.folder import RunFolder, write_atomic, write_json
from openjepa.runs.log import Journal
from openjepa.runs.stop import Interrupted, SignalCatcher
from openjepa.training.build import make_batches, make_trainer, measure_step, plan_steps
from openjepa.training.pace import Pace, typical_step_s
from openjepa.training.resume import PLANNED_FROM, check_changes, find_changes
from openjepa.training.speed import describe_speed
from openjepa.training.trainer import StepImages, StepRecord
from openjepa.weights.initial import InitialWeights, open_initial

MEASURED_FRAC = 0.05  # of max_minutes: at most so much goes into timing steps
MIN_HEALTH_ROWS = 10  # a short run is measured more often than health.every_steps, or no trend could be seen
JUDGED_METRICS = ("loss", "explained_variance", "explained_content", "content_frac")  # of a step, that health rows repeat
PACE_ROWS = 4  # the last health measurements, between which a step is timed for a plan anew
SPEED_ROWS = 5  # logged steps after which a run first says how fast it is; the very first is left out, it warms up
ProbeEncoder = Callable[[Encoder], dict[str, Any]]  # a row of metrics.jsonl from the encoder that is being trained

_peak = cache(measure_peak)  # the machine's, whichever run asks


def describe_run(recipe: Recipe, source: ImageSource, initial: InitialWeights | None) -> dict[str, Any]:
    """Measure what a new run needs to know, and give what its run.json will hold. Writes nothing."""
    mean, std = find_normalization(recipe.data, source)
    step_s = None
    if recipe.train.max_minutes is not None:
        step_s = measure_step(recipe, source, mean, std, MEASURED_FRAC * 60 * recipe.train.max_minutes).seconds
    with torch.device("meta"):  # shapes without memory, to count parameters
        method = make_method(recipe)
    parts = {"encoder": method.context_encoder, "predictor": method.predictor}
    device = pick_device(recipe.train.device)
    total_steps = plan_steps(recipe, len(source), step_s)
    return {
        "name": recipe.name,
        "data": source.spec,
        "num_images": len(source),
        "fingerprint": fingerprint(source),
        "recipe": recipe.model_dump(mode="json"),
        "total_steps": total_steps,
        "plans": [(0, total_steps)],
        "measured_step_ms": None if step_s is None else 1000 * step_s,
        "mean": mean,
        "std": std,
        "num_parameters": {name: sum(w.numel() for w in part.parameters() if w.requires_grad) for name, part in parts.items()},
        "versions": describe_versions(),
        "git": read_git_state(),
        "hardware": describe_machine(device),
        "precision": choose_precision(device, recipe.train.precision),
        "threads": count_threads(recipe, source, mean, std),
        "init": initial and {"checkpoint": str(initial.path), "sha256": initial.sha256, "taken": initial.describe(recipe.grid)},
        "started": _now(),
        "finished": None,
    }


def count_threads(recipe: Recipe, source: ImageSource, mean: list[float], std: list[float]) -> int:
    """Threads that train this recipe fastest on this machine now; a GPU needs none of them and gets all."""
    device, most = pick_device(recipe.train.device), torch.get_num_threads()
    if device.type != "cpu" or most == 1:
        return most
    trainer = make_trainer(recipe, mean, std, 1000, choose_precision(device, recipe.train.precision))
    with closing(make_batches(recipe, source, 0, 1)) as batches:
        batch = next(batches)
    return choose_threads(lambda: trainer.step([batch]), most)


def reopen_run(recipe: Recipe | None, source: ImageSource, folder: RunFolder, accept_changes: bool) -> dict[str, Any]:
    """What run.json will hold of an earlier run that goes on. Writes nothing.

    ValueError names what changed since, unless the changes are accepted and the run can follow them.
    """
    facts = folder.read_run()
    recorded = build_recipe(facts["recipe"], where=str(folder.run_json))
    recipe = recipe or recorded
    changes = find_changes(recorded, recipe)
    found = fingerprint(source)
    if facts["num_images"] != len(source):
        changes["number of images"] = (facts["num_images"], len(source))
    elif facts.get("fingerprint", found) != found:
        changes["images"] = (facts["data"], f"others in {source.spec}")
    check_changes(changes, accept_changes, str(folder.path))
    if changes.keys() & PLANNED_FROM:
        step_s = facts["measured_step_ms"] and facts["measured_step_ms"] / 1000
        total_steps = plan_steps(recipe, len(source), step_s)
        facts |= {"total_steps": total_steps, "plans": [(0, total_steps)]}
    device = pick_device(recipe.train.device)
    hardware = describe_machine(device)
    if changes.keys() & {"train.precision", "train.device"} or hardware != facts["hardware"]:
        precision, threads = choose_precision(device, recipe.train.precision), torch.get_num_threads()
        facts |= {"hardware": hardware, "precision": precision, "threads": threads}
    return facts | {
        "recipe": recipe.model_dump(mode="json"),
        "data": source.spec,
        "num_images": len(source),
        "fingerprint": found,
        "stopped": None,
        "finished": None if changes else facts["finished"],
    }


class Run:
    """A run in progress: the trainer, its records, and what happens after each step."""

    def __init__(self, recipe: Recipe, source: ImageSource, folder: RunFolder, facts: dict[str, Any], console: Console) -> None:
        self.recipe, self.source, self.folder, self.facts, self.console = recipe, source, folder, facts, console
        self.pace = Pace((since, total) for since, total in facts.get("plans", [(0, facts["total_steps"])]))
        self.most_steps = plan_steps(recipe, len(source), None)  # however much time there is
        self.timed: deque[tuple[int, float]] = deque(maxlen=PACE_ROWS)  # steps done, seconds trained
        self.trainer = make_trainer(recipe, facts["mean"], facts["std"], self.pace.planned_steps, facts["precision"])
        self.trainer.schedules = replace(self.trainer.schedules, place=self.pace.place)
        if words := explain_precision(self.trainer.device, recipe.train.precision, facts["precision"]):
            self.say(words)
        self.peak_flops = _peak(self.trainer.device, facts["precision"])
        self.speed_rows: list[dict[str, Any]] = []
        self.skipped_files = SkippedFiles(folder.skipped, len(source))
        self.signals = SignalCatcher()
        self.probe: ProbeEncoder | None = None
        self.start_step, self.last_step = 0, -1
        self.saving, self.saved_step = False, -1  # whether a save has begun and not ended; the step that the last one is of
        self.trained_before_s = 0.0  # by the sessions before this one
        self.journal: Journal

    @property
    def total_steps(self) -> int:
        """The run's length as planned last."""
        return self.pace.total_steps

    @property
    def health_every(self) -> int:
        """Steps from one health measurement to the next."""
        return min(self.recipe.health.every_steps, max(self.total_steps // MIN_HEALTH_ROWS, 1))

    def measure_untrained(self, make_probe: Callable[[Encoder], ProbeEncoder] | None) -> None:
        """Look at the images and at the fresh encoder, before any weights are loaded: what all later measurements compare with.

        make_probe: given the untrained encoder, the probe to take while training; None for none.
        """
        trainer, data = self.trainer, self.recipe.data
        self.monitor = HealthMonitor(self.source, data.size, self.recipe.health.num_images)
        findings = find_problems(torch.cat(self.monitor.batches), len(self.source))
        self.facts["findings"] = [tuple(finding) for finding in findings]
        self.facts["untrained"] = self.monitor.measure(trainer.method.encoders(), trainer.mean, trainer.std)
        if make_probe is not None:
            self.probe = make_probe(self._context_encoder())

    def start_from(self, initial: InitialWeights) -> None:
        """Put the weights of an earlier checkpoint into the fresh method."""
        initial.fill(self.trainer.method)
        self.say(f"Starting from {initial.path.name}: {initial.describe(self.recipe.grid)}.")
        own, theirs = (self.facts["mean"], self.facts["std"]), (initial.mean, initial.std)
        if own != theirs:
            words = f"Its images were normalised by mean and std {theirs}, this run's are by {own}: see data.normalization."
            self.say(words, style="yellow")

    def resume(self) -> None:
        """Load the newest undamaged checkpoint, saying which ones were passed over; from the start if there is none yet."""
        path, complaints = find_latest(self.folder.checkpoints)
        for complaint in complaints:
            self.say(complaint, style="yellow")
        if path is None:
            self.say("No checkpoint yet: starting at step 0.")
            if self.facts.get("init"):
                self.start_from(self._reopen_initial())
            return
        tensors, info = load_checkpoint(path)
        method, trainer = self.trainer.method, self.trainer
        weights = {name.removeprefix("method."): value for name, value in tensors.items() if name.startswith("method.")}
        method.load_state_dict(weights, strict=True)
        state = {name.removeprefix("optimizer."): value for name, value in tensors.items() if name.startswith("optimizer.")}
        load_state_tensors(method, trainer.optimizer, state)
        if info["scaler"]:
            trainer.scaler.load_state_dict(info["scaler"])
        trainer.num_skipped, trainer.skipped_in_a_row = info["num_skipped"], info["skipped_in_a_row"]
        self.start_step, self.last_step = info["step"], info["step"] - 1
        rows = [row for row in self.folder.read_metrics("train") if row["step"] < self.start_step]
        self.trained_before_s = rows[-1].get("trained_s", 0.0) if rows else 0.0
        self.say(f"Resuming at step {self.start_step} of {self.total_steps} from {path.name}.")

    def write_facts(self) -> None:
        """Write run.json and recipe.yaml."""
        write_atomic(self.folder.recipe_yaml, to_yaml(self.recipe))
        write_json(self.folder.run_json, self.facts)

    def save(self, step: int, permanent: bool) -> None:
        """Write the state from which step `step` would be computed next."""
        trainer, self.saving = self.trainer, True
        self._name_skipped_steps(trainer.find_skipped())  # so that the counts are this step's
        tensors: dict[str, Tensor] = {f"method.{name}": value for name, value in trainer.method.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in state_tensors(trainer.method, trainer.optimizer).items()}
        info = {
            "step": step,
            "recipe": self.recipe.model_dump(mode="json"),
            "mean": self.facts["mean"],
            "std": self.facts["std"],
            "num_skipped": trainer.num_skipped,
            "skipped_in_a_row": trainer.skipped_in_a_row,
            "scaler": trainer.scaler.state_dict(),
        }
        save_checkpoint(self.folder.checkpoints, step, tensors, info, permanent=permanent, keep=self.recipe.checkpoint.keep)
        self.saving, self.saved_step = False, step

    def train(self) -> Verdict:
        """Train with the run's own number of threads; the rest as _train says."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.facts.get("threads", before))
        try:
            return self._train()
        finally:
            torch.set_num_threads(before)

    def _train(self) -> Verdict:
        """Train to the last step and give the verdict. However it ends, the state of the last whole step is saved.

        Raises Interrupted after a signal, ArithmeticError after ten steps in a row that were not finite, and whatever else
        ended it.
        """
        self._warn()
        batches = make_batches(self.recipe, self.source, self.start_step, self.most_steps)
        journal = Journal(self.folder, self.start_step, self.total_steps, self.console)
        self.health_rows = self.folder.read_metrics("health")
        if self.start_step:
            self._write_verdict()  # one of a step that is dropped would contradict the rows that are left
        with journal as self.journal, self.signals, closing(batches):
            self.started_s = time.perf_counter()
            if self.start_step == 0 and self.probe:
                self._measure_probe(0)
            try:
                for record in self.trainer.steps(batches):
                    if self.after_step(record):
                        break
            except ArithmeticError as error:
                self.facts["stopped"] = (self.last_step, f"{error}.")
                write_json(self.folder.run_json, self.facts)
                self._write_verdict()
                self._save_what_is_done()
                raise
            except Exception as error:
                self._save_what_is_done()
                if "DataLoader worker" in str(error):  # PyTorch raises it wherever the training process is just then
                    raise ChildProcessError(WORKER_DIED) from None
                raise
        if self.signals.caught is not None and self.last_step + 1 < self.total_steps:
            raise Interrupted(self.last_step + 1, self.signals.caught)
        self.facts["finished"] = _now()
        write_json(self.folder.run_json, self.facts)
        return self._write_verdict()

    def _save_what_is_done(self) -> None:
        """After an error: save the last whole step, unless it is saved already or saving is what failed."""
        if self.saving or self.saved_step == self.last_step + 1 or self.last_step + 1 == self.start_step:
            return
        if self.trainer.is_updating:
            self.say("The last step was broken off half-way; the newest checkpoint stands.", style="red")
            return
        try:
            self.save(self.last_step + 1, permanent=False)
        except OSError as error:
            self.say(f"The state could not be saved: {error}", style="red")

    def after_step(self, record: StepRecord) -> bool:
        """Log, measure, save; True if the run should stop here."""
        step, recipe = record.step, self.recipe
        self.last_step = step
        is_last = step + 1 == self.total_steps
        self.skipped_files.add(record.unreadable)
        self._name_skipped_steps(record.skipped)
        if step % recipe.train.log_every_steps == 0 or is_last:
            self._log(record)
        if step % self.health_every == 0 or is_last:
            self._measure_health(record)
            self._replan(step + 1)
        if self.probe and (is_last or (step + 1) % recipe.health.probe_every_steps == 0):
            self._measure_probe(step)
        stopping = self.signals.caught is not None
        due, permanent = self._checkpoint_due(step)
        if due or is_last or stopping:
            self.save(step + 1, permanent=permanent or is_last)
        self.journal.advance(step)
        return stopping or is_last

    def _checkpoint_due(self, step: int) -> tuple[bool, bool]:
        """Whether to save after this step, and whether to keep it for good: at the ends of epochs."""
        settings, per_epoch = self.recipe.checkpoint, len(self.source) / self.recipe.data.batch_size
        epochs, epochs_before = math.floor((step + 1) / per_epoch), math.floor(step / per_epoch)
        permanent = epochs // settings.every_epochs > epochs_before // settings.every_epochs
        due = (step + 1) % settings.every_steps == 0 if settings.every_steps else epochs > epochs_before
        return due or permanent, permanent

    def _log(self, record: StepRecord) -> None:
        metrics = {name: float(value) for name, value in record.metrics.items()}
        total_s = record.data_wait_s + record.step_s
        flops = sum(sum(count_flops(self.trainer.method, masks).values()) for masks in record.masks)
        row = {
            "step": record.step,
            "epoch": (record.step + 1) * self.recipe.data.batch_size / len(self.source),
            **metrics,
            "grad_norm": float(record.grad_norm),
            "lr": record.lr,
            "weight_decay": record.weight_decay,
            **({"momentum": record.momentum} if "target" in self.trainer.method.encoders() else {}),
            "images_per_s": self.recipe.data.batch_size / total_s,
            "fraction_of_peak": flops / total_s / self.peak_flops,
            "data_wait_frac": record.data_wait_s / total_s,
            "skipped_steps": record.num_skipped,
            "overflowed_steps": record.num_overflows,
            "trained_s": self._trained_s(),
        }
        self.journal.write("train", row)
        if warning := warn_of_gradients(row):
            self.journal.say(warning)
        self.journal.advance(record.step, f"loss {row['loss']:.4f}  {row['images_per_s']:.0f} images/s")
        self.speed_rows.append(row)
        if len(self.speed_rows) == 1 + SPEED_ROWS or record.step + 1 == self.total_steps:
            self._say_speed()

    def _say_speed(self) -> None:
        """What the run's logged steps so far say of its speed; the first one warms up and does not count if there are others."""
        hardware = self.facts["hardware"]
        words = describe_speed(
            self.speed_rows[1:] or self.speed_rows,
            workers=self.recipe.data.workers,
            num_cores=hardware["num_cores"],
            device=self.trainer.device.type,
        )
        self.journal.say(f"speed: {words}")

    def _measure_health(self, record: StepRecord) -> None:
        row = {
            "step": record.step,
            **self.monitor.measure(self.trainer.method.encoders(), self.trainer.mean, self.trainer.std),
            **{name: float(record.metrics[name]) for name in JUDGED_METRICS if name in record.metrics},
            "grad_norm": float(record.grad_norm),
            "skipped_in_a_row": record.skipped_in_a_row,
        }
        self.health_rows.append(row)
        verdict = self._write_verdict()
        self.journal.write("health", row | {"label": verdict.label})
        if warning := warn_of_features(row):
            self.journal.say(warning)
        self.journal.say(f"step {record.step}: {verdict.label}: {verdict.reason}")

    def _trained_s(self) -> float:
        """Seconds of training so far, this session's and earlier ones'; probes, which are for looking on, left out."""
        return self.trained_before_s + time.perf_counter() - self.started_s

    def _replan(self, done: int) -> None:
        """If minutes end the run and the machine is faster or slower than planned, another number of steps."""
        minutes = self.recipe.train.max_minutes
        if not self.timed or done > self.timed[-1][0]:
            self.timed.append((done, self._trained_s()))
        if minutes is None or len(self.timed) < 2:
            return
        now_s, step_s = self.timed[-1][1], typical_step_s(self.timed)
        planned = self.total_steps
        if self.pace.replan(done, 60 * minutes - now_s, step_s, self.most_steps):
            self.facts |= {"total_steps": self.total_steps, "plans": self.pace.plans}
            write_json(self.folder.run_json, self.facts)
            self.journal.set_total(self.total_steps)
            words = f"a step takes {1000 * step_s:.0f} ms now: the run's minutes hold {self.total_steps} steps, not {planned}"
            self.journal.say(f"step {done - 1}: {words}")

    def _warn(self) -> None:
        """What keeps this run from being of use, before it has cost any time."""
        lines = [f"{words}." for words, _ in self.facts["findings"]]
        if too_short := RunFacts.read(self.facts).too_short:
            lines.append(f"This run is too short for a verdict. {too_short}")
        for line in lines:
            self.say(line[:1].upper() + line[1:], style="yellow")

    def say(self, words: str, style: str | None = None) -> None:
        """A line on the console, as it is: paths may hold what looks like markup."""
        self.console.print(words, style=style, highlight=False, markup=False)

    def _reopen_initial(self) -> InitialWeights:
        """The checkpoint that this run was started from; ValueError if it is no longer the same file."""
        recorded = self.facts["init"]
        initial = open_initial(recorded["checkpoint"], self.recipe)
        if initial.sha256 != recorded["sha256"]:
            raise ValueError(f"{initial.path} has changed since this run was started from it; start a new one")
        return initial

    def _context_encoder(self) -> Encoder:
        return Encoder(self.trainer.method.context_encoder, self.facts["mean"], self.facts["std"]).to(self.trainer.device)

    def _measure_probe(self, step: int) -> None:
        began_s = time.perf_counter()
        assert self.probe is not None
        row = self.probe(self._context_encoder())
        self.started_s += time.perf_counter() - began_s
        self.journal.write("probe", {"step": step, "encoder": "context", **row})
        others = f"untrained encoder {row['knn_random_encoder']:.1%}, raw pixels {row['knn_raw_pixels']:.1%}"
        self.journal.say(f"step {step}: 20-NN {row['knn']:.1%} ({others})")

    def _name_skipped_steps(self, steps: list[StepImages]) -> None:
        """Record which files were in steps whose loss or gradient was not finite."""
        for step, image_idx in steps:
            files = [self.source.path(int(index)) for index in image_idx]
            self.folder.append_metrics({"kind": "skipped_step", "step": step, "files": files})
            self.journal.say(f"step {step} skipped: loss or gradient not finite; files: {', '.join(files[:3])}, ...")

    def _write_verdict(self) -> Verdict:
        verdict = judge(self.health_rows, RunFacts.read(self.facts))
        write_json(self.folder.verdict_json, verdict.to_record())
        return verdict


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
