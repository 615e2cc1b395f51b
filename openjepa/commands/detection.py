"""Detectors on the command line: `finetune --task detection|instances`, and evaluate and predict on their runs.

A training is a run of the method `detection` that starts from an encoder's weights: trainer, checkpoints, resume, health and
report of pretraining serve as they are.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from openjepa.commands.auto import Choice, word_choices
from openjepa.commands.evaluate import keep_record, make_record
from openjepa.commands.pretrain import pretrain
from openjepa.commands.start import Start, Tuned, fit_to_encoder
from openjepa.data.annotations import AnnotatedSource, open_annotated
from openjepa.data.batch import MAIN
from openjepa.data.left_out import describe_left_out, describe_skipped
from openjepa.data.reading import reading_of
from openjepa.data.sources import canonical_spec, open_source
from openjepa.evals.coco import number_rows, to_rows, write_truth
from openjepa.evals.detection import LEAST_DRAWN, find_all
from openjepa.evals.detector import load_detector, score_trained
from openjepa.evals.encoders import open_encoder
from openjepa.evals.pictures import draw_objects, write_picture
from openjepa.recipe.edit import with_changes
from openjepa.recipe.files import AUTO, load_recipe
from openjepa.recipe.methods import DETECTION_TASKS, Detection
from openjepa.recipe.sections import Recipe
from openjepa.runs.folder import Row, RunFolder
from openjepa.runs.paths import absolute_path, user_path
from openjepa.weights.load import EncoderName, load_reading

RECIPES = {"detection": "detection_small", "instances": "instances_small"}
BATCHES = (4, 16)  # images, smallest and largest, of a set with few and with many
STEPS_PER_EPOCH = 16  # that a small set's batch size aims at
EPOCHS, LEAST_STEPS, MOST_STEPS = 40, 500, 6000
LAYER_DECAY = 0.75
MOST_ENLARGED = 2  # times the encoder's side, that auto trains at for larger images: attention costs the square
MOST_PICTURES = 100

Note = Callable[[str], None]


def say(words: str) -> None:
    """A line on standard error."""
    print(f"openjepa: {words}", file=sys.stderr)


def finetune_detector(
    start: Start,
    task: str,
    train: str,
    test: str,
    out: str | Path,
    *,
    encoder: EncoderName,
    recipe: str,
    changes: Mapping[str, Any],
    resume: bool,
    console: Console | None,
) -> Tuned:
    """As commands.finetune.finetune, for annotated images; few:100:0:DATA takes 100 of them."""
    data = start.recipe.data
    with_masks = task == "instances"
    source = open_annotated(train, data.channels, need_masks=with_masks, reading=reading_of(data))
    held_out = open_annotated(test, data.channels, need_masks=with_masks, reading=reading_of(data)).with_categories(source)
    if resume:
        _require_task(RunFolder(out), task)
        verdict = pretrain(train, None, out, changes=changes, resume=True, console=console)
    else:
        asked, reasons = _find_recipe(start, source, task, recipe, changes)
        chosen = None if start.weights is None else encoder
        verdict = pretrain(train, asked, out, init=start.weights, init_encoder=chosen, words=reasons, console=console)
    return Tuned(verdict, measure(RunFolder(out), train, test, held_out))


def _require_task(run: RunFolder, task: str) -> None:
    """ValueError if a run that is to go on trains for something else."""
    method = run.read_run()["recipe"]["method"]
    if method.get("detector") != DETECTION_TASKS[task]:
        raise ValueError(f"{run.path} does not train for --task {task}: its method is {method.get('name')}; choose another --out")


def _find_recipe(
    start: Start, source: AnnotatedSource, task: str, name: str, changes: Mapping[str, Any]
) -> tuple[Recipe, list[str]]:
    """The recipe named, for the encoder that the run starts from, with the user's changes; and what auto says of it."""
    if name == AUTO:
        recipe, choices = choose(start, source, task)
        chosen = with_changes(recipe, changes)
        words = [recipe.description, *word_choices(choices, chosen)]
    else:
        loaded = load_recipe(name)
        size = {"data.image_size": loaded.data.image_size}  # the detection size is the recipe's; the encoder's positions follow
        chosen, words = with_changes(fit_to_encoder(loaded, start, size), changes), []
    if not isinstance(chosen.method, Detection) or chosen.method.detector != DETECTION_TASKS[task]:
        raise ValueError(f"recipe {chosen.name} is not for --task {task}: it needs method.name detection, as {RECIPES[task]} has")
    return chosen, words


def choose(start: Start, source: AnnotatedSource, task: str) -> tuple[Recipe, list[Choice]]:
    """Settings that fit the number of annotated images and their size, each with its reason."""
    images, patch, base = len(source), start.recipe.model.patch_size, RECIPES[task]
    view = start.recipe.views.get(MAIN)
    batch = int(min(max(2 ** int(np.log2(max(images / STEPS_PER_EPOCH, 1))), BATCHES[0]), BATCHES[1], images))
    steps = min(max(round(EPOCHS * images / batch), LEAST_STEPS), MOST_STEPS)
    decay = LAYER_DECAY if start.weights is not None else 1.0
    own, longer = max(start.recipe.data.size), int(np.median([max(found.size) for found in source.objects]))
    side = min(max(longer, own), MOST_ENLARGED * own) // patch * patch
    changes = {
        "name": AUTO, "description": f"Chosen for {images:,} annotated images, from {base}.", "data.image_size": side,
        "data.batch_size": batch, "train.length": f"{steps}steps", "optim.layer_decay": decay,
    }  # fmt: skip
    if view is not None:
        changes |= {f"views.{MAIN}.flip": view.flip}
    recipe = fit_to_encoder(load_recipe(base), start, changes)
    bounds = f"{LEAST_STEPS} steps at least and {MOST_STEPS} at most"
    choices = [
        Choice("data.image_size", side, f"images are {longer} px long, the encoder's {own}; at most {MOST_ENLARGED} times these"),
        Choice("data.batch_size", batch, f"about {STEPS_PER_EPOCH} steps an epoch, {BATCHES[0]} to {BATCHES[1]} images"),
        Choice("train.length", recipe.train.length, f"{EPOCHS} epochs, {bounds}"),
        Choice("optim.lr", recipe.optim.lr, f"{base}'s, whatever the batch"),
        Choice("optim.layer_decay", decay, f"{base}'s" if start.weights else "a fresh encoder has nothing to keep"),
        Choice(f"views.{MAIN}.flip", recipe.views[MAIN].flip, "as in pretraining" if view is not None else f"{base}'s"),
    ]
    return recipe, choices


def evaluate_detector(spec: str | Path, task: str, test: str, device: str, note: Note = say) -> Row:
    """The record of a detector's run on annotated test images, kept among the run's evaluations.

    ValueError if the run's detector is not of the task.
    """
    run = RunFolder(spec)
    run.require()
    trained = load_detector(spec, device)
    if trained.task != task:
        raise ValueError(f"{spec} holds a detector for --task {trained.task}, not {task}")
    need_masks = task == "instances"
    held_out = open_annotated(test, trained.channels, need_masks=need_masks, reading=load_reading(spec))
    for line in describe_left_out(held_out):
        note(f"{held_out.spec}: {line}")
    facts = run.read_run()
    return measure(run, facts["data"], test, held_out.with_names(trained.classes, f"the detector in {spec}"), device)


def measure(run: RunFolder, train: str, test: str, held_out: AnnotatedSource, device: str | None = None) -> Row:
    """The trained detector's record on test images, kept among the run's evaluations; what it found lies in RUN/predictions."""
    facts = run.read_run()
    settings = facts["recipe"]["train"]
    trained = load_detector(run.path, device or settings["device"])
    subject = open_encoder(run.path, test, device="cpu")
    short = hashlib.sha256(canonical_spec(test).encode()).hexdigest()[:8]
    place: Path | None = run.predictions / f"step-{subject.facts['step']}-{short}"
    try:
        (run.predictions / f"step-{subject.facts['step']}-{short}").mkdir(parents=True, exist_ok=True)
    except OSError as error:  # of somebody else's run
        say(f"what is found will not be written: {error}")
        place = None
    outcome = score_trained(trained, held_out, facts["num_images"], settings["seed"], place)
    record = make_record(outcome, subject, train, test) | ({} if place is None else {"predictions": absolute_path(place)})
    keep_record(run, record, say)
    return record


def predict_objects(run: str | Path, images: str, out: str | Path, device: str = "auto", note: Note = say) -> int:
    """Find objects in images that need no annotations: a COCO file, and pictures in a folder beside it; gives their number.

    ValueError if the run holds no detector, the images cannot be read, or the file's name does not end in .json.
    """
    path = user_path(out)
    if path.suffix.lower() != ".json":
        raise ValueError(f"{path}: what a detector finds is written as COCO JSON; end the name in .json")
    trained = load_detector(run, device)
    source = open_source(images, trained.channels, load_reading(run))
    skipped: list[tuple[str, str]] = []
    rows: list[Row] = []
    annotations: list[Row] = []
    category_ids, pictures = list(range(1, len(trained.classes) + 1)), path.with_suffix("")
    for index, image, found in find_all(trained.find, source, skipped):
        image_id = index + 1
        rows.append({"id": image_id, "file_name": source.path(index), "height": image.shape[1], "width": image.shape[2]})
        found_rows = to_rows(image_id, category_ids, *found.to_numpy())
        annotations += number_rows(found_rows, first_id=len(annotations) + 1)
        if len(rows) <= MOST_PICTURES:
            sure = found.take(found.scores >= LEAST_DRAWN)
            boxes, labels, scores, masks = sure.to_numpy()
            pixels = image.permute(1, 2, 0).numpy()
            drawn = draw_objects(pixels, boxes, labels, trained.classes, scores, masks)
            write_picture(pictures / f"{image_id:06d}.png", drawn)
    for line in (*describe_skipped(skipped, len(source)), *describe_left_out(source)):
        note(line)
    categories = [{"id": number, "name": name} for number, name in zip(category_ids, trained.classes, strict=True)]
    write_truth(path, {"images": rows, "annotations": annotations, "categories": categories})
    return len(annotations)
