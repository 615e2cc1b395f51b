"""The contact sheet: images as the model will see them at the first step of a run, and what its masks hide of them.

They are views after decoding, scaling to grey levels, cropping and colour changes, before normalisation, which people cannot
see. Of more than three channels the first three are shown as red, green and blue. Masks are those of that very step.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from openjepa.data.batch import Batch, Views
from openjepa.data.skipped import one_line
from openjepa.data.sources import ImageSource
from openjepa.recipe.sections import Recipe
from openjepa.report.masks import INK, QUIET
from openjepa.report.pictures import MAX_THUMBNAIL_PX, Pixels, as_rgb, draw_patches, enlarge, mark_patches
from openjepa.runs.atomic import write_atomic
from openjepa.training.build import first_images, list_groups

SOFTWARE = "openjepa doctor: contact sheet"  # in the PNG, so that no other picture is overwritten
NUM_IMAGES = 12
CELL_INCHES = 1.15
MOST_NAME = 20  # letters of a file's name under its picture


class Strip(NamedTuple):
    """A line of the sheet: what it shows, and a picture (H, W, 3 or 4) for each image."""

    title: str
    pictures: list[Pixels]


def draw_contact_sheet(recipe: Recipe, source: ImageSource) -> bytes:
    """The sheet of a recipe's first step, as a PNG. DecodeError if no image can be read."""
    batch = first_images(recipe, source, NUM_IMAGES)
    strips = list_strips(batch, {group.name: group.grid for group in list_groups(recipe)})
    numbers = batch.image_idx[:NUM_IMAGES].tolist()
    shown = f"first {min(3, source.channels)} of {source.channels} channels" if source.channels > 3 else ""
    title = ", ".join(["What the model sees in its first step", f"recipe {recipe.name}", *([shown] if shown else [])])
    return draw_sheet([Strip(name, pictures[:NUM_IMAGES]) for name, pictures in strips], _name_images(source, numbers), title)


def _name_images(source: ImageSource, numbers: Sequence[int]) -> list[str]:
    """The ends of the images' paths, in printable characters."""
    return [one_line(os.path.basename(source.path(number))) for number in numbers]


def list_strips(batch: Batch, grids: Mapping[str, tuple[int, int]]) -> list[Strip]:
    """The strips of a batch of uint8 views: each group's first view, and what its mask leaves. grids: patches, by group."""
    strips = []
    for name, group in batch.views.items():
        height, width = group.images.shape[-2:]
        views = [np.ascontiguousarray(view) for view in group.images[:, 0].permute(0, 2, 3, 1).numpy()]
        title = f"{name}, {height} x {width} px"
        strips.append(Strip(title, [enlarge(as_rgb(view), MAX_THUMBNAIL_PX) for view in views]))
        if group.masks is not None:
            strips.append(Strip(f"{name}: context; targets outlined", _draw_masked(views, group, grids[name])))
    return strips


def _draw_masked(views: Sequence[Pixels], group: Views, grid: tuple[int, int]) -> list[Pixels]:
    assert group.masks is not None
    per_image = len(group.masks.context_idx) // len(views)
    context = mark_patches(group.masks.context_idx[::per_image], grid)
    target = mark_patches(group.masks.target_idx[::per_image].flatten(1), grid)
    return [draw_patches(view, *masks) for view, *masks in zip(views, context, target, strict=True)]


def draw_sheet(strips: Sequence[Strip], names: Sequence[str], title: str) -> bytes:
    """The sheet as a PNG: a strip a line, an image a column with its name below."""
    columns = len(names)
    figure = Figure(figsize=(max(CELL_INCHES * columns, 5), CELL_INCHES * 1.25 * len(strips) + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=9, color=INK, parse_math=False)
    rows = figure.subfigures(len(strips), 1, squeeze=False)[:, 0]
    for place, (row, strip) in enumerate(zip(rows, strips, strict=True)):
        row.suptitle(strip.title, fontsize=8, color=QUIET, x=0.01, ha="left", parse_math=False)
        for axes, picture, name in zip(row.subplots(1, columns, squeeze=False)[0], strip.pictures, names, strict=True):
            axes.imshow(picture, interpolation="antialiased", interpolation_stage="rgba")
            axes.set_axis_off()
            if place == 0:
                axes.set_title(_shorten(name), fontsize=6, color=QUIET, y=-0.2, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, facecolor="white", metadata={"Software": SOFTWARE})
    return buffer.getvalue()


def write_contact_sheet(path: Path, sheet: bytes) -> bool:
    """Write the sheet, and say whether it replaced an earlier one. ValueError if the path holds anything else."""
    is_there = path.exists()
    if is_there and not _is_contact_sheet(path):
        raise ValueError(f"{path} exists and is no contact sheet of openjepa doctor; name another file with --sheet")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, sheet)
    return is_there


def _is_contact_sheet(path: Path) -> bool:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.info.get("Software") == SOFTWARE
    except Exception:  # whatever it is, it is not ours
        return False


def _shorten(name: str) -> str:
    """A name for a small place: its end, which differs more often than its start."""
    return name if len(name) <= MOST_NAME else "…" + name[1 - MOST_NAME :]
