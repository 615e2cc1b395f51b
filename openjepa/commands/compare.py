"""Recipes side by side: same data and budget, several seeds each, probed alike, in one table with spread and paired differences.

A variant is a base recipe with some keys changed. Every variant and seed is a run folder of its own under one folder, so that
what was interrupted goes on, and what is there already is not computed twice. Seeds are the outer loop: a table fills evenly.
Left out: choosing a winner; with three seeds the spread is for the reader to see.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from openjepa.commands.evaluate import evaluate_many
from openjepa.commands.pretrain import pretrain
from openjepa.data.reading import keep_levels
from openjepa.data.sources import canonical_spec, open_labelled
from openjepa.evals.encoders import Candidate
from openjepa.recipe.check import build_recipe
from openjepa.recipe.edit import with_changes
from openjepa.recipe.sections import Recipe
from openjepa.runs.folder import RunFolder, read_json, write_json
from openjepa.runs.machine import count_cores
from openjepa.weights.load import load_encoder

MOST_PIXELS = 3 * 64 * 64  # numbers in an image: 3,400 such images took the linear probe 11 s, and 224 px are 12 times as many
# Scores of a RunResult: (task, layers). The paper's linear probe takes the last layer or the last four (2301.08243, A.2).
COLUMNS = {"knn": ("knn", 1), "linear": ("linear", 1), "linear_4": ("linear", 4)}


@dataclass(frozen=True)
class Variant:
    """A row of a comparison: what it is called and which dotted recipe keys it changes."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One run of a comparison: a variant, a seed, what it is trained and probed on, and where it goes."""

    variant: str
    seed: int
    recipe: Recipe
    train: str
    labels: str
    test: str
    folder: Path
    threads: int


@dataclass(frozen=True)
class RunResult:
    """What one run gave. Accuracies in per cent, of the context encoder; linear_4 of its last four layers.

    They are None for a run that stopped because its loss was no longer finite.
    """

    variant: str
    seed: int
    knn: float | None
    linear: float | None
    linear_4: float | None
    images_per_s: float | None
    steps: int
    verdict: str


def compare(
    variants: Sequence[Variant],
    base: Recipe,
    train: str,
    test: str,
    *,
    seeds: int,
    out: Path,
    labels: str | None = None,
    jobs: int = 1,
    note: Callable[[str], None] = lambda _: None,
) -> list[RunResult]:
    """Run every variant with seeds 0, 1, ... and give what came out, by seed, then variant.

    train: images, which the runs see without labels; labels: labelled images to fit the probes on, those of train if not given;
    test: what the probes are tested on. out: the folder of run folders NAME-SEED. jobs: runs at the same time, which share the
    machine's cores. note is told of each run. Raises ValueError if a change does not fit or the folder holds runs of
    other settings.
    """
    labels = labels or train
    for spec in (labels, test):
        open_labelled(spec, base.data.channels)
    threads = max(min(count_cores() // jobs, torch.get_num_threads()), 1)  # OMP_NUM_THREADS may say fewer
    todo = []
    for seed in range(seeds):
        for variant in variants:
            recipe = with_changes(base, variant.changes | {"train.seed": seed}, variant.name)
            folder = out / f"{slug(variant.name)}-{seed}"
            todo.append(Job(variant.name, seed, recipe, train, labels, test, folder, threads))
    if jobs == 1:
        return [_told(run_job(job), note, place, len(todo)) for place, job in enumerate(todo, 1)]
    # A fresh interpreter each: forked PyTorch threads hang.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(run_job, job) for job in todo]
        for place, done in enumerate(as_completed(futures), 1):
            _told(done.result(), note, place, len(todo))
        return [future.result() for future in futures]


def run_job(job: Job) -> RunResult:
    """Train, or go on with, one run, probe it, and give the outcome; a finished one is read from its folder."""
    folder = RunFolder(job.folder)
    done = job.folder / "outcome.json"
    if done.is_file():
        found, recorded = read_json(done), folder.read_run()
        recipe = build_recipe(recorded["recipe"], where=str(folder.run_json))
        asked = job.recipe.model_copy(update={"data": keep_levels(job.recipe.data, recipe.data)})
        specs = [canonical_spec(str(spec)) for spec in (recorded["data"], found.get("labels"), found.get("test"))]
        if recipe != asked or specs != [canonical_spec(spec) for spec in (job.train, job.labels, job.test)]:
            raise ValueError(f"{job.folder} holds a run of other settings; choose another folder")
        return RunResult(**found["outcome"])
    torch.set_num_threads(job.threads)
    try:
        label = pretrain(job.train, job.recipe, job.folder, resume=folder.exists(), console=Console(quiet=True)).label
        scores = _probe(job.folder, "context", job.labels, job.test)
    except ArithmeticError:
        label, scores = "diverging", dict.fromkeys(COLUMNS)
    rows = folder.read_metrics("train")
    speed = statistics.median(row["images_per_s"] for row in rows[1:] or rows)
    outcome = RunResult(
        variant=job.variant, seed=job.seed, **scores, images_per_s=speed, steps=folder.read_run()["total_steps"], verdict=label
    )
    write_json(done, {"outcome": asdict(outcome), "labels": job.labels, "test": job.test})
    return outcome


def _probe(folder: Path, encoder: Candidate, labels: str, test: str) -> dict[str, float | None]:
    """Scores in per cent by the names of COLUMNS of a run's encoder; None for what it does not have or takes too long."""
    trained = load_encoder(folder)
    depth = 1 if encoder == "pixels" else len(trained.vit.blocks)
    tasks = [(task, layers) for task, layers in COLUMNS.values() if layers <= depth]
    if encoder == "pixels" and trained.size[0] * trained.size[1] * trained.channels > MOST_PIXELS:
        tasks = [("knn", 1)]  # a linear probe of raw pixels would take longer than the runs
    records = evaluate_many(folder, [encoder], tasks, labels, test, keep_features=False)
    found = {(record["task"], record["layers"]): 100 * record[record["main"]] for record in records}
    return {name: found.get(column) for name, column in COLUMNS.items()}


def measure_baselines(folders: Sequence[Path], labels: str, test: str) -> list[RunResult]:
    """Raw pixels, and the untrained encoder of each finished run, probed as the runs are. folders: of seeds 0, 1, ..."""
    baselines: list[tuple[Candidate, str, int]] = [("pixels", "raw pixels", 0)]
    baselines += [("random", "untrained encoder", seed) for seed in range(len(folders))]
    found = []
    for candidate, name, seed in baselines:
        scores = _probe(folders[seed], candidate, labels, test)
        found.append(RunResult(variant=name, seed=seed, **scores, images_per_s=None, steps=0, verdict=""))
    return found


def tabulate(outcomes: Sequence[RunResult], reference: str, extra: Mapping[str, Sequence[str]] | None = None) -> str:
    """A Markdown table, a row a variant: mean and spread over seeds, and the paired difference from the reference's runs.

    Spread is the standard deviation over seeds; a difference is taken seed by seed and carries its own. extra: further columns,
    a heading and one cell a variant each, in order of first appearance.
    """
    names = list(dict.fromkeys(outcome.variant for outcome in outcomes))
    by_name = {name: sorted((o for o in outcomes if o.variant == name), key=lambda o: o.seed) for name in names}
    extra = extra or {}
    head = ["", "20-NN", "linear", "linear, last 4 layers", f"linear against {reference}", "speed", "seeds", "verdicts", *extra]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    anchor = {outcome.seed: outcome for outcome in by_name[reference]}
    for place, name in enumerate(names):
        rows = by_name[name]
        pairs = [(row, anchor[row.seed]) for row in rows if row.seed in anchor]
        paired = [row.linear - other.linear for row, other in pairs if row.linear is not None and other.linear is not None]
        speeds = [row.images_per_s / other.images_per_s for row, other in pairs if row.images_per_s and other.images_per_s]
        labels = {row.verdict: sum(other.verdict == row.verdict for other in rows) for row in rows if row.verdict}
        cells = [
            name,
            _mean_and_spread([row.knn for row in rows]),
            _mean_and_spread([row.linear for row in rows]),
            _mean_and_spread([row.linear_4 for row in rows]),
            "" if name == reference else _mean_and_spread(paired, "+.1f"),
            f"{statistics.mean(speeds):.2f}" if speeds else "",
            str(len(rows)),
            ", ".join(f"{count} {label}" for label, count in labels.items()),
            *(column[place] if place < len(column) else "" for column in extra.values()),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def slug(name: str) -> str:
    """A variant's name as part of a folder's name."""
    return "-".join("".join(letter if letter.isalnum() or letter == "." else " " for letter in name).split())


def _mean_and_spread(measured: Sequence[float | None], form: str = ".1f") -> str:
    values = [value for value in measured if value is not None]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{spread}"


def _told(outcome: RunResult, note: Callable[[str], None], place: int, total: int) -> RunResult:
    knn, linear = ("none" if value is None else f"{value:.1f}" for value in (outcome.knn, outcome.linear))
    note(
        f"{place} of {total}: {outcome.variant}, seed {outcome.seed}: 20-NN {knn}, linear {linear}, {outcome.steps} steps, "
        f"{outcome.verdict}"
    )
    return outcome
