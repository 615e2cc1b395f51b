"""What a recipe describes, built: the method, the trainer, the batches, the length of the run. session.py puts them together."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from typing import NamedTuple

import torch
from torch import nn

from openjepa.data.annotations import AnnotatedSource
from openjepa.data.batch import Batch
from openjepa.data.loader import GroupSettings, StreamSettings, training_batches
from openjepa.data.object_views import ObjectSettings
from openjepa.data.sources import ImageSource, describe_unlabelled
from openjepa.engine.fp8 import convert_to_fp8, require_fp8
from openjepa.engine.optim import make_optimizer
from openjepa.engine.precision import Precision, choose_precision, make_scaler, pick_device
from openjepa.engine.prefetch import wait_for
from openjepa.engine.schedule import warmup_cosine
from openjepa.engine.world import alone, current
from openjepa.masks import check_masks
from openjepa.methods import Method
from openjepa.methods.make import make_method
from openjepa.nn.predictor import Predictor
from openjepa.nn.vit import VisionTransformer, compile_layers
from openjepa.recipe.edit import with_changes
from openjepa.recipe.methods import Detection
from openjepa.recipe.sections import Recipe
from openjepa.training.trainer import Schedules, Trainer

MEASURED_STEPS = 30  # steps timed for a run of some minutes, at most
WARMUP_STEPS = 3  # steps before the timing starts: caches, thread pools, data workers
COMPILING_STEPS = 20  # steps of a compiled recipe at the least: they meet nearly all of its shapes
COMPILING_TIMES = 19  # as long as the measuring: with it, the whole length of a run that measures for a twentieth of that
MOST_STEPS = 1000  # of a compiled recipe, which end sooner by the clock
SETTLED_TIMES = 2.0  # the fastest step: what takes longer has compiled something
PAD_MULTIPLE = 16  # tokens; compiled layers then meet about ten shapes in a run (docs/performance.md)
LEAST_TIMED = 2  # images in a micro-batch: some methods compare them
RESERVED_FRAC = 0.03  # share of the minutes kept for health measurements and checkpoints
MOST_PLANNED = 10**9  # steps of the batches of a run that minutes end


def make_schedules(recipe: Recipe, method: Method, total_steps: int) -> Schedules:
    """The learning rate over total_steps, and the method's own rates."""
    optim = recipe.optim
    scale = recipe.batch_size / optim.lr_batch_size if optim.lr_batch_size else 1.0
    warmup_steps = round(total_steps * optim.warmup_frac)

    def lr(place: float) -> float:
        return scale * warmup_cosine(place, total_steps, warmup_steps, optim.start_lr, optim.lr, optim.final_lr)

    return Schedules(total_steps, {"lr": lr} | method.schedules(total_steps))


def make_trainer(
    recipe: Recipe,
    mean: list[float],
    std: list[float],
    total_steps: int,
    precision: Precision,
    num_classes: int | None = None,
) -> Trainer:
    """A method with fresh weights, a function of train.seed alone, and everything a step needs.

    num_classes: of the training images' labels, for a method that needs them.
    """
    device = pick_device(recipe.train.device)
    torch.manual_seed(recipe.train.seed)
    method = make_method(recipe, num_classes).to(device)
    if recipe.train.fp8:
        require_fp8(device)
        for layers in list_layers(method):
            convert_to_fp8(layers)
    if recipe.train.compile:
        for layers in list_layers(method):
            compile_layers(layers)
    fused = device.type == "cuda" or precision != "fp32"
    return Trainer(
        method=method,
        optimizer=make_optimizer(method.weight_groups(), recipe.optim, fused=fused),
        scaler=make_scaler(device, precision),
        schedules=make_schedules(recipe, method, total_steps),
        device=device,
        precision=precision,
        mean=torch.tensor(mean, device=device).view(-1, 1, 1),
        std=torch.tensor(std, device=device).view(-1, 1, 1),
        seed=recipe.train.seed,
        accumulation_steps=recipe.train.accumulation_steps,
        clip_grad_norm=recipe.optim.clip_grad_norm,
        log_every_steps=recipe.train.log_every_steps,
        pad_multiple=PAD_MULTIPLE if recipe.train.compile else 1,
    )


def list_layers(method: Method) -> list[nn.Sequential]:
    """The stacks of transformer layers of a method, where nearly all of a step's time goes."""
    return [part.blocks for part in method.modules() if isinstance(part, VisionTransformer | Predictor)]


def list_groups(recipe: Recipe) -> tuple[GroupSettings, ...]:
    """The recipe's groups of views, with their sizes and grids."""
    return tuple(GroupSettings(name, group, recipe.size_of(group), recipe.grid_of(group)) for name, group in recipe.views.items())


def make_batches(recipe: Recipe, source: ImageSource, start_step: int, total_steps: int) -> Generator[Batch, None, None]:
    """This process's micro-batches of the run from start_step on."""
    world = current()
    settings = StreamSettings(
        list_groups(recipe), recipe.batch_size, recipe.data.workers, recipe.train.seed, recipe.train.accumulation_steps,
        with_labels=recipe.method.NEEDS_LABELS, with_objects=_find_object_settings(recipe),
        counts_tokens=recipe.method.COUNTS_TOKENS, rank=world.rank, world_size=world.size,
    )  # fmt: skip
    return training_batches(source, settings, start_step=start_step, total_steps=total_steps)


def first_images(recipe: Recipe, source: ImageSource, most: int) -> Batch:
    """The first images of the run's first step, `most` or a few less, with the views and masks that they get there.

    They are the first process's part of the batch, of as many processes as leave it `most` images or fewer. A batch without a
    divisor near `most` comes whole.
    """
    size = recipe.batch_size
    count = max(number for number in range(1, min(most, size) + 1) if size % number == 0)
    count = count if 2 * count >= min(most, size) else size
    settings = StreamSettings(
        list_groups(recipe), size, 0, recipe.train.seed, world_size=size // count, with_objects=_find_object_settings(recipe)
    )
    with closing(training_batches(source, settings, start_step=0, total_steps=1)) as batches:
        return next(batches)


def _find_object_settings(recipe: Recipe) -> ObjectSettings | None:
    method = recipe.method
    return ObjectSettings(method.scale_jitter, method.detector == "mask_rcnn") if isinstance(method, Detection) else None


def list_classes(recipe: Recipe, source: ImageSource) -> list[str] | None:
    """Classes of the training images, for a method that needs labels or objects; None for one that does not.

    ValueError without them.
    """
    method = recipe.method
    if method.NEEDS_OBJECTS:
        if not isinstance(source, AnnotatedSource):
            raise ValueError(
                f"method.name {method.name} needs images with annotated objects, and {source.spec} was not opened as such: "
                "openjepa finetune ENCODER --task detection --train DATA"
            )
        return source.categories
    if not method.NEEDS_LABELS:
        return None
    if source.labels is None:
        raise ValueError(f"method.name {method.name} needs labels, and {describe_unlabelled(source)}")
    return source.classes


def count_classes(recipe: Recipe, source: ImageSource) -> int | None:
    """How many classes list_classes gives."""
    classes = list_classes(recipe, source)
    return None if classes is None else len(classes)


def check_views(recipe: Recipe) -> None:
    """ValueError if a group's masks cannot be drawn on its grid."""
    for group in list_groups(recipe):
        if group.views.mask is not None:
            check_masks(group.views.mask, group.grid)


class StepTime(NamedTuple):
    """Mean seconds of a training step with its data, and the share of them spent waiting for the data."""

    seconds: float
    data_wait_frac: float


def measure_step(recipe: Recipe, source: ImageSource, mean: list[float], std: list[float], max_s: float) -> StepTime:
    """Time some steps for about max_s seconds, on a trainer that is thrown away afterwards.

    Of several processes one does it by itself, with its part of the batch.
    """
    if (size := current().size) > 1:
        parts = recipe.train.accumulation_steps
        with alone():
            part = with_changes(recipe, {"data.batch_size": max(recipe.batch_size // size, LEAST_TIMED * parts)})
            return measure_step(part, source, mean, std, max_s)
    precision = choose_precision(pick_device(recipe.train.device), recipe.train.precision)
    trainer = make_trainer(recipe, mean, std, MOST_STEPS, precision, count_classes(recipe, source))
    if recipe.train.compile:
        with closing(make_batches(recipe, source, 0, MOST_STEPS)) as batches:
            return _time_compiled(trainer, batches, max_s)
    with closing(make_batches(recipe, source, 0, WARMUP_STEPS + MEASURED_STEPS)) as batches:
        return _time_stretch(trainer, batches, max_s)


def _time_stretch(trainer: Trainer, batches: Iterator[Batch], max_s: float) -> StepTime:
    """The mean over steps in a row. A GPU is waited for before the first and after the last, but within only where a run waits.

    Waiting for data counts where the GPU has nothing left to do meanwhile.
    """
    deadline = time.perf_counter() + max_s
    trainer.log_every_steps = min(trainer.log_every_steps, MEASURED_STEPS // 3)
    steps = trainer.steps(batches)
    for _ in islice(steps, WARMUP_STEPS):
        pass
    wait_for(trainer.device)
    started, waits = time.perf_counter(), []
    for count, record in enumerate(steps, 1):
        if trainer.device.type == "cpu" or count == 1 or record.step % trainer.log_every_steps == 0:
            waits.append(record.data_wait_s)
        if time.perf_counter() > deadline:
            break
    wait_for(trainer.device)
    step_s = (time.perf_counter() - started) / count
    return StepTime(step_s, sum(waits) / len(waits) / step_s)


def _time_compiled(trainer: Trainer, batches: Iterator[Batch], max_s: float) -> StepTime:
    """The mean over those steps in which nothing was compiled: a step that meets a new shape takes many times as long.

    Compiled code stays for the run, so compiling may take COMPILING_TIMES max_s on top.
    """
    deadline = time.perf_counter() + (1 + COMPILING_TIMES) * max_s
    trainer.log_every_steps = 1  # each step's time is its own
    times: list[tuple[float, float]] = []
    for record in trainer.steps(batches):
        times.append((record.step_s, record.data_wait_s))
        counted = times[WARMUP_STEPS:] or times
        fastest = min(step_s for step_s, _ in counted)
        settled = [pair for pair in counted if pair[0] <= SETTLED_TIMES * fastest]
        enough = len(settled) >= MEASURED_STEPS or sum(map(sum, settled)) > max_s
        if (enough and len(times) >= COMPILING_STEPS) or time.perf_counter() > deadline:
            break
    computing, waiting = (sum(column) / len(settled) for column in zip(*settled, strict=True))
    return StepTime(computing + waiting, waiting / (computing + waiting))


def plan_steps(recipe: Recipe, num_images: int, step_s: float | None) -> int:
    """The number of optimizer steps that train.length comes to; step_s, the seconds of one, is needed for minutes alone."""
    amount, unit = recipe.train.run_length
    if unit == "steps":
        return int(amount)
    if unit == "epochs":
        return max(round(amount * num_images / recipe.batch_size), 1)
    assert step_s is not None, "minutes are planned from the time of a step"
    return max(int(60 * amount * (1 - RESERVED_FRAC) / step_s), 1)
