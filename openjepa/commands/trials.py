"""One harness for every comparison: each row and seed trained, or only measured, by the same code and kept in its own folder.

OUT/NAME-SEED is an ordinary run folder, OUT/NAME that of an encoder which is only measured. Records of evaluations are in its
evals/. What is there is not computed twice: a finished run is not trained again, one in progress goes on from its checkpoint,
and a record counts for the same weights, data, task and layers. So rows, seeds, tasks and other test images can be added to a
folder at any time; a row whose recipe or training images changed is refused, since its runs would be of two kinds. Seeds are the
outer loop: a table fills evenly. Probes draw with seed 0 in every row, so spread is of training alone.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from openjepa.commands.evaluate import ask, measure, name_record, require_tasks
from openjepa.commands.pretrain import pretrain
from openjepa.commands.rows import Entrant, slug
from openjepa.data.left_out import describe_left_out
from openjepa.data.reading import AS_STORED, keep_levels
from openjepa.data.sources import canonical_spec, open_source
from openjepa.engine.checkpoint import load_checkpoint
from openjepa.engine.precision import pick_device
from openjepa.evals import TASKS
from openjepa.evals.encoders import Subject, open_encoder, open_untrained
from openjepa.evals.features import RawPixels
from openjepa.evals.task import FeatureTask, TaskSettings
from openjepa.methods.parity import PARITY
from openjepa.nn.encoder import Encoder
from openjepa.recipe.check import build_recipe
from openjepa.recipe.sections import Recipe
from openjepa.report.standings import Column, Result
from openjepa.runs.folder import Row, RunFolder, read_json, write_json
from openjepa.runs.machine import count_cores
from openjepa.training.build import check_views, count_classes
from openjepa.training.prepare import count_trained, read_recorded
from openjepa.training.resume import find_changes
from openjepa.weights.load import find_checkpoint

MOST_PIXELS = 3 * 64 * 64  # numbers in an image: 3,400 such images took the linear probe 11 s, and 224 px are 12 times as many
FREE = frozenset({"data.workers"})  # keys that change nothing of what a run computes, and differ between machines


@dataclass(frozen=True)
class Exam:
    """What every row is trained on, and measured with. train: images; labels, test: labelled ones to fit on and to test on."""

    train: str
    labels: str
    test: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Trial:
    """One row with one seed: None for what has no seeds. threads: PyTorch's, or as many as there are."""

    entrant: Entrant
    seed: int | None
    exam: Exam
    folder: Path
    threads: int | None = None


def list_trials(rows: Sequence[Entrant], exam: Exam, seeds: Sequence[int], out: Path, threads: int | None = None) -> list[Trial]:
    """Every row with every seed, by seed; a row without seeds once, with the first. ValueError if two share a folder."""
    trials: dict[Path, Trial] = {}
    for seed in seeds:
        for row in rows:
            if row.has_seeds or seed == seeds[0]:
                folder = out / (f"{slug(row.name)}-{seed}" if row.has_seeds else slug(row.name))
                if folder in trials:
                    names = f"{trials[folder].entrant.name} and {row.name}"
                    raise ValueError(f"the rows {names} would share the folder {folder}; write one of them in another way")
                trials[folder] = Trial(row, seed if row.has_seeds else None, exam, folder, threads)
    return list(trials.values())


def check_trials(trials: Sequence[Trial], note: Callable[[str], None]) -> None:
    """ValueError, before anything is written, for whatever could not be trained, measured or gone on with.

    note: a line for labelled files that are left out.
    """
    recipes = [trial.entrant.recipe for trial in trials if trial.entrant.recipe is not None]
    _check_exam(trials[0].exam, recipes[0].data.channels if recipes else 3, note)
    firsts = {trial.entrant.name: trial for trial in reversed(trials)}
    for trial in firsts.values():
        if trial.entrant.kind == "trained":
            assert trial.entrant.recipe is not None
            check_views(trial.entrant.recipe)
            if trial.entrant.recipe.method.NEEDS_LABELS:
                count_classes(trial.entrant.recipe, open_source(trial.exam.train, trial.entrant.recipe.data.channels))
        elif trial.entrant.kind == "measured":
            _open_subject(trial, "cpu")
    for trial in trials:
        if trial.entrant.kind == "trained":
            _require_same(trial)


def _check_exam(exam: Exam, channels: int, note: Callable[[str], None]) -> None:
    """ValueError for a task that is none, or has no data."""
    require_tasks([column.task for column in exam.columns])
    for name, layers in exam.columns:
        task = TASKS[name]
        if layers != 1 and isinstance(task, FeatureTask) and task.needs_patches:
            raise ValueError(f"task {name} reads the last layer's patches: write {name}, not {name}:{layers}")
        sources = task.open(exam.labels, exam.test, channels, TaskSettings(layers))
    for source in sources:
        for line in describe_left_out(source):
            note(f"{source.spec}: {line}")


def run_trials(trials: Sequence[Trial], note: Callable[[str], None], jobs: int = 1) -> Iterator[Result]:
    """The results of all trials as they come, each told to note. jobs: trials at the same time."""
    if jobs == 1:
        for place, trial in enumerate(trials, 1):
            yield _told(run_trial(trial), trial, note, f"{place} of {len(trials)}")
        return
    # A fresh interpreter each: forked PyTorch threads hang.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run_trial, trial): trial for trial in trials}
        for place, done in enumerate(as_completed(futures), 1):
            yield _told(done.result(), futures[done], note, f"{place} of {len(trials)}")


def share_cores(jobs: int) -> int | None:
    """Threads of each of some trials at a time; None leaves the number to PyTorch and the user."""
    return None if jobs == 1 else max(min(count_cores() // jobs, torch.get_num_threads()), 1)


def run_trial(trial: Trial) -> Result:
    """Train, or go on with, one run, and measure it; what is there already is read from its folder."""
    if trial.threads is not None:
        torch.set_num_threads(trial.threads)
    row = trial.entrant
    facts = {"kind": row.kind, "folder": str(trial.folder)}
    if row.kind == "trained" and not _train(trial):
        return Result(row.name, trial.seed, facts | describe_run(RunFolder(trial.folder)))
    device = str(pick_device("auto" if row.recipe is None else row.recipe.train.device))
    subject = _open_subject(trial, device)
    return Result(row.name, trial.seed, facts | describe_subject(subject), _measure(trial, subject, device))


def _train(trial: Trial) -> bool:
    """Train to the end whatever there is of the run; False if it stopped because its loss was no longer finite."""
    run, row = RunFolder(trial.folder), trial.entrant
    assert trial.seed is not None
    _require_same(trial)
    facts = run.read_run() if run.exists() else {}
    if facts.get("finished"):
        return True
    if facts.get("stopped"):
        return False
    recipe = None if facts else row.at_seed(trial.seed)  # a run goes on by the recipe that it began with
    try:
        pretrain(trial.exam.train, recipe, trial.folder, resume=bool(facts), console=Console(quiet=True))
    except ArithmeticError:
        return False
    return True


def _require_same(trial: Trial) -> None:
    """ValueError if the folder holds a run of another recipe, or of other images."""
    run, row = RunFolder(trial.folder), trial.entrant
    if not run.exists():
        return
    assert trial.seed is not None
    recorded, asked, data = read_recorded(run), row.at_seed(trial.seed), str(run.read_run()["data"])
    asked = asked.model_copy(update={"data": keep_levels(asked.data, recorded.data)})
    changes = {key: pair for key, pair in find_changes(recorded, asked).items() if key not in FREE}
    if canonical_spec(data) != canonical_spec(trial.exam.train):
        changes = {"the images": (data, trial.exam.train), **changes}
    if changes:
        key, (before, after) = next(iter(changes.items()))
        raise ValueError(f"{run.path} holds a run of other settings: {key} {before}, not {after}; choose another --out")


def _open_subject(trial: Trial, device: str) -> Subject:
    """What is measured."""
    row, exam = trial.entrant, trial.exam
    if row.kind in ("trained", "measured"):
        return open_encoder(row.spec or trial.folder, exam.labels, "context", device)
    assert row.recipe is not None
    if row.kind == "untrained":
        assert trial.seed is not None
        subject = open_untrained(row.at_seed(trial.seed), exam.train)
        return subject._replace(encoder=subject.encoder.to(device)) if isinstance(subject.encoder, nn.Module) else subject
    data = row.recipe.data
    pixels = RawPixels(data.size, data.channels, row.recipe.model.patch_size)
    reading = open_untrained(row.recipe, exam.train).reading if data.white_level == "auto" else AS_STORED
    return Subject("pixels", pixels, f"pixels:{data.size}:{data.channels}:{reading}", {"spec": row.name}, reading=reading)


def _measure(trial: Trial, subject: Subject, device: str) -> dict[Column, Row]:
    """Records by column: those that the folder has, and those that it lacked."""
    if "sha256" not in subject.facts:
        identity = {"step": None, "sha256": sha256(subject.weights.encode()).hexdigest()}
        subject = subject._replace(facts=subject.facts | identity)
    run, exam, found = RunFolder(trial.folder), trial.exam, {}
    for column in (column for column in exam.columns if _has(subject, column)):
        path = run.evals / f"{name_record(ask(subject, *column, exam.labels, exam.test))}.json"
        found[column] = read_json(path) if path.is_file() else None
    missing = [column for column, record in found.items() if record is None]
    for record in measure(subject, missing, exam.labels, exam.test, device=device):
        run.write_eval(name_record(record), record)
        found[Column(record["task"], record["layers"])] = record
    return {column: record for column, record in found.items() if record is not None}


def _has(subject: Subject, column: Column) -> bool:
    """Whether the encoder has the layers that a column reads, and the task takes no longer than the runs."""
    encoder = subject.encoder
    if isinstance(encoder, RawPixels) and math.prod(encoder.size) * encoder.channels > MOST_PIXELS:
        return column == Column("knn")
    depth = len(encoder.vit.blocks) if isinstance(encoder, Encoder) else 1
    return column.layers <= depth


def describe_subject(subject: Subject) -> Row:
    """What is known of an encoder: its shape, and the run that it is from."""
    encoder = subject.encoder
    facts: Row = {"image_size": " x ".join(map(str, encoder.size)), "channels": encoder.channels}
    if isinstance(encoder, Encoder):
        patch = encoder.patch_size
        facts["encoder"] = f"{encoder.width} wide, {len(encoder.vit.blocks)} layers, patches of {patch} px"
    elif isinstance(encoder, nn.Module):
        facts["encoder"] = "another library's"
    else:
        facts["encoder"] = "none"
    if isinstance(encoder, nn.Module):
        facts["parameters"] = count_trained(encoder)
    if subject.run is not None:
        return facts | describe_run(subject.run)
    if "checkpoint" in subject.facts:
        _, info = load_checkpoint(find_checkpoint(subject.facts["run"]), prefix="method.context_encoder.pos_embed")
        facts |= name_method(build_recipe(info["recipe"], where=str(subject.facts["checkpoint"])))
    return facts


def name_method(recipe: Recipe) -> Row:
    """A recipe's method, and how far it was checked."""
    name = recipe.method.name
    return {"method": name, "checked": PARITY[name].status if name in PARITY else "not checked"}


def describe_run(run: RunFolder) -> Row:
    """What a run folder says of a run, as far as its version recorded it."""
    facts, rows = run.read_run(), run.read_metrics("train")
    recipe = build_recipe(facts["recipe"], where=str(run.run_json))
    parts = facts.get("num_parameters") or {}
    steps = rows[-1]["step"] + 1 if rows else 0
    seen, hardware = steps * recipe.batch_size, facts.get("hardware") or {}
    num_images, labelled = facts.get("num_images"), facts.get("num_classes") is not None
    memory = [row["peak_memory_gb"] for row in rows if "peak_memory_gb" in row]
    return name_method(recipe) | {
        "trained_on": str(facts["data"]),
        "labels": f"those of {num_images:,} images" if labelled else "none",
        "parameters": parts.get("encoder"),
        "trained_parameters": sum(parts.values()) or None,
        "batch_size": recipe.batch_size,
        "steps": steps,
        "images_seen": seen,
        "epochs": seen / num_images if num_images else None,
        "minutes": rows[-1]["trained_s"] / 60 if rows and "trained_s" in rows[-1] else None,
        "images_per_s": statistics.median(row["images_per_s"] for row in rows[1:] or rows) if rows else None,
        "peak_memory_gb": max(memory, default=None),
        "threads": facts.get("threads"),
        "precision": facts.get("precision"),
        "device": hardware.get("cpu") if hardware.get("device") == "cpu" else hardware.get("device"),
        "verdict": read_json(run.verdict_json)["label"] if run.verdict_json.is_file() else None,
    }


def _told(result: Result, trial: Trial, note: Callable[[str], None], place: str) -> Result:
    """Say what came out, and leave it in the run's folder for benchmarks/verdicts.py."""
    seed = "" if result.seed is None else f", seed {result.seed}"
    values = {column: result.value(column) for column in trial.exam.columns}
    scores = [f"{column.title} {'none' if value is None else f'{value:.1f}'}" for column, value in values.items()]
    if trial.entrant.kind == "trained":
        scores += [f"{result.facts['steps']} steps", str(result.facts["verdict"])]
        mains = {task if layers == 1 else f"{task}_{layers}": value for (task, layers), value in values.items()}
        if "knn" in mains:
            outcome = {"variant": result.row, "seed": result.seed, **mains}
            write_json(trial.folder / "outcome.json", {"outcome": outcome, "labels": trial.exam.labels, "test": trial.exam.test})
    note(f"{place}: {result.row}{seed}: {', '.join(scores)}")
    return result
