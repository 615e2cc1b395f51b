"""What `make demo` shows: pretrain on the embedded sample, compare with raw pixels and the untrained encoder, report."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from openjepa.commands.evaluate import evaluate_many
from openjepa.commands.pretrain import pretrain
from openjepa.commands.report import write_report
from openjepa.evals import TASKS
from openjepa.evals.encoders import Candidate
from openjepa.recipe.check import build_recipe
from openjepa.recipe.edit import changed_keys, with_changes
from openjepa.recipe.files import load_recipe
from openjepa.runs.folder import Row, RunFolder
from openjepa.runs.lock import lock_run

TRAIN, TEST = "sample:train", "sample:test"
MARK = ".demo"  # a file that says that a folder is a demo's
COLUMNS = {("knn", 1): TASKS["knn"].title, ("linear", 1): "Linear, last layer", ("linear", 4): "Linear, last 4 layers"}
NAMES: dict[Candidate, str] = {
    "pixels": "raw pixels",
    "random": "random encoder",
    "context": "trained context encoder",
    "target": "trained target encoder",
}


def run_demo(out: Path, minutes: float | None) -> None:
    """Run the demo into a folder; minutes replaces the recipe's training time. An earlier demo there is replaced.

    ValueError if the folder holds something that is not a demo run.
    """
    started, console = time.perf_counter(), Console(soft_wrap=True)
    _make_room(out)
    recipe = load_recipe("demo")
    if minutes is not None:
        recipe = with_changes(recipe, {"train.length": f"{minutes:g}minutes"})
    minutes = recipe.train.run_length.amount
    console.print(f"Pretraining I-JEPA on 10,000 embedded images for {minutes:g} minutes, without labels.")
    verdict = pretrain(TRAIN, recipe, out, console=console)
    console.print("Evaluating: 20 nearest neighbours and linear probes, 10,000 labelled training and 2,000 test images.")
    records = evaluate_many(out, list(NAMES), list(COLUMNS), TRAIN, TEST, device="cpu", note=console.print)
    page = write_report(out)
    console.print(make_table(records))
    console.print(f"[bold]Verdict: {verdict.label}.[/bold] {verdict.reason} {verdict.advice}", highlight=False)
    console.print(compare(records), highlight=False)
    console.print(f"Took {(time.perf_counter() - started) / 60:.1f} minutes. Look at:")
    for path, what in (
        (page, "the report: open it in a browser"),
        (out / "metrics.jsonl", "every number, one JSON line a row"),
        (out / "checkpoints", "the encoders: openjepa.load_encoder(folder)"),
    ):
        console.print(f"  {path}  {what}", highlight=False, markup=False)


def make_table(records: list[Row]) -> Table:
    """Accuracy of each candidate by each task, with its interval."""
    table = Table("", *COLUMNS.values(), title="Accuracy on the 2,000 test images (95 % interval)")
    for name, words in NAMES.items():
        cells = {(record["task"], record["layers"]): record for record in records if record["encoder"] == name}
        table.add_row(words, *(_cell(cells[column]) if column in cells else "" for column in COLUMNS))
    return table


def compare(records: list[Row]) -> str:
    """One sentence: how far the trained context encoder is from the untrained one and from raw pixels, in points."""
    accuracy = {(record["encoder"], record["task"], record["layers"]): 100 * record["accuracy"] for record in records}

    def lead(task: str, layers: int, other: str) -> str:
        theirs = accuracy[other, task, 1 if other == "pixels" else layers]
        return f"{accuracy['context', task, layers] - theirs:+.1f}"

    parts = [
        f"{words} {lead(task, layers, 'random')} points over the random encoder, {lead(task, layers, 'pixels')} over raw pixels"
        for (task, layers), words in COLUMNS.items()
    ]
    return f"Trained context encoder: {'; '.join(parts)}."


def _cell(record: Row) -> str:
    low, high = record["interval"]
    return f"{record['accuracy']:.1%}  ({low:.1%} - {high:.1%})"


def _make_room(out: Path) -> None:
    """An empty, marked folder in place of an earlier demo; ValueError if the folder is something else."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not (out / MARK).is_file() or not _is_as_it_was(RunFolder(out)):
            raise ValueError(f"{out} exists and is not an earlier demo; move it away or choose another --out")
        with lock_run(out):
            shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()


def _is_as_it_was(folder: RunFolder) -> bool:
    """Whether a demo's folder holds no more than a demo: a run that has gone on with other values is somebody's work."""
    if not folder.exists():
        return True
    recorded = build_recipe(folder.read_run()["recipe"], where=str(folder.run_json))
    return changed_keys(load_recipe("demo"), recorded).keys() <= {"train.length"}
