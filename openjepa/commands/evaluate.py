"""`openjepa evaluate`: measure an encoder on labelled images by a task, and keep the record in the run's folder."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from openjepa.data.left_out import describe_left_out, describe_skipped, list_beside
from openjepa.data.sources import ImageSource, canonical_spec
from openjepa.engine.precision import pick_device
from openjepa.evals import TASKS
from openjepa.evals.encoders import Candidate, Subject, open_encoder
from openjepa.evals.features import FeatureStore
from openjepa.evals.outcome import Outcome
from openjepa.evals.task import TaskSettings
from openjepa.recipe.methods import DETECTION_TASKS
from openjepa.runs.folder import Row, RunFolder
from openjepa.runs.version import __version__

DEFAULTS = TaskSettings()
LONGEST_NAME = 60  # letters of an encoder's name in that of a file


def evaluate(
    spec: str | Path,
    task: str,
    train: str | None,
    test: str,
    encoder: Candidate = "context",
    *,
    layers: int = 1,
    settings: TaskSettings = DEFAULTS,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Scores of an encoder on labelled data by a task of evals.TASKS; gives the record.

    Of DETECTION_TASKS: those of a detector's run on annotated images, which nothing is fitted on: train is None.

    spec: an encoder as evals.encoders.open_encoder takes it; a run folder's evals/ gets the record. train, test: data specs
    with labels. layers: how many last layers the features are of; settings: what else there is to choose.
    """
    if task in DETECTION_TASKS:
        from openjepa.commands.detection import evaluate_detector  # needs the extra [detection]

        unread = [] if train is None else ["--train"]
        unread += ["--layers"] if layers != 1 else []
        unread += ["--encoder"] if encoder != "context" else []
        if unread or settings != DEFAULTS:
            named = unread or [
                f"--{key.replace('_', '-')}" for key, value in vars(settings).items() if value != getattr(DEFAULTS, key)
            ]
            raise ValueError(f"task {task} measures a trained detector and does not read {named[0]}: drop it")
        return evaluate_detector(spec, task, test, device)
    if train is None:
        raise ValueError(f"task {task} needs labelled data to fit on: add --train DATA")
    asked = [(task, layers)]
    return evaluate_many(spec, [encoder], asked, train, test, settings=settings, seed=seed, device=device)[0]


def evaluate_many(
    spec: str | Path,
    encoders: Sequence[Candidate],
    tasks: Sequence[tuple[str, int]],
    train: str,
    test: str,
    *,
    settings: TaskSettings = DEFAULTS,
    seed: int = 0,
    device: str = "auto",
    keep_features: bool = True,
    note: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda words: print(f"openjepa: {words}", file=sys.stderr),
) -> list[dict[str, Any]]:
    """Every encoder by every task (name, layers), extracting features once per encoder.

    Several layers are left out for raw pixels, which have none, unless nothing else is asked for. keep_features: in
    RUN/cache, for the next evaluation. note receives progress messages; warn a line where the run folder cannot take the
    record.
    """
    require_tasks([task for task, _ in tasks])
    place = str(pick_device(device))
    records: list[dict[str, Any]] = []
    for choice in encoders:
        subject = open_encoder(spec, train, choice, place)
        folder = subject.run.cache if subject.run and keep_features and choice != "pixels" else None  # pixels need no encoder
        fitting = [pair for pair in tasks if choice != "pixels" or pair[1] == 1 or len(tasks) == 1]
        say = warn if choice == encoders[0] else None
        for record in measure(
            subject, fitting, train, test, settings=settings, seed=seed, device=place, features=folder, note=note, warn=say
        ):
            records.append(record)
            if subject.run is not None:
                keep_record(subject.run, record, warn)
    return records


def measure(
    subject: Subject,
    tasks: Sequence[tuple[str, int]],
    train: str,
    test: str,
    *,
    settings: TaskSettings = DEFAULTS,
    seed: int = 0,
    device: str = "cpu",
    features: Path | None = None,
    note: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] | None = None,
) -> Iterator[Row]:
    """The record of an encoder by one task (name, layers) after another; its features are extracted once.

    features: a folder that keeps them for later. warn: is told of left-out files, which are listed beside the first record.
    """
    store = FeatureStore(subject.encoder, subject.weights, folder=features, device=device, label=subject.name)
    for place, (task, layers) in enumerate(tasks):
        note(f"{task} on {subject.name}" + (f", last {layers} layers" if layers != 1 else ""))
        chosen = replace(settings, layers=layers)
        sources = TASKS[task].open(train, test, subject.encoder.channels, chosen, subject.reading)
        outcome = TASKS[task].evaluate(store, *sources, chosen, seed)
        record = make_record(outcome, subject, train, test, chosen)
        yield record
        if place == 0 and warn is not None:
            _tell_left_out(sources, store, subject.run, record, warn)


def require_tasks(names: Iterable[str]) -> None:
    """ValueError for a task that is none."""
    if unknown := next((name for name in names if name not in TASKS), None):
        raise ValueError(f"no task {unknown!r}; there are {', '.join(TASKS)}")


def _tell_left_out(
    sources: tuple[ImageSource, ImageSource], store: FeatureStore, run: RunFolder | None, record: Row, warn: Callable[[str], None]
) -> None:
    """Say what was passed over and what could not be read, and list it beside the record: NAME-train.skipped.txt and others."""
    for part, source in zip(("train", "test"), sources, strict=True):
        skipped = next((found.skipped for found in store.known.values() if found.spec == source.spec), [])
        lines = [*describe_skipped(skipped, len(source)), *describe_left_out(source)]
        if run is not None and lines:
            try:
                lines = list_beside(run.evals / f"{name_record(record)}-{part}.json", source, skipped)
            except OSError as error:  # of somebody else's run, or a full disk
                lines.append(f"which could not be listed: {error}")
        for line in lines:
            warn(f"{source.spec}: {line}")


def make_record(outcome: Outcome, subject: Subject, train: str, test: str, settings: TaskSettings = DEFAULTS) -> Row:
    """An outcome with what it was measured on: encoder, data, version and time."""
    return (
        outcome.to_record()
        | {"encoder": subject.name, "layers": settings.layers, "train": train, "test": test}
        | {"train_path": canonical_spec(train), "test_path": canonical_spec(test)}
        | _list_choices(settings)
        | subject.facts
        | {"version": __version__, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    )


def ask(subject: Subject, task: str, layers: int, train: str, test: str, seed: int = 0) -> Row:
    """What a record says of its question, for name_record before anything is measured; settings are left as they are."""
    paths = {"train_path": canonical_spec(train), "test_path": canonical_spec(test)}
    return {"task": task, "encoder": subject.name, "layers": layers, "seed": seed} | paths | subject.facts


def _list_choices(settings: TaskSettings) -> dict[str, Any]:
    """What a record says of the choices that make another question of a task; nothing of those that were left open."""
    named = {"train_annotations": settings.train_annotations, "test_annotations": settings.test_annotations}
    found: dict[str, Any] = {key: canonical_spec(value) for key, value in named.items() if value is not None}
    found |= {"ignore_zero": True} if settings.ignore_zero else {}
    found |= {} if settings.head == DEFAULTS.head else {"head": settings.head}
    return found | ({} if settings.accuracy is None else {"accuracy_asked": settings.accuracy})


def keep_record(run: RunFolder, record: Row, warn: Callable[[str], None]) -> None:
    """Write a record among a run's evaluations, or warn that it could not be."""
    try:
        run.write_eval(name_record(record), record)
    except OSError as error:  # of somebody else's run, or a full disk: the result is worth more than its record
        warn(f"the record could not be written: {error}")


def name_record(record: Row) -> str:
    """The file name of an evaluation's record: the same for the same question, and another one for every other."""
    question = [record[key] for key in ("task", "encoder", "layers", "train_path", "test_path", "seed", "step", "sha256")]
    asked = ("train_annotations", "test_annotations", "ignore_zero", "accuracy_asked", "share", "most_draws", "head")
    question += [f"{key}={record[key]}" for key in asked if key in record]
    short = hashlib.sha256(json.dumps(question).encode()).hexdigest()[:8]
    step = "" if record["step"] is None else f"-step-{record['step']}"  # None: of an encoder that is no run's
    encoder = re.sub(r"[^\w.-]+", "-", record["encoder"])[:LONGEST_NAME]  # hf:FOLDER
    return f"{record['task']}-{encoder}{step}-{short}"
