"""What pretraining is worth to a detector: trained from an encoder, from scratch, and on the frozen encoder, by annotated images.

    python benchmarks/detection.py RUN --train scenes/train --test scenes/test --out runs/detection [--task instances]
        [--images 100 500 5000] [--seeds 3] [--jobs 1] [KEY=VALUE ...]

Each seed draws other images and trains with another seed. Every training is a run folder under OUT: what is interrupted goes on
where it was, and what is done is read. Settings are --recipe auto's with the KEY=VALUE given. Prints a Markdown table of AP50 of
boxes and, for instances, of masks: mean and standard deviation over seeds. Scenes: openjepa make-scenes scenes --train 5000
--test 1000 --size 64.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from openjepa.commands.finetune import finetune
from openjepa.recipe.edit import read_assignments
from openjepa.runs.folder import RunFolder, read_json, write_json

WAYS = ("pretrained", "from scratch", "frozen")
SCORES = {"detection": ("box_AP50",), "instances": ("box_AP50", "mask_AP50")}


class Job(NamedTuple):
    """One cell and seed."""

    way: str
    run: str
    task: str
    train: str
    test: str
    images: int
    seed: int
    out: Path
    changes: dict[str, Any]


def measure(job: Job) -> dict[str, float]:
    """The scores on the test images, in per cent by name."""
    torch.set_num_threads(1)
    done = job.out / "scores.json"
    if done.is_file():
        return {name: float(value) for name, value in read_json(done).items()}
    spec = f"random:{job.run}" if job.way == "from scratch" else job.run
    train = f"few:{job.images}:{job.seed}:{job.train}"
    resume = RunFolder(job.out).exists()
    changes = {} if resume else job.changes | {"train.seed": job.seed, "method.frozen": job.way == "frozen"}
    quiet = Console(quiet=True)
    record = finetune(spec, train, job.test, job.out, job.task, changes=changes, resume=resume, console=quiet).record
    scores = {name: 100 * float(record["scores"][name]["value"]) for name in SCORES[job.task]}
    write_json(done, scores)
    return scores


def tabulate(found: dict[tuple[str, int], list[dict[str, float]]], counts: list[int], names: tuple[str, ...]) -> str:
    """A Markdown table: ways down, numbers of annotated images across."""
    lines = ["| annotated images | " + " | ".join(f"{count:,}" for count in counts) + " |", "|---" + "|---:" * len(counts) + "|"]
    for name in names:
        for way in WAYS:
            cells = []
            for count in counts:
                values = [scores[name] for scores in found[way, count]]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread}")
            lines.append(f"| {name}, {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is asked and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", choices=list(SCORES), default="instances")
    parser.add_argument("--images", type=int, nargs="+", default=[100, 500, 5000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_intermixed_args()
    changes = read_assignments(asked.changes)
    jobs = [
        Job(way, asked.run, asked.task, asked.train, asked.test, count, seed,
            asked.out / f"{asked.task}-{way.replace(' ', '-')}-{count}-{seed}", changes)
        for count in asked.images
        for way in WAYS
        for seed in range(asked.seeds)
    ]  # fmt: skip
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    with ProcessPoolExecutor(asked.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for job, scores in zip(jobs, pool.map(measure, jobs), strict=True):
            found.setdefault((job.way, job.images), []).append(scores)
            words = ", ".join(f"{name} {value:.1f}" for name, value in scores.items())
            print(f"{job.way}, {job.images:,} images, seed {job.seed}: {words}", flush=True)
    print(tabulate(found, asked.images, SCORES[asked.task]))


if __name__ == "__main__":
    main()
