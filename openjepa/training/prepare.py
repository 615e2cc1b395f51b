"""What a run needs to know before it starts or goes on, as its run.json will hold it. Writes nothing."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

import torch
from torch import nn

from openjepa.data.fingerprint import describe_difference, fingerprint
from openjepa.data.normalization import find_normalization
from openjepa.data.sources import ImageSource, absolute_spec
from openjepa.engine.precision import choose_precision, pick_device
from openjepa.engine.threads import choose_threads, use_threads
from openjepa.engine.world import current
from openjepa.methods.make import make_method
from openjepa.recipe.check import build_recipe
from openjepa.recipe.sections import Recipe
from openjepa.runs.environment import describe_machine, describe_versions, read_git_state
from openjepa.runs.folder import RunFolder
from openjepa.training.build import count_classes, list_classes, make_batches, make_trainer, measure_step, plan_steps
from openjepa.training.resume import PLANNED_FROM, check_changes, find_changes
from openjepa.weights.initial import InitialWeights

RECIPE_VERSION = Recipe.model_fields["version"].default
RESUMED_S = 10.0  # for timing steps of a resumed run that had no minutes before
MEASURED_FRAC = 0.05  # of a run's minutes: at most this share goes into timing steps


def describe_run(recipe: Recipe, source: ImageSource, initial: InitialWeights | None) -> dict[str, Any]:
    """Measure what a new run needs to know, and give what its run.json will hold. Writes nothing."""
    if recipe.data.normalization == "init" and initial is not None:
        mean, std = initial.mean, initial.std
    else:
        mean, std = find_normalization(recipe.data, source)
    threads, step_s = count_threads(recipe, source, mean, std), None
    length, num_classes = recipe.train.run_length, count_classes(recipe, source)
    if length.unit == "minutes":
        with use_threads(threads):
            step_s = measure_step(recipe, source, mean, std, MEASURED_FRAC * 60 * length.amount).seconds
    with torch.device("meta"):  # shapes without memory, to count parameters
        method = make_method(recipe, num_classes)
    parts = dict(method.named_children())
    parts["encoder"] = parts.pop("context_encoder")
    device = pick_device(recipe.train.device)
    total_steps = plan_steps(recipe, len(source), step_s)
    return {
        "name": recipe.name,
        "data": absolute_spec(source.spec),
        "num_images": len(source),
        "fingerprint": fingerprint(source),
        "recipe": recipe.model_dump(mode="json"),
        "total_steps": total_steps,
        "plans": [(0, total_steps)],
        "measured_step_ms": None if step_s is None else 1000 * step_s,
        "mean": mean,
        "std": std,
        "num_classes": num_classes,
        "classes": list_classes(recipe, source),
        "num_parameters": {name: count for name in sorted(parts) if (count := count_trained(parts[name]))},
        "versions": describe_versions(),
        "git": read_git_state(),
        "hardware": describe_machine(device),
        "precision": choose_precision(device, recipe.train.precision),
        "threads": threads,
        "init": initial and initial.to_record(recipe.grid),
        "started": now(),
        "finished": None,
    }


def count_trained(part: nn.Module) -> int:
    """Trained weights of a part."""
    return sum(weight.numel() for weight in part.parameters() if weight.requires_grad)


def count_threads(recipe: Recipe, source: ImageSource, mean: list[float], std: list[float]) -> int:
    """Threads that train this recipe fastest on this machine now; a GPU, and several processes, get as many as torch has."""
    device, most = pick_device(recipe.train.device), torch.get_num_threads()
    if device.type != "cpu" or most == 1 or current().size > 1:
        return most
    precision = choose_precision(device, recipe.train.precision)
    trainer = make_trainer(recipe, mean, std, 1000, precision, count_classes(recipe, source))
    with closing(make_batches(recipe, source, 0, 1)) as batches:
        batch = next(batches)
    return choose_threads(lambda: trainer.step([batch]), most)


def read_recorded(folder: RunFolder) -> Recipe:
    """The recipe of a run that is to go on. ValueError if an earlier version of OpenJEPA trained it."""
    recorded = folder.read_run()["recipe"]
    if recorded.get("version") != RECIPE_VERSION:
        raise ValueError(
            f"{folder.path} was trained by an earlier version of OpenJEPA, whose runs cannot go on; evaluate, embed, report and "
            f"export take it, and a new run starts from its weights: another --out, --init {folder.path} and no --resume"
        )
    return build_recipe(recorded, where=str(folder.run_json))


def reopen_run(recipe: Recipe, source: ImageSource, folder: RunFolder, accept_changes: bool) -> dict[str, Any]:
    """What run.json will hold of an earlier run that goes on with this recipe. Writes nothing.

    ValueError names what changed since, unless the changes are accepted and the run can follow them.
    """
    facts, recorded = folder.read_run(), read_recorded(folder)
    changes = find_changes(recorded, recipe)
    found = fingerprint(source)
    if facts["num_images"] != len(source):
        changes["number of images"] = (facts["num_images"], len(source))
    elif difference := describe_difference(facts.get("fingerprint", found), found):
        changes["images"] = (facts["data"], f"{source.spec}, {difference}")
    if facts["num_classes"] not in (None, count_classes(recipe, source)):
        changes["number of classes"] = (facts["num_classes"], count_classes(recipe, source))
    check_changes(changes, accept_changes, str(folder.path))
    if changes.keys() & PLANNED_FROM:
        step_s = None
        if recipe.train.run_length.unit == "minutes":
            step_ms = facts["measured_step_ms"]
            step_s = step_ms / 1000 if step_ms else measure_step(recipe, source, facts["mean"], facts["std"], RESUMED_S).seconds
        total_steps = plan_steps(recipe, len(source), step_s)
        facts |= {"total_steps": total_steps, "plans": [(0, total_steps)]}
    device = pick_device(recipe.train.device)
    hardware = describe_machine(device)
    if changes.keys() & {"train.precision", "train.device"} or hardware != facts["hardware"]:
        precision, threads = choose_precision(device, recipe.train.precision), torch.get_num_threads()
        facts |= {"hardware": hardware, "precision": precision, "threads": threads}
    return facts | {
        "recipe": recipe.model_dump(mode="json"),
        "data": absolute_spec(source.spec),
        "num_images": len(source),
        "fingerprint": found,
        "stopped": None,
        "finished": None if changes else facts["finished"],
    }


def now() -> str:
    """The time, with its zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
