"""`--recipe auto`: a recipe for these images on this machine, each choice with its reason and where that comes from.

The fixed points are the recipes small_1k to small_1m (docs/small-data.md): the one nearest in number of images, or the largest
that the machine is asked to do, gives the method and every value of it, and a run sees as many views as that recipe does. What
depends on the size of the images or on the machine is in the two tables below, and nowhere else. Left out: memory, which
data.batch_size=auto measures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from openjepa.data.batch import MAIN
from openjepa.data.inspect import DataLook, look_at
from openjepa.data.reading import AS_STORED, Reading
from openjepa.engine.precision import Precision, choose_precision, pick_device
from openjepa.recipe.edit import flatten, with_changes
from openjepa.recipe.files import AUTO, load_recipe
from openjepa.recipe.methods import IJEPA, MAE, Masked
from openjepa.recipe.sections import Recipe
from openjepa.runs.machine import count_cores

STUDY = "docs/small-data.md"
SMALL = {"small_1k": 1_000, "small_10k": 10_000, "small_100k": 100_000, "small_1m": 1_000_000}  # images, rising


# Views that a run on a GPU sees: 1,000 epochs of 1,000 images, 200 of 10,000, 100 of 100,000, 50 of 1,000,000; our choice.
VIEWS_SEEN = {
    "small_1k": 1_000_000,
    "small_10k": 2_000_000,
    "small_100k": 10_000_000,
    "small_1m": 50_000_000,
}


class ViewRule(NamedTuple):
    """How views of from_px pixels a side or more are cut."""

    from_px: int
    patch_px: int
    crop_scale: tuple[float, float] | None
    flip: float


# A side has four to fourteen patches: blocks that are a share of the image need some, and the cost grows with them.
VIEWS = (
    ViewRule(128, 16, (0.3, 1.0), 0.5),
    ViewRule(48, 8, (0.3, 1.0), 0.5),
    # Tiny and centred, as in Fashion-MNIST: crops cost the linear probe 1.8 points (docs/small-data.md).
    ViewRule(16, 4, None, 0.0),
    ViewRule(8, 2, None, 0.0),
)
SMALLEST_VIEW_PX = VIEWS[-1].from_px


class MachineRule(NamedTuple):
    """What a machine with at least so much GPU memory is asked to do; 0 GB is a CPU."""

    from_gpu_gb: float
    words: str
    largest_view_px: int
    largest_recipe: str
    minutes: float | None
    """Length of a run; None: as many views as the recipe it started from sees."""


MACHINES = (
    MachineRule(40, "a GPU of 40 GB or more", 224, "small_1m", None),
    MachineRule(1, "a GPU of less than 40 GB", 128, "small_100k", None),
    MachineRule(0, "a CPU", 64, "small_10k", 30),
)
FOLLOWING = 0.99  # the method.momentum.start with which the study's I-JEPA runs were made
CORES_PER_WORKER = 4  # of a CPU that also trains; a GPU leaves them all to the loader
MAX_WORKERS = 16


@dataclass(frozen=True)
class MachineLook:
    """What a run has to work with."""

    num_cores: int
    gpu_gb: float | None
    precision: Precision
    """bf16, or fp32 on a device that emulates it."""


class Choice(NamedTuple):
    """One value of the recipe, or the recipe it started from, and why."""

    key: str
    value: Any
    reason: str


def choose(data: str, device: str = "auto", reading: Reading = AS_STORED) -> tuple[Recipe, list[Choice]]:
    """A recipe for the data that a user names, on this machine. Raises ValueError as look_at and pick_device do."""
    return choose_recipe(look_at(data, reading), look_at_machine(device))


def told_reading(changes: Mapping[str, Any]) -> Reading:
    """How a user says that files are read, in values of a recipe: what has to be known before they are looked at."""
    return Reading(**{key: changes[f"data.{key}"] for key in ("layout", "pages", "window") if f"data.{key}" in changes})


def look_at_machine(device: str = "auto") -> MachineLook:
    """Cores of this process, memory of the device's GPU, and the precision it computes in."""
    place = pick_device(device)
    cores = count_cores()
    gpu_gb = torch.cuda.get_device_properties(place).total_memory / 2**30 if place.type == "cuda" else None
    return MachineLook(cores, gpu_gb, choose_precision(place, "bf16"))


def choose_recipe(look: DataLook, machine: MachineLook) -> tuple[Recipe, list[Choice]]:
    """The recipe, and every choice in it, in the order in which they follow from one another."""
    images = look.num_images
    rule = next(rule for rule in MACHINES if (machine.gpu_gb or 0) >= rule.from_gpu_gb)
    nearest = min(SMALL, key=lambda known: abs(math.log(images / SMALL[known])))
    name = min(nearest, rule.largest_recipe, key=lambda known: SMALL[known])
    base = load_recipe(name)
    view = next(view for view in VIEWS if max(min(look.side_px, rule.largest_view_px), SMALLEST_VIEW_PX) >= view.from_px)
    side_px = max(min(look.side_px, rule.largest_view_px), SMALLEST_VIEW_PX) // view.patch_px * view.patch_px
    batch = min(base.batch_size, 2 ** int(math.log2(images)))
    times = SMALL[name] / images  # epochs for each of the base's, so that as many views are seen
    epochs = VIEWS_SEEN[name] / images
    length = f"{rule.minutes:g}minutes" if rule.minutes else f"{epochs:.3g}epochs"
    workers = min(machine.num_cores - 1, MAX_WORKERS) if machine.gpu_gb else machine.num_cores // CORES_PER_WORKER
    workers = max(workers, 1 if machine.num_cores > 1 else 0)
    changes = {
        "data.image_size": side_px, "data.channels": look.channels, "data.batch_size": batch, "data.workers": workers,
        "model.patch_size": view.patch_px,
        f"views.{MAIN}.crop_scale": view.crop_scale, f"views.{MAIN}.flip": view.flip,
        "train.length": length, "train.precision": machine.precision,
        "checkpoint.every_epochs": max(round(base.checkpoint.every_epochs * times), 1),
    }  # fmt: skip
    changes["name"] = AUTO
    changes["description"] = f"Chosen for {images:,} images of {look.side_px} px on {rule.words}, from {name}."
    recipe = with_changes(base, changes, "recipe auto")

    side = side_px // view.patch_px
    width, depth, _, _ = recipe.model.encoder_shape
    table = f"for all views of {view.from_px} px or more; openjepa/commands/auto.py"
    sampled = f"{look.num_looked_at:,} images looked at"
    lr = recipe.optim.lr * batch / (recipe.optim.lr_batch_size or batch)
    choices = [
        Choice("recipe", name, _reason_recipe(images, name, nearest, rule)),
        Choice("data.image_size", side_px, _reason_size(look, rule, side_px)),
        Choice("data.channels", look.channels, f"{_name_channels(look.channels)}, of {sampled}"),
        Choice("model.patch_size", view.patch_px, f"{side} x {side} patches, as {table}"),
        Choice(f"views.{MAIN}.crop_scale", view.crop_scale, f"as {table}; {STUDY}"),
        Choice(f"views.{MAIN}.flip", view.flip, f"as {table}; {STUDY}"),
        Choice("model.encoder", recipe.model.encoder, f"{width} wide, {depth} layers: {name}'s; {STUDY}"),
        Choice("data.batch_size", batch, f"{name}'s" if batch == base.batch_size else f"no more than {images:,} images"),
        Choice("train.length", recipe.train.length, _reason_length(name, rule)),
        Choice("optim.lr", recipe.optim.lr, f"{name}'s; {lr:.3g} at this batch; {STUDY}"),
        Choice("optim.warmup_frac", recipe.optim.warmup_frac, f"{name}'s"),
        *_choose_method(recipe),
        *_choose_regularizer(recipe),
        Choice("train.precision", recipe.train.precision, _reason_precision(machine)),
        Choice("data.workers", workers, f"for {machine.num_cores} cores of {rule.words}; the run says if they are too few"),
    ]
    return recipe, choices


def _choose_method(recipe: Recipe) -> list[Choice]:
    """The method, with what it predicts, and how fast a target encoder follows where there is one."""
    method = recipe.method
    if isinstance(method, MAE):
        rival = f"method.name=ijepa method.momentum.start={FOLLOWING}"
        why = f"predicts {method.targets}: better features in the same minutes than I-JEPA, {rival}; {STUDY}"
        return [Choice("method.name", method.name, why)]
    assert isinstance(method, IJEPA)
    momentum = method.momentum
    follow = Choice("method.momentum.start", momentum.start, f"to {momentum.end:g}, {momentum.schedule}; {STUDY}")
    return [Choice("method.name", method.name, "predicts features (arXiv 2301.08243)"), follow]


def _choose_regularizer(recipe: Recipe) -> list[Choice]:
    assert isinstance(recipe.method, Masked)
    regularizer = recipe.method.regularizer
    if regularizer is None:
        return []
    source = {"vicreg": "arXiv 2105.04906", "sigreg": "arXiv 2511.08544"}[regularizer.name]
    why = f"weight {regularizer.weight:g}; {source}, spec.md and {STUDY}"
    return [Choice("method.regularizer.name", regularizer.name, why)]


def word_choices(choices: list[Choice], recipe: Recipe) -> list[str]:
    """A line each; where the recipe now has another value, a change has replaced the choice."""
    values, lines = flatten(recipe.model_dump()), []
    for key, chosen, reason in choices:
        value = chosen if key == "recipe" else values.get(key)
        why = reason if value == chosen else f"your value, in place of {_word(chosen)}"
        lines.append(f"{key:23} {_word(value):10} {why}")
    return lines


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _reason_size(look: DataLook, rule: MachineRule, side_px: int) -> str:
    looked = f"shorter sides have a median of {look.side_px} px"
    if look.side_px > rule.largest_view_px:
        return f"{looked}; {rule.words} gets views of {rule.largest_view_px} px at most; openjepa/commands/auto.py"
    return looked + ("" if look.side_px == side_px else ", the nearest size that patches divide")


def _name_channels(channels: int) -> str:
    return {1: "all grey", 3: "in colour"}.get(channels, f"arrays of {channels} channels")


def _reason_recipe(images: int, name: str, nearest: str, rule: MachineRule) -> str:
    if name != nearest:
        return f"the largest that {rule.words} gets; {nearest} is nearest to {images:,} images; openjepa/commands/auto.py"
    return f"nearest to {images:,} images in ratio, of {', '.join(SMALL)}; {STUDY}"


def _reason_length(name: str, rule: MachineRule) -> str:
    if rule.minutes:
        return f"our default for {rule.words}"
    return f"as many views as {name} sees, {VIEWS_SEEN[name]:,}"


def _reason_precision(machine: MachineLook) -> str:
    if machine.gpu_gb:
        return "the release's (arXiv 2301.08243)" if machine.precision == "bf16" else "this GPU emulates bf16"
    return "this CPU computes it" if machine.precision == "bf16" else "measured: this CPU emulates bf16"
