"""A run in progress: its trainer, its files, and the hooks that act after each step (hooks.py).

Reading order: `train` is the loop; above it are start and resume, below it what happens when a run ends early.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console

from openjepa.data.inspect import find_problems
from openjepa.data.sources import ImageSource
from openjepa.data.workers import WORKER_DIED
from openjepa.engine.checkpoint import find_latest, load_checkpoint
from openjepa.engine.optim import load_state_tensors, state_tensors
from openjepa.engine.precision import explain_precision
from openjepa.engine.threads import use_threads
from openjepa.engine.world import RankLost, current
from openjepa.health.measure import HealthMonitor
from openjepa.health.verdict import RunFacts, Verdict
from openjepa.nn.encoder import Encoder
from openjepa.recipe.files import to_yaml
from openjepa.recipe.sections import Recipe
from openjepa.runs.atomic import write_atomic
from openjepa.runs.folder import RunFolder, write_json
from openjepa.runs.log import Journal, NoJournal
from openjepa.runs.stop import Interrupted, SignalCatcher
from openjepa.training.build import MOST_PLANNED, make_batches, make_trainer
from openjepa.training.hooks import Health, Hook, Log, Probe, ProbeEncoder, Replan, Save, Skipped
from openjepa.training.memory import reset_peak
from openjepa.training.pace import Pace
from openjepa.training.prepare import now
from openjepa.training.trainer import StepRecord
from openjepa.weights.initial import InitialWeights, open_initial


class Session:
    """What the hooks of a run share, and the loop that calls them."""

    def __init__(self, recipe: Recipe, source: ImageSource, folder: RunFolder, facts: dict[str, Any], console: Console) -> None:
        self.recipe, self.source, self.folder, self.facts, self.console = recipe, source, folder, facts, console
        self.pace = Pace((since, total) for since, total in facts.get("plans", [(0, facts["total_steps"])]))
        self.trainer = make_trainer(
            recipe, facts["mean"], facts["std"], self.pace.planned_steps, facts["precision"], facts["num_classes"]
        )  # fmt: skip
        self.trainer.schedules = replace(self.trainer.schedules, place=self.pace.place)
        if words := explain_precision(self.trainer.device, recipe.train.precision, facts["precision"]):
            self.say(words)
        self.start_step, self.last_step = 0, -1
        self.stopped_by = 0  # the number of a signal that one of the processes has caught
        self.trained_before_s, self.started_s = 0.0, 0.0  # by the sessions before this one; when this one began to train
        self.world = current()
        self.signals = SignalCatcher(patient=self.world.size > 1)
        self.journal: Journal | NoJournal  # while it trains
        self.health, self.save, self.probe = Health(self), Save(self), Probe(self)
        self.skipped = Skipped(self)
        first: list[Hook] = [Log(self), self.health] if self.world.is_first else []
        self.hooks: list[Hook] = [self.skipped, *first, Replan(self), *([self.probe] if self.world.is_first else [])]

    @property
    def total_steps(self) -> int:
        """The run's length as planned last."""
        return self.pace.total_steps

    def measure_untrained(self, make_probe: Callable[[Encoder], ProbeEncoder] | None) -> None:
        """Look at the images and at the fresh encoder, before any weights are loaded: what all later measurements compare with.

        make_probe: given the untrained encoder, the probe to take while training; None for none.
        """
        monitor = HealthMonitor(self.source, self.recipe.data.size, self.recipe.health.num_images)
        findings = find_problems(torch.cat(monitor.batches), len(self.source))
        self.facts["findings"] = [tuple(finding) for finding in findings]
        self.health.monitor = monitor
        self.facts["untrained"] = self.health.measure()
        if make_probe is not None:
            self.probe.measure = make_probe(self.context_encoder())

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
        self.skipped.files.try_again(self.source)
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

    def share_state(self) -> None:
        """Every process takes up the first one's weights, optimizer state and step, wherever it has them from."""
        trainer, device = self.trainer, self.trainer.device
        method, world = trainer.method, self.world
        if world.size == 1:
            return
        weights = world.share_tensors(method.state_dict(), device)
        state = world.share_tensors(state_tensors(method, trainer.optimizer), torch.device("cpu"))
        counts = [self.start_step, trainer.num_skipped, trainer.skipped_in_a_row]
        self.start_step, trainer.num_skipped, trainer.skipped_in_a_row = world.share(counts)
        scaler = world.share(trainer.scaler.state_dict())
        if world.is_first:
            return
        self.last_step = self.start_step - 1
        method.load_state_dict(weights, strict=True)
        load_state_tensors(method, trainer.optimizer, state)
        if scaler:
            trainer.scaler.load_state_dict(scaler)

    def write_facts(self) -> None:
        """Write run.json and recipe.yaml."""
        write_atomic(self.folder.recipe_yaml, to_yaml(self.recipe))
        write_json(self.folder.run_json, self.facts)

    def train(self) -> Verdict:
        """Train to the last step with the run's own number of threads and give the verdict.

        However it ends, the state of the last whole step is saved. Raises Interrupted after a signal, ArithmeticError after
        ten steps in a row that were not finite, and whatever else ended it.
        """
        with use_threads(self.facts.get("threads", torch.get_num_threads())):
            self._train()
        if self.stopped_by and self.last_step + 1 < self.total_steps:
            raise Interrupted(self.last_step + 1, self.stopped_by)
        record = None
        if self.world.is_first:
            self.facts["finished"] = now()
            write_json(self.folder.run_json, self.facts)
            record = self.health.write_verdict().to_record()
        return Verdict(**self.world.share(record))

    def _train(self) -> None:
        if self.world.is_first:
            self._warn()
        is_timed = self.recipe.train.run_length.unit == "minutes"
        most_steps = MOST_PLANNED if is_timed else self.total_steps
        batches = make_batches(self.recipe, self.source, self.start_step, most_steps)
        journal = Journal(self.folder, self.start_step, self.total_steps, self.console) if self.world.is_first else NoJournal()
        if self.world.is_first:
            self.health.read_rows()
        reset_peak(self.trainer.device)
        with journal as self.journal, self.signals, closing(batches):
            self.started_s = time.perf_counter()
            if self.world.is_first:
                self.probe.start()
            try:
                for record in self.trainer.steps(batches):
                    if self.after_step(record):
                        break
            except ArithmeticError as error:
                if self.world.is_first:
                    self.facts["stopped"] = (self.last_step, f"{error}.")
                    write_json(self.folder.run_json, self.facts)
                    self.health.write_verdict()
                self.save.save_what_is_done()
                raise
            except RankLost as error:
                self.save.save_what_is_done()
                raise RankLost(f"step {self.last_step + 1}: {error}; add --resume to go on from the newest checkpoint") from None
            except Exception as error:
                self.save.save_what_is_done()
                if "DataLoader worker" in str(error):  # PyTorch raises it wherever the training process is just then
                    raise ChildProcessError(WORKER_DIED) from None
                raise

    def after_step(self, record: StepRecord) -> bool:
        """Call the hooks; True if the run should stop here. A signal that comes later waits for the next step."""
        self.last_step = record.step
        is_last = record.step + 1 == self.total_steps
        self.stopped_by, num_unreadable = self.world.most(self.signals.caught or 0, len(record.unreadable))
        if num_unreadable:
            record.unreadable = [(path, reason) for part in self.world.collect(record.unreadable) for path, reason in part]
        for hook in self.hooks:
            if hook.everywhere or self.world.is_first:
                hook.after_step(record, is_last)
        self.save.after_step(record, is_last, bool(self.stopped_by))
        self.journal.advance(record.step)
        return bool(self.stopped_by) or is_last

    def trained_s(self) -> float:
        """Seconds of training so far, this session's and earlier ones', without probes, which are not training."""
        return self.trained_before_s + time.perf_counter() - self.started_s

    def context_encoder(self) -> Encoder:
        """The encoder that is being trained, as evaluations see it."""
        return Encoder(self.trainer.method.context_encoder, self.facts["mean"], self.facts["std"]).to(self.trainer.device)

    def say(self, words: str, style: str | None = None) -> None:
        """A line on the console, without markup: paths may hold what looks like it."""
        self.console.print(words, style=style, highlight=False, markup=False)

    def _warn(self) -> None:
        """What keeps this run from being of use, before it has cost any time."""
        lines = [f"{words}." for words, _ in self.facts["findings"]]
        if too_short := RunFacts.read(self.facts).too_short:
            lines.append(f"This run is too short for a verdict. {too_short}")
        for line in lines:
            self.say(line[:1].upper() + line[1:], style="yellow")

    def _reopen_initial(self) -> InitialWeights:
        """The checkpoint that this run was started from; ValueError if it is no longer the same file."""
        recorded = self.facts["init"]
        initial = open_initial(recorded["checkpoint"], self.recipe, recorded.get("encoder"))
        if initial.sha256 != recorded["sha256"]:
            raise ValueError(f"{initial.path} has changed since this run was started from it; start a new one")
        return initial
