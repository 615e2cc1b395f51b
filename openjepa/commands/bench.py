"""`openjepa bench`: what a machine can do, how fast a recipe's step and loader run on it, and how long the recipe takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice

import torch

from openjepa.data.depth import settle
from openjepa.data.normalization import find_normalization
from openjepa.data.reading import reading_of
from openjepa.data.sources import ImageSource, open_source
from openjepa.engine.precision import choose_precision, measure_peak, pick_device
from openjepa.engine.threads import use_threads
from openjepa.methods.make import make_method
from openjepa.recipe.sections import Recipe
from openjepa.runs.environment import describe_machine
from openjepa.training.build import check_views, count_classes, make_batches, measure_step, plan_steps
from openjepa.training.cost import count_flops
from openjepa.training.memory import settle_batch_size
from openjepa.training.prepare import count_threads
from openjepa.training.speed import describe_speed, in_words

MEASURED_S = 20.0  # how long steps are timed
LOADER_S = 5.0  # and the loader
ENDLESS = 10**9  # steps
WARMUP_BATCHES = 2  # before the loader is timed: its workers start


def measure_machine(data: str, recipe: Recipe) -> Iterator[str]:
    """Findings, line by line as they are made. ValueError if the data cannot be opened or the masks cannot be drawn."""
    check_views(recipe)
    settings, source, _ = settle(recipe.data, open_source(data, recipe.data.channels, reading_of(recipe.data)))
    recipe = recipe.model_copy(update={"data": settings})
    recipe = settle_batch_size(recipe, source)
    device = pick_device(recipe.train.device)
    precision = choose_precision(device, recipe.train.precision)
    machine = describe_machine(device)
    yield f"machine: {machine['cpu']}, {machine['num_cores']} cores, {machine['memory_gb']:.0f} GB, device {machine['device']}"
    peak = measure_peak(device, precision)
    yield f"peak of matrix products: {peak / 1e9:,.0f} GFLOP/s in {precision}, {measure_peak(device, 'fp32') / 1e9:,.0f} in fp32"

    mean, std = find_normalization(recipe.data, source)
    batch = recipe.batch_size
    with use_threads(count_threads(recipe, source, mean, std)):
        step = measure_step(recipe, source, mean, std, MEASURED_S)
    with torch.device("meta"):
        flops = batch * count_flops(make_method(recipe, count_classes(recipe, source)), recipe)
    yield f"step of {recipe.name}, {batch} images: {step.seconds:.3g} s for {flops / 1e9:,.3g} GFLOP"
    yield f"loader alone, {recipe.data.workers} workers: {measure_loader(recipe, source):,.0f} images/s"
    row = {
        "images_per_s": batch / step.seconds,
        "fraction_of_peak": flops / step.seconds / peak,
        "data_wait_frac": step.data_wait_frac,
    }
    yield describe_speed([row], workers=recipe.data.workers, num_cores=machine["num_cores"], device=device.type)
    steps = plan_steps(recipe, len(source), step.seconds)
    yield f"{steps:,} steps of the recipe on {len(source):,} images: {in_words(steps * step.seconds)}"


def measure_loader(recipe: Recipe, source: ImageSource) -> float:
    """Images per second of the training loader when nothing else runs."""
    batches = make_batches(recipe, source, 0, ENDLESS)
    for _ in islice(batches, WARMUP_BATCHES):
        pass
    started, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < LOADER_S or count == 0:
        next(batches)
        count += recipe.batch_size
    batches.close()
    return count / spent
