"""Speed of a training step: images per second, share of the machine's matrix-product peak, memory, and where the time goes.

    python benchmarks/step.py --recipe paper_vit_base_16 --batch 16 --dtype bf16 --steps 5 [--against fp32] [--set KEY=VALUE]

Prints one JSON line. The dtype asked for and the one it is compared with take turns, step by step, on the same images and masks;
the peak is that of large products at the dtype (engine/precision.py), measured between the rounds. FLOPs are those of the
recipe's masks on the average (openjepa/training/cost.py). A GPU is waited for before and after each part, so that its time is its
own. Peak memory is the process's own, Python and libraries included, before the other side is built.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shlex
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch

from openjepa.data.batch import Batch, Views
from openjepa.engine.precision import DTYPES, measure_peak
from openjepa.engine.prefetch import wait_for
from openjepa.masks import sample_masks
from openjepa.recipe.edit import read_assignments, with_changes
from openjepa.recipe.files import load_recipe
from openjepa.recipe.sections import Recipe
from openjepa.runs.environment import describe_machine
from openjepa.training.build import list_groups, make_trainer
from openjepa.training.cost import count_flops
from openjepa.training.trainer import Trainer

CPU = torch.device("cpu")
NUM_CLASSES = 1000  # of a method that needs labels
PARTS = {"make_targets": "target", "encode_context": "context", "predict": "predictor", "prediction_loss": "loss"}


def make_recipe(name: str, batch: int, changes: list[str]) -> Recipe:
    """A shipped recipe at another batch size, with KEY=VALUE changes."""
    return with_changes(load_recipe(name), {"data.batch_size": batch} | read_assignments(changes))


def make_batch(recipe: Recipe, step: int, spent: dict[str, float]) -> Batch:
    """Random images and the step's masks; drawing them is timed."""
    count, channels, generator = recipe.batch_size, recipe.data.channels, torch.Generator().manual_seed(step)
    groups = {}
    for place, (name, group, size, grid) in enumerate(list_groups(recipe)):
        images = torch.randint(0, 256, (count, group.count, channels, *size), dtype=torch.uint8, generator=generator)
        masks = None
        if group.mask is not None:
            with timed("mask", spent):
                masks = sample_masks(group.mask, grid, count * group.count, seed=0, step=step, group=place)
        groups[name] = Views(images, masks)
    return Batch(step, groups, torch.arange(count), torch.arange(count) % NUM_CLASSES)


@contextmanager
def timed(part: str, spent: dict[str, float], device: torch.device = CPU) -> Iterator[None]:
    """Add the seconds inside to a part."""
    wait_for(device)
    started = time.perf_counter()
    yield
    wait_for(device)
    spent[part] += time.perf_counter() - started


def time_parts(trainer: Trainer) -> dict[str, float]:
    """Seconds by part, filled as the trainer steps; the backward pass is what the gradients take beside the forward parts."""
    spent: dict[str, float] = defaultdict(float)

    def wrap(holder: Any, name: str, part: str) -> None:
        function: Callable[..., Any] = getattr(holder, name)

        def call(*arguments: Any, **named: Any) -> Any:
            with timed(part, spent, trainer.device):
                return function(*arguments, **named)

        setattr(holder, name, call)

    for name, part in PARTS.items():
        if hasattr(trainer.method, name):
            wrap(trainer.method, name, part)
    wrap(trainer.method, "forward", "forward")
    wrap(trainer, "accumulate_gradients", "gradients")
    wrap(trainer.optimizer, "step", "optimizer")
    wrap(trainer.method, "after_step", "momentum")
    return spent


def peak_memory_gb() -> float:
    """Largest resident size of this process so far, in GB of 2^30 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Measure and print the line."""
    parser = argparse.ArgumentParser(description="Speed of a training step.")
    parser.add_argument("--recipe", default="paper_vit_base_16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--against", choices=sorted(DTYPES), default=None, help="another dtype, step by step in turn")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a recipe's value")
    options = parser.parse_args()
    recipe = make_recipe(options.recipe, options.batch, options.set)
    statistics_of_channels = [0.5] * recipe.data.channels, [0.25] * recipe.data.channels

    trainers = {options.dtype: make_trainer(recipe, *statistics_of_channels, 1000, options.dtype, NUM_CLASSES)}
    spent = time_parts(trainers[options.dtype])
    for step in range(2):  # warm-up
        trainers[options.dtype].step([make_batch(recipe, step, spent)])
    spent.clear()
    times: dict[str, list[float]] = defaultdict(list)
    losses: dict[str, list[float]] = defaultdict(list)
    peaks, memory_gb = [], 0.0
    if options.against:
        memory_gb = peak_memory_gb()
        trainers[options.against] = make_trainer(recipe, *statistics_of_channels, 1000, options.against, NUM_CLASSES)
        trainers[options.against].method.load_state_dict(trainers[options.dtype].method.state_dict())
        trainers[options.against].step([make_batch(recipe, 1, spent)])
    for step in range(2, 2 + options.steps):
        batch = make_batch(recipe, step, spent)
        peaks.append(measure_peak(trainers[options.dtype].device, options.dtype))
        for name, trainer in trainers.items():
            wait_for(trainer.device)
            started = time.perf_counter()
            record = trainer.step([batch])
            wait_for(trainer.device)
            times[name].append(time.perf_counter() - started)
            losses[name].append(float(record.metrics["loss"]))
    memory_gb = memory_gb or peak_memory_gb()
    flops = options.batch * count_flops(trainers[options.dtype].method, recipe)

    step_s, peak = statistics.median(times[options.dtype]), statistics.median(peaks)
    forward = sum(spent.get(part, 0.0) for part in PARTS.values())
    spent["backward"] = spent.pop("gradients") - spent["forward"]
    spent["other forward"] = spent.pop("forward") - forward
    total = sum(times[options.dtype]) + spent["mask"]
    line = {
        "figure": f"training step of {options.recipe}, batch {options.batch}, {options.dtype}",
        "unit": "images/s",
        "images_per_s": round(options.batch / step_s, 3),
        "fraction_of_peak": round(flops / step_s / peak, 3),
        "peak_memory_gb": round(memory_gb, 2),
        "step_s": {
            "median": round(step_s, 3),
            "lowest": round(min(times[options.dtype]), 3),
            "highest": round(max(times[options.dtype]), 3),
        },
        "peak_gflops": {"median": round(peak / 1e9), "lowest": round(min(peaks) / 1e9), "highest": round(max(peaks) / 1e9)},
        "step_gflop": round(flops / 1e9, 1),
        "shares": {part: round(seconds / total, 4) for part, seconds in sorted(spent.items(), key=lambda item: -item[1])},
        "loss": [round(loss, 5) for loss in losses[options.dtype]],
    }
    if options.against:
        other_s = statistics.median(times[options.against])
        ratios = [other / ours for ours, other in zip(times[options.dtype], times[options.against], strict=True)]
        line |= {
            "against": options.against,
            "against_images_per_s": round(options.batch / other_s, 3),
            "against_loss": [round(loss, 5) for loss in losses[options.against]],
            "ratio": {
                "median": round(statistics.median(ratios), 2),
                "lowest": round(min(ratios), 2),
                "highest": round(max(ratios), 2),
            },
        }
    machine = describe_machine(trainers[options.dtype].device)
    line |= {
        "steps": options.steps,
        "threads": torch.get_num_threads(),
        "command": f"python {shlex.join(sys.argv)}",
        "machine": machine,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__},
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
