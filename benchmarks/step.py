"""Speed of a training step: images per second, share of the machine's matrix-product peak, memory, and where the time goes.

    python benchmarks/step.py --recipe paper_vit_base_16 --batch 16 --dtype bf16 --steps 5 [--against fp32] [--set KEY=VALUE]

Prints one JSON line. The dtype asked for and the one it is compared with take turns, step by step, on the same images and masks;
the peak is that of large products at the dtype (engine/precision.py), measured between the rounds. FLOPs are those that the
recipe must do (openjepa/methods/cost.py). A GPU is waited for before and after each part, so that its time is its own. Peak
memory is the process's own, Python and libraries included, before the other side is built.
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

from openjepa.data.loader import Batch
from openjepa.engine.precision import DTYPES, measure_peak
from openjepa.engine.prefetch import wait_for
from openjepa.masks import sample_masks
from openjepa.methods.cost import count_flops
from openjepa.recipe.files import build_recipe, load_recipe
from openjepa.recipe.sections import Recipe
from openjepa.runs.environment import describe_machine
from openjepa.training.build import make_trainer
from openjepa.training.trainer import Trainer

CPU = torch.device("cpu")
PARTS = {"encode_targets": "target", "encode_context": "context", "predict": "predictor", "prediction_loss": "loss"}


def make_recipe(name: str, batch: int, changes: list[str]) -> Recipe:
    """A shipped recipe at another batch size, with section.key=value changes."""
    values = load_recipe(name).model_dump()
    values["data"]["batch_size"] = batch
    for change in changes:
        key, _, value = change.partition("=")
        section, _, key = key.partition(".")
        values[section][key] = json.loads(value) if value[:1] in "[0123456789" else value
    return build_recipe(values, where="--set")


def make_batch(recipe: Recipe, step: int, spent: dict[str, float]) -> Batch:
    """Random images and the step's masks; drawing them is timed."""
    size = (recipe.data.batch_size, recipe.data.channels, *recipe.data.size)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(step))
    with timed("mask", spent):
        masks = sample_masks(recipe.mask, recipe.grid, recipe.data.batch_size, seed=0, step=step)
    return Batch(step, images, masks, torch.arange(recipe.data.batch_size))


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
    wrap(trainer.method, "update_target", "momentum")
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
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a recipe's value")
    options = parser.parse_args()
    recipe = make_recipe(options.recipe, options.batch, options.set)
    statistics_of_channels = [0.5] * recipe.data.channels, [0.25] * recipe.data.channels

    trainers = {options.dtype: make_trainer(recipe, *statistics_of_channels, 1000, options.dtype)}
    spent = time_parts(trainers[options.dtype])
    for step in range(2):  # warm-up
        trainers[options.dtype].step(make_batch(recipe, step, spent))
    spent.clear()
    times: dict[str, list[float]] = defaultdict(list)
    losses: dict[str, list[float]] = defaultdict(list)
    flops, peaks, memory_gb = [], [], 0.0
    if options.against:
        memory_gb = peak_memory_gb()
        trainers[options.against] = make_trainer(recipe, *statistics_of_channels, 1000, options.against)
        trainers[options.against].method.load_state_dict(trainers[options.dtype].method.state_dict())
        trainers[options.against].step(make_batch(recipe, 1, spent))
    for step in range(2, 2 + options.steps):
        batch = make_batch(recipe, step, spent)
        peaks.append(measure_peak(trainers[options.dtype].device, options.dtype))
        flops.append(sum(count_flops(trainers[options.dtype].method, batch.masks).values()))
        for name, trainer in trainers.items():
            wait_for(trainer.device)
            started = time.perf_counter()
            record = trainer.step([batch])
            wait_for(trainer.device)
            times[name].append(time.perf_counter() - started)
            losses[name].append(float(record.metrics["loss"]))
    memory_gb = memory_gb or peak_memory_gb()

    step_s, peak = statistics.median(times[options.dtype]), statistics.median(peaks)
    forward = sum(spent.get(part, 0.0) for part in PARTS.values())
    spent["backward"] = spent.pop("gradients") - spent["forward"]
    spent["other forward"] = spent.pop("forward") - forward
    total = sum(times[options.dtype]) + spent["mask"]
    line = {
        "figure": f"training step of {options.recipe}, batch {options.batch}, {options.dtype}",
        "unit": "images/s",
        "images_per_s": round(options.batch / step_s, 3),
        "fraction_of_peak": round(statistics.median(flops) / step_s / peak, 3),
        "peak_memory_gb": round(memory_gb, 2),
        "step_s": {
            "median": round(step_s, 3),
            "lowest": round(min(times[options.dtype]), 3),
            "highest": round(max(times[options.dtype]), 3),
        },
        "peak_gflops": {"median": round(peak / 1e9), "lowest": round(min(peaks) / 1e9), "highest": round(max(peaks) / 1e9)},
        "step_gflop": round(statistics.median(flops) / 1e9, 1),
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
