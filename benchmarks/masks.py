"""Speed of the mask samplers: images per second on one core, one JSON line for each sampler.

    python benchmarks/masks.py [--grid 14 14] [--batch 256] [--seconds 3]

The figure is images per second of CPU time of one thread, median over rounds, so that other work on the machine counts little;
wall_value is the same by the clock. Scales are the paper's for multiblock and the brief's for the rest.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from openjepa.masks import sample_masks
from openjepa.recipe.views import Mask

SEED = Mask(
    sampler="union",
    num_contexts=4,
    context_scale=(0.15, 0.2),
    context_aspect=(0.75, 1.5),
    num_targets=2,
    target_scale=(0.1, 0.15),
)
CASES = {
    "multiblock": Mask(),
    "multiblock released": Mask(fidelity="released"),
    "union": SEED,
    "random": SEED.model_copy(update={"sampler": "random"}),
    "block": SEED.model_copy(update={"sampler": "block"}),
}
BATCHES_PER_ROUND = 10


def measure_rates(settings: Mask, grid: tuple[int, int], batch: int, seconds: float) -> tuple[float, float, int]:
    """Images per second of CPU time and by the clock (medians over rounds), and the number of rounds."""
    cpu_rates, wall_rates = [], []
    sample_masks(settings, grid, batch, seed=0, step=0)
    end, step = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or len(cpu_rates) < 3:
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(BATCHES_PER_ROUND):
            sample_masks(settings, grid, batch, seed=0, step=step)
            step += 1
        cpu_rates.append(BATCHES_PER_ROUND * batch / (time.process_time() - cpu))
        wall_rates.append(BATCHES_PER_ROUND * batch / (time.perf_counter() - wall))
    return statistics.median(cpu_rates), statistics.median(wall_rates), len(cpu_rates)


def name_cpu() -> str:
    """The processor's name as Linux gives it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Measure every sampler and print its line."""
    parser = argparse.ArgumentParser(description="Images per second of every mask sampler, on one core.")
    parser.add_argument("--grid", type=int, nargs=2, default=(14, 14), help="patches down and across")
    parser.add_argument("--batch", type=int, default=256, help="images drawn at once")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each sampler")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, settings in CASES.items():
        rate, wall_rate, rounds = measure_rates(settings, tuple(options.grid), options.batch, options.seconds)
        print(
            json.dumps(
                {
                    "figure": f"mask sampling, {name}, {options.grid[0]} x {options.grid[1]} patches, batch {options.batch}",
                    "unit": "images/s of one core's CPU time",
                    "value": round(rate),
                    "wall_value": round(wall_rate),
                    "rounds": rounds,
                    "command": f"python {shlex.join(sys.argv)}",
                    "cpu": name_cpu(),
                    "versions": {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
                    "settings": settings.model_dump(),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
