"""`openjepa finetune`: train a pretrained encoder, or a fresh one, on labels, and measure it on test images.

A fine-tuning is a run of the method `supervised` that starts from an encoder's weights: the trainer, checkpoints, resume, health
and report of pretraining serve as they are. The settings are MAE's (2111.06377, appendix A.1; recipe finetune), fitted to the
number of labels.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from openjepa.commands.auto import Choice, word_choices
from openjepa.commands.evaluate import keep_record, make_record, name_record
from openjepa.commands.pretrain import pretrain
from openjepa.commands.start import Start, Tuned, find_start, fit_to_encoder
from openjepa.data.batch import MAIN
from openjepa.data.left_out import describe_left_out, describe_skipped, list_beside
from openjepa.data.reading import reading_of
from openjepa.data.sources import ImageSource, open_labelled
from openjepa.engine.precision import pick_device
from openjepa.evals.classifier import load_classifier, score_classifier
from openjepa.evals.encoders import open_encoder
from openjepa.evals.labels import require_known_classes
from openjepa.recipe.edit import with_changes
from openjepa.recipe.files import AUTO, load_recipe
from openjepa.recipe.methods import DETECTION_TASKS, Supervised
from openjepa.recipe.sections import Recipe
from openjepa.runs.folder import Row, RunFolder
from openjepa.weights.load import EncoderName

RECIPE = "finetune_small"
BATCHES = (8, 64)  # images, smallest and largest, of a set with few labels and with many
STEPS_PER_EPOCH = 8  # that a small set's batch size aims at
EPOCHS, LEAST_STEPS, MOST_STEPS = 50, 300, 5000
LAYER_DECAY = 0.75  # MAE's; a fresh encoder has nothing to keep


def finetune(
    spec: str | Path,
    train: str,
    test: str,
    out: str | Path,
    task: str = "classification",
    *,
    encoder: EncoderName = "context",
    recipe: str = AUTO,
    changes: Mapping[str, Any] | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> Tuned:
    """Train on labelled images and measure on others; the run folder `out` gets the record.

    spec: a run folder or checkpoint file, of which `encoder` says which, or random:RECIPE or random:RUN for a fresh encoder of
    that shape. train, test: labelled data; few:10:0:DATA takes ten images of each class. task: classification, or one of
    DETECTION_TASKS, whose data are annotated with objects. recipe: auto, a shipped name or a YAML
    file; size of images and encoder are the spec's. Raises as pretrain does.
    """
    start = find_start(str(spec))
    if task in DETECTION_TASKS:
        from openjepa.commands.detection import finetune_detector  # needs the extra [detection]

        options = {"encoder": encoder, "recipe": recipe, "changes": changes or {}, "resume": resume, "console": console}
        return finetune_detector(start, task, train, test, out, **options)  # type: ignore[arg-type]
    data = start.recipe.data
    source, held_out = (open_labelled(named, data.channels, reading_of(data)) for named in (train, test))
    require_known_classes(source, held_out)
    if resume:
        verdict = pretrain(train, None, out, changes=changes, resume=True, console=console)
    else:
        asked, reasons = _find_recipe(start, source, recipe, changes or {})
        chosen = None if start.weights is None else encoder
        verdict = pretrain(train, asked, out, init=start.weights, init_encoder=chosen, words=reasons, console=console)
    return Tuned(verdict, measure(RunFolder(out), train, test, held_out))


def _find_recipe(start: Start, source: ImageSource, name: str, changes: Mapping[str, Any]) -> tuple[Recipe, list[str]]:
    """The recipe named, for the encoder that the run starts from, with the user's changes; and what auto says of it."""
    if name == AUTO:
        recipe, choices = choose(start, source)
        chosen = with_changes(recipe, changes)
        words = [recipe.description, *word_choices(choices, chosen)]
    else:
        chosen, words = with_changes(fit_to_encoder(load_recipe(name), start), changes), []
    if not isinstance(chosen.method, Supervised):
        raise ValueError(
            f"recipe {chosen.name} has method.name {chosen.method.name}; fine-tuning takes supervised, as {RECIPE} has"
        )
    return chosen, words


def choose(start: Start, source: ImageSource) -> tuple[Recipe, list[Choice]]:
    """Settings that fit the number of labels, each with its reason."""
    assert source.labels is not None, source.spec
    images, classes = len(source), len(np.unique(source.labels))
    view = start.recipe.views.get(MAIN)
    batch = int(min(max(2 ** int(math.log2(max(images / STEPS_PER_EPOCH, 1))), BATCHES[0]), BATCHES[1], images))
    steps = min(max(round(EPOCHS * images / batch), LEAST_STEPS), MOST_STEPS)
    decay = LAYER_DECAY if start.weights is not None else 1.0
    changes = {
        "name": AUTO, "description": f"Chosen for {images:,} labelled images of {classes} classes, from {RECIPE}.",
        "data.batch_size": batch, "train.length": f"{steps}steps", "optim.layer_decay": decay,
    }  # fmt: skip
    if view is not None:
        changes |= {f"views.{MAIN}.crop_scale": view.crop_scale, f"views.{MAIN}.flip": view.flip}
    recipe = fit_to_encoder(load_recipe(RECIPE), start, changes)
    shown = recipe.views[MAIN]
    bounds = f"{LEAST_STEPS} steps at least and {MOST_STEPS} at most"
    kept = "as in pretraining" if view is not None else f"{RECIPE}'s"
    choices = [
        Choice("data.image_size", recipe.data.image_size, "the encoder's"),
        Choice("data.batch_size", batch, f"about {STEPS_PER_EPOCH} steps an epoch, {BATCHES[0]} to {BATCHES[1]} images"),
        Choice("train.length", recipe.train.length, f"{EPOCHS} epochs, {bounds}"),
        Choice("optim.lr", recipe.optim.lr, f"{RECIPE}'s, whatever the batch"),
        Choice("optim.layer_decay", decay, "MAE's (2111.06377)" if start.weights else "a fresh encoder has nothing to keep"),
        Choice(f"views.{MAIN}.crop_scale", shown.crop_scale, kept),
        Choice(f"views.{MAIN}.flip", shown.flip, kept),
    ]
    return recipe, choices


def _warn(words: str) -> None:
    print(f"openjepa: {words}", file=sys.stderr)


def measure(run: RunFolder, train: str, test: str, held_out: ImageSource) -> Row:
    """The trained classifier's record on test images, kept among the run's evaluations."""
    facts = run.read_run()
    settings = facts["recipe"]["train"]
    classifier = load_classifier(run.path, settings["device"])
    device, num_train = pick_device(settings["device"]), facts["num_images"]
    outcome, skipped = score_classifier(classifier, held_out, num_train, settings["seed"], device)
    record = make_record(outcome, open_encoder(run.path, test, device="cpu"), train, test)
    keep_record(run, record, _warn)
    try:
        lines = list_beside(run.evals / f"{name_record(record)}-test.json", held_out, skipped)
    except OSError as error:  # the result is worth more than the list
        lines = [*describe_skipped(skipped, len(held_out)), *describe_left_out(held_out), f"which could not be listed: {error}"]
    for line in lines:
        _warn(f"{held_out.spec}: {line}")
    return record
