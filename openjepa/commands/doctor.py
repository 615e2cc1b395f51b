"""`openjepa doctor`: what is in the data, does a recipe fit it, how long will it take and how much memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from openjepa.data.depth import settle
from openjepa.data.inspect import check_number, describe_data, describe_pages, describe_windows, find_problems
from openjepa.data.left_out import describe_left_out, list_beside
from openjepa.data.loader import evaluation_batches
from openjepa.data.normalization import find_normalization
from openjepa.data.reading import reading_of
from openjepa.data.sources import ImageSource, open_source, spread
from openjepa.engine.precision import pick_device
from openjepa.engine.threads import use_threads
from openjepa.masks import measure_coverage
from openjepa.recipe.sections import Recipe
from openjepa.report.contact import draw_contact_sheet, write_contact_sheet
from openjepa.training.build import check_views, count_classes, measure_step, plan_steps
from openjepa.training.memory import fit_memory, free_bytes, peak_bytes, settle_batch_size
from openjepa.training.prepare import count_threads
from openjepa.training.speed import in_words

BESIDE = "; beside it, lists of the files passed over or unreadable"
MEASURED_S = 20.0  # how long steps are timed


def examine(data: str, recipe: Recipe, sheet: Path | None = None) -> Iterator[str]:
    """Findings, line by line as they are made, and a contact sheet, if a file is named for it.

    ValueError if the data cannot be opened, the masks cannot be drawn, or the file is something else.
    """
    settings, source, lines = settle(recipe.data, open_source(data, recipe.data.channels, reading_of(recipe.data)))
    recipe = recipe.model_copy(update={"data": settings})
    sample_idx = spread(len(source), recipe.health.num_images)
    yield from describe_data(source, sample_idx)
    yield from (*lines, *describe_left_out(source), *describe_pages(source), *describe_windows(source))
    check_number(len(source), source.spec)
    check_views(recipe)
    recipe = settle_batch_size(recipe, source)
    views, _, skipped = zip(*evaluation_batches(source, recipe.data.size, indices=sample_idx), strict=True)
    if unreadable := [pair for pairs in skipped for pair in pairs]:
        path, reason = unreadable[0]
        counted = f"{len(unreadable)} of {len(sample_idx)} looked at"
        yield f"{counted} cannot be read and would be skipped, for example {path}: {reason}"
    for finding in find_problems(torch.cat(views), len(source)):
        yield f"warning: {finding.words}"
    height, width = recipe.data.size
    hidden = ""
    if recipe.mask is not None:
        coverage = measure_coverage(recipe.mask, recipe.grid)
        hidden = f"; masks show {coverage.context_frac:.0%}, hide {coverage.target_frac:.0%} as targets"
    yield (
        f"recipe {recipe.name}: {height} x {width} px, {recipe.grid[0]} x {recipe.grid[1]} patches of "
        f"{recipe.model.patch_size} px{hidden}"
    )
    if sheet is not None:
        yield write_sheet(recipe, source, sheet, unreadable)
    batch = recipe.batch_size
    if len(source) < batch:
        yield f"only {len(source)} images for a batch of {batch}, so that images repeat within it; lower data.batch_size"
    mean, std = find_normalization(recipe.data, source)
    line = fit_memory(recipe, count_classes(recipe, source))
    with use_threads(count_threads(recipe, source, mean, std)):
        step_s = measure_step(recipe, source, mean, std, MEASURED_S).seconds
    steps = plan_steps(recipe, len(source), step_s)
    yield f"a step of {batch} images takes {step_s:.2f} s here: {batch / step_s:.1f} images/s"
    yield f"{steps} steps, {steps * batch / len(source):.1f} epochs: about {in_words(steps * step_s)}"
    device = pick_device(recipe.train.device)
    predicted, measured, free = line.predict(batch), peak_bytes(device), free_bytes(device)
    yield (
        f"peak memory: {predicted / 2**30:.1f} GB predicted from two small batches, {measured / 2**30:.1f} GB measured, "
        f"{free / 2**30:.0f} GB free; data.batch_size=auto takes what fits"
    )


def write_sheet(recipe: Recipe, source: ImageSource, path: Path, unreadable: list[tuple[str, str]]) -> str:
    """Draw the first images of the recipe's first step, and list beside the drawing what is passed over or cannot be read.

    Gives a line on where. A place that cannot be written costs no more than that.
    """
    try:
        replaced = write_contact_sheet(path, draw_contact_sheet(recipe, source))
        listed = list_beside(path, source, unreadable)
    except OSError as error:
        return f"warning: no contact sheet: {path} could not be written ({error.strerror}); name another file with --sheet"
    earlier = " (an earlier one is replaced)" if replaced else ""
    return f"contact sheet, what the model will see: {path}{earlier}{BESIDE if listed else ''}"
