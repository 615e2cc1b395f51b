"""Training time until 20-NN accuracy passes given marks: our recipe, MAE, the paper's and the brief's, on one machine.

    python benchmarks/time_to_accuracy.py --minutes 10 --seeds 3 --jobs 2 --out runs/time

Same encoder, predictor, images and batch; each recipe gets the same minutes, and --jobs runs share the cores, whichever they
are. Time is training time: steps taken times the run's mean time of a step with its data, without the probes. Writes
OUT/table.md and OUT/time_to_accuracy.png and prints one JSON line. Run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.small_data import FASHION, list_rivals, open_recipe, run_rows
from openjepa.commands.ablate import COLUMNS
from openjepa.commands.rows import slug
from openjepa.commands.trials import Exam
from openjepa.data.sources import name_held_out
from openjepa.engine.precision import pick_device
from openjepa.runs.atomic import write_atomic
from openjepa.runs.environment import describe_machine, describe_versions
from openjepa.runs.folder import RunFolder

MARKS = (70, 75, 80, 85)  # per cent
# 10,000 labels and 2,000 test images: seconds a probe, not minutes.
PROBE = {"health.probe.train": "sample:train", "health.probe.test": "sample:test"}
COLOURS = ("#0b6e4f", "#c8553d", "#e0a458", "#3d5a80", "#8d6a9f")

Curve = list[tuple[float, float]]  # minutes of training, 20-NN accuracy in per cent


def read_curve(run: RunFolder, batch_size: int) -> Curve:
    """The run's probes over training time."""
    speeds = [row["images_per_s"] for row in run.read_metrics("train")]
    step_s = statistics.mean(batch_size / speed for speed in speeds[1:] or speeds)
    probes = run.read_metrics("probe")
    # The first row is the untrained encoder's, and stands at step 0 as a probe after the first step would.
    return [(0.0, 100 * probes[0]["knn"])] + [((row["step"] + 1) * step_s / 60, 100 * row["knn"]) for row in probes[1:]]


def find_time(curve: Curve, mark: float) -> float | None:
    """Minutes until the first probe at or above the mark; None if there is none."""
    return next((minutes for minutes, accuracy in curve if accuracy >= mark), None)


def tabulate(curves: dict[str, list[Curve]], pixels: float) -> str:
    """Minutes to each mark, mean over the seeds that reached it, and how many did."""
    lines = ["| minutes of training until 20-NN reaches | " + " | ".join(f"{mark} %" for mark in MARKS) + " | at the end |"]
    lines.append("|---" + "|---:" * (len(MARKS) + 1) + "|")
    for name, runs in curves.items():
        cells = []
        for mark in MARKS:
            times = [time for curve in runs if (time := find_time(curve, mark)) is not None]
            spread = f" ({min(times):.1f} to {max(times):.1f})" if len(times) > 1 else ""
            reached = "" if len(times) == len(runs) else f", {len(times)} of {len(runs)}"
            cells.append(f"{statistics.mean(times):.1f}{spread}{reached}" if times else "not reached")
        ends = [curve[-1][1] for curve in runs]
        cells.append(f"{statistics.mean(ends):.1f} ± {statistics.stdev(ends):.1f} %" if len(ends) > 1 else f"{ends[0]:.1f} %")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + f"\n\nRaw pixels: {pixels:.1f} %.\n"


def draw(curves: dict[str, list[Curve]], pixels: float, path: Path) -> None:
    """One line a run, one colour a recipe, the marks and raw pixels as lines across."""
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    axes = figure.subplots()
    for (name, runs), colour in zip(curves.items(), COLOURS, strict=True):
        for place, curve in enumerate(runs):
            axes.plot(*zip(*curve, strict=True), color=colour, alpha=0.8, linewidth=1.6, label=name if place == 0 else None)
    for mark in MARKS:
        axes.axhline(mark, color="0.85", linewidth=0.8, zorder=0)
    axes.axhline(pixels, color="0.3", linestyle="--", linewidth=1, label="raw pixels")
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("20-NN accuracy, %")
    axes.set_title("Time to accuracy, one line a seed", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run every recipe with every seed; table, picture, one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--data", default=FASHION)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--probe-every", type=int, default=300, help="steps between probes")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    base = open_recipe(asked.recipe, asked.data)
    budget = PROBE | {"train.length": f"{asked.minutes:g}minutes", "health.probe_every_steps": asked.probe_every}
    variants = list_rivals(base)
    exam = Exam(asked.data, asked.data, name_held_out(asked.data) or asked.data, COLUMNS)
    results = run_rows([row.over(base, budget) for row in variants], exam, asked.seeds, asked.out, asked.jobs)
    folders = {row.name: [RunFolder(asked.out / f"{slug(row.name)}-{seed}") for seed in range(asked.seeds)] for row in variants}
    curves = {
        f"recipe {base.name}" if name == variants[0].name else name: [read_curve(run, base.batch_size) for run in runs]
        for name, runs in folders.items()
    }
    pixels = 100 * folders[variants[0].name][0].read_metrics("probe")[0]["knn_raw_pixels"]
    write_atomic(asked.out / "table.md", tabulate(curves, pixels))
    draw(curves, pixels, asked.out / "time_to_accuracy.png")
    record: dict[str, Any] = {
        "benchmark": "time_to_accuracy", "command": " ".join(["python", *sys.argv]), "unit": "minutes", "marks": MARKS,
        "curves": curves, "final": [[found.row, found.seed, *map(found.value, COLUMNS)] for found in results],
        "machine": describe_machine(pick_device(base.train.device)), "versions": describe_versions(),
    }  # fmt: skip
    print(json.dumps(record))


if __name__ == "__main__":
    main()
