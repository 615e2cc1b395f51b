"""The same frozen encoders by every probe: 20-NN, linear (last layer, last four layers) and attentive, three seeds each.

    python benchmarks/probes.py sample --out runs/probes/sample [--steps 400] [--seeds 3] [--jobs 2]
    python benchmarks/probes.py scenes --data scenes/train --test scenes/test --out runs/probes/scenes

On the embedded sample: the demo (features) and mae_demo (normalised pixels). On a folder of colour images: I-JEPA by small_1k's
masks and regulariser (features), and small_1k (pixels). Both beside the untrained encoder and raw pixels, of which the attentive
probe sees raw patches. Every run is a run folder under OUT and goes on where it was interrupted. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from openjepa.commands.evaluate import evaluate_many
from openjepa.commands.pretrain import pretrain
from openjepa.evals.encoders import Candidate
from openjepa.recipe.edit import with_changes
from openjepa.recipe.files import load_recipe
from openjepa.runs.folder import RunFolder, read_json, write_json

TASKS = {("knn", 1): "20-NN", ("linear", 1): "linear", ("linear", 4): "linear, last 4", ("attentive", 1): "attentive"}
IJEPA = {"method.name": "ijepa", "method.momentum.start": 0.99}
RECIPES: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "sample": {"features": ("demo", {}), "MAE": ("mae_demo", {})},
    "scenes": {"features": ("small_1k", IJEPA), "MAE with VICReg": ("small_1k", {})},
}
Job = tuple[str, str, dict[str, Any], int, str, str, Path, list[Candidate]]


def measure(job: Job) -> dict[str, dict[str, float]]:
    """Train one run, or go on with it, and probe the encoders that are asked for: {encoder: {column: per cent}}."""
    name, recipe_name, changes, seed, train, test, folder, encoders = job
    torch.set_num_threads(1)
    done = folder / "probes.json"
    if done.is_file():
        found: dict[str, dict[str, float]] = read_json(done)
        return found
    recipe = with_changes(load_recipe(recipe_name), changes | {"train.seed": seed}, name)
    pretrain(train, recipe, folder, resume=RunFolder(folder).exists(), console=Console(quiet=True))
    rows: dict[str, dict[str, float]] = {}
    for record in evaluate_many(folder, encoders, list(TASKS), train, test, keep_features=False):
        column = TASKS[record["task"], record["layers"]]
        rows.setdefault(record["encoder"], {})[column] = 100 * record[record["main"]]
    write_json(done, rows)
    return rows


def tabulate(outcomes: dict[str, list[dict[str, float]]]) -> str:
    """A Markdown table of mean and standard deviation over seeds."""
    lines = ["| encoder | " + " | ".join(TASKS.values()) + " | seeds |", "|---" + "|---:" * (len(TASKS) + 1) + "|"]
    for name, rows in outcomes.items():
        cells = []
        for column in TASKS.values():
            values = [row[column] for row in rows if column in row]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "")
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {len(rows)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is asked and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", choices=list(RECIPES))
    parser.add_argument("--data", default="sample:train")
    parser.add_argument("--test", default="sample:test")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    jobs: list[Job] = []
    for seed in range(asked.seeds):
        for place, (name, (recipe, changes)) in enumerate(RECIPES[asked.images].items()):
            encoders: list[Candidate] = ["context"]
            if place == 0:  # all recipes of a seed start from the same encoder, and pixels know no seed
                encoders += ["random"] if seed else ["random", "pixels"]
            folder = asked.out / f"{name.replace(' ', '-')}-{seed}"
            length = {"train.length": f"{asked.steps}steps"}
            jobs.append((name, recipe, changes | length, seed, asked.data, asked.test, folder, encoders))
    asked.out.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, list[dict[str, float]]] = {}
    with ProcessPoolExecutor(asked.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for job, rows in zip(jobs, pool.map(measure, jobs), strict=True):
            outcomes.setdefault(job[0], []).append(rows["context"])
            for encoder, words in (("random", "untrained"), ("pixels", "raw pixels")):
                if encoder in rows:
                    outcomes.setdefault(words, []).append(rows[encoder])
    print(tabulate(outcomes))


if __name__ == "__main__":
    main()
