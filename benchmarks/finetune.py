"""What pretraining is worth to a classifier: fine-tuned from an encoder, from scratch, and a frozen linear probe, by labels.

    python benchmarks/finetune.py RUN --train DATA --test DATA --out runs/finetune [--labels 10 100 1000] [--draws 3] [--jobs 1]

Each draw takes other labelled images and another seed of training. Every fine-tuning is a run folder under OUT and goes on where
it was interrupted. Settings are --recipe auto's. Prints a Markdown table of mean and standard deviation over draws.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from openjepa.commands.evaluate import evaluate_many
from openjepa.commands.finetune import finetune
from openjepa.runs.folder import RunFolder, read_json, write_json

WAYS = ("frozen, linear probe", "from scratch", "fine-tuned")


class Job(NamedTuple):
    """One cell and draw. labels: of each class, 0 for all."""

    way: str
    run: str
    train: str
    test: str
    labels: int
    draw: int
    out: Path


def measure(job: Job) -> float:
    """Accuracy in per cent on the test images."""
    torch.set_num_threads(1)
    done = job.out / "accuracy.json"
    if done.is_file():
        return float(read_json(done))
    train = f"few:{job.labels}:{job.draw}:{job.train}" if job.labels else job.train
    if job.way == "frozen, linear probe":
        (record,) = evaluate_many(job.run, ["context"], [("linear", 1)], train, job.test, seed=job.draw, keep_features=False)
    else:
        spec = job.run if job.way == "fine-tuned" else f"random:{job.run}"
        resume = RunFolder(job.out).exists()
        changes = {} if resume else {"train.seed": job.draw}
        quiet = Console(quiet=True)
        record = finetune(spec, train, job.test, job.out, changes=changes, resume=resume, console=quiet).record
    job.out.mkdir(parents=True, exist_ok=True)
    write_json(done, 100 * record["accuracy"])
    return 100 * float(record["accuracy"])


def main() -> None:
    """Run what is asked and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labels", type=int, nargs="+", default=[10, 100, 1000], help="of each class; 0 is all")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    jobs = [
        Job(
            way,
            asked.run,
            asked.train,
            asked.test,
            labels,
            draw,
            asked.out / f"{way.split(',')[0].replace(' ', '-')}-{labels}-{draw}",
        )
        for labels in asked.labels
        for way in WAYS
        for draw in range(asked.draws)
    ]
    found: dict[tuple[str, int], list[float]] = {}
    with ProcessPoolExecutor(asked.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for job, accuracy in zip(jobs, pool.map(measure, jobs), strict=True):
            found.setdefault((job.way, job.labels), []).append(accuracy)
            print(f"{job.way}, {job.labels or 'all'} labels, draw {job.draw}: {accuracy:.1f}", flush=True)
    print("| labels a class | " + " | ".join(map(str, (labels or "all" for labels in asked.labels))) + " |")
    print("|---" + "|---:" * len(asked.labels) + "|")
    for way in WAYS:
        cells = [found[way, labels] for labels in asked.labels]
        words = [f"{statistics.mean(row):.1f}" + (f" ± {statistics.stdev(row):.1f}" if len(row) > 1 else "") for row in cells]
        print(f"| {way} | " + " | ".join(words) + " |")


if __name__ == "__main__":
    main()
