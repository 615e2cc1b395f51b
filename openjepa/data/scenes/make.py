"""Write a data set of scenes as image files with COCO annotations: what `openjepa make-scenes` does.

OUT/train/<class of the largest object>/000001.png, OUT/test/..., OUT/annotations/train.json and test.json, OUT/dataset.json.
Annotations follow T.-Y. Lin et al. 2014 (arXiv 1405.0312), format at cocodataset.org: ids from 1, file names relative to the
split's folder, bbox [x, y, width, height] and area in pixels of what is seen of an object, its mask as uncompressed run lengths.
Images are the same however many processes draw them. The folder is written beside OUT and renamed when it is whole.

With defects OUT/defects has the test scenes again, a share of them with a defect: images/normal, images/<kind of defect>, label
maps of the same names in annotations (0 where nothing is wrong, 1 + number of the kind), and defects.json. All else stays.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from openjepa.data.scenes.defects import KINDS, has_defect, render_defect
from openjepa.data.scenes.scene import CLASSES, SPLITS, Scene, render_scene
from openjepa.runs.atomic import whole
from openjepa.runs.folder import write_json
from openjepa.runs.machine import count_cores
from openjepa.runs.version import __version__

SIZES_PX = (32, 1024)
CHUNK = 64  # images a task
NORMAL = "normal"  # the folder of scenes without a defect
LICENSE = "CC0-1.0"  # of the images: drawn by a program, no one's

Row = dict[str, Any]


@dataclass(frozen=True)
class Chunk:
    """Scenes first to last - 1 of a split, and the folder of that split."""

    folder: Path
    split: str
    first: int
    last: int
    size: int
    seed: int
    defects: Path | None = None  # the folder of scenes with and without a defect, if they are asked for
    share: float = 0.0  # of scenes with a defect


def make_scenes(
    out: Path, *, train: int, test: int, size: int, seed: int, defects: float = 0.0, processes: int | None = None
) -> None:
    """Draw training and test scenes of size x size pixels into a new folder; None takes every core.

    defects: about this share of the test scenes has a defect in OUT/defects.
    Raises ValueError if OUT exists or a value is out of range, OSError where it cannot be written.
    """
    _check(out, {"train": train, "test": test}, size, seed, defects)
    counts = dict(zip(SPLITS, (train, test), strict=True))
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole(out) as folder:
        folder.mkdir()
        places = {"test": folder / "defects"} if defects else {}
        chunks = [
            Chunk(folder / split, split, first, min(first + CHUNK, count), size, seed, places.get(split), defects)
            for split, count in counts.items()
            for first in range(0, count, CHUNK)
        ]
        for split in SPLITS:
            for name in CLASSES:
                (folder / split / name).mkdir(parents=True)
        for kind in (NORMAL, *KINDS) if defects else ():
            for part in ("images", "annotations"):
                (folder / "defects" / part / kind).mkdir(parents=True)
        scenes: dict[str, list[Row]] = {split: [] for split in SPLITS}
        with _progress_bar() as progress:
            task = progress.add_task("Drawing scenes", total=train + test)
            for chunk, rows in _draw_all(chunks, processes or count_cores()):
                scenes[chunk.split] += rows
                progress.advance(task, len(rows))
        (folder / "annotations").mkdir()
        for split in SPLITS:
            content = json.dumps(_to_coco(scenes[split], split), separators=(",", ":"))
            (folder / "annotations" / f"{split}.json").write_text(content + "\n", "utf-8")
        write_json(folder / "dataset.json", _describe(counts, size, seed, defects))
        if defects:
            listed = [row["defect"] for row in sorted(scenes["test"], key=lambda row: int(row["id"])) if row["defect"]]
            write_json(folder / "defects" / "defects.json", {"kinds": list(KINDS), "defects": listed})


def encode_mask(mask: Bool[np.ndarray, "height width"]) -> Row:
    """COCO's uncompressed run lengths: column by column, the lengths of runs of background and object in turn."""
    pixels = mask.ravel(order="F")
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff([0, *edges, len(pixels)]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if pixels[0] else counts}


def _check(out: Path, counts: dict[str, int], size: int, seed: int, defects: float) -> None:
    if out.exists() or out.is_symlink():
        raise ValueError(f"{out} exists; name a new folder")
    for split, count in counts.items():
        if count < len(CLASSES):
            raise ValueError(
                f"--{split} {count} is too few: a split needs at least one image of each of the {len(CLASSES)} classes"
            )
    if not SIZES_PX[0] <= size <= SIZES_PX[1]:
        raise ValueError(f"--size {size} is out of range; scenes have {SIZES_PX[0]} to {SIZES_PX[1]} pixels a side")
    if seed < 0:
        raise ValueError(f"--seed {seed} is negative; take 0 or more")
    if not 0 <= defects <= 1:
        raise ValueError(f"--defects {defects:g} is out of range; it is a share of the test scenes, 0 to 1")


def _draw_all(chunks: list[Chunk], processes: int) -> Iterator[tuple[Chunk, list[Row]]]:
    """Draw every chunk, in any order."""
    if processes == 1:
        yield from ((chunk, _draw_chunk(chunk)) for chunk in chunks)
        return
    context = multiprocessing.get_context("spawn")  # the caller may run threads, which a forked process would lack
    executor = ProcessPoolExecutor(processes, mp_context=context, initializer=_follow_parent)
    try:
        futures = {executor.submit(_draw_chunk, chunk): chunk for chunk in chunks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        executor.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it ends, even by kill -9."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _draw_chunk(chunk: Chunk) -> list[Row]:
    """Write the images of a chunk; an image row of COCO each, its annotations under "annotations"."""
    rows = []
    for index in range(chunk.first, chunk.last):
        scene = render_scene(chunk.seed, chunk.split, index, chunk.size)
        name = f"{CLASSES[scene.label]}/{index + 1:06d}.png"
        Image.fromarray(scene.pixels).save(chunk.folder / name)
        annotations = list(_annotate(scene))
        rows.append(
            {
                "id": index + 1,
                "file_name": name,
                "width": chunk.size,
                "height": chunk.size,
                "license": 1,
                "annotations": annotations,
                "defect": None if chunk.defects is None else _draw_defect(chunk, chunk.defects, index, scene.pixels),
            }
        )
    return rows


def _draw_defect(chunk: Chunk, folder: Path, index: int, pixels: UInt8[np.ndarray, "size size 3"]) -> Row | None:
    """Write a scene, with a defect if it is its turn, and its label map. Gives what is wrong with it, or None."""
    if not has_defect(chunk.seed, chunk.split, index, chunk.share):
        name, changed, row = f"{NORMAL}/{index + 1:06d}.png", np.zeros(pixels.shape[:2], np.uint8), None
    else:
        scene = render_defect(chunk.seed, chunk.split, index, chunk.size)
        name, pixels, changed = f"{scene.kind}/{index + 1:06d}.png", scene.pixels, scene.changed
        area = int(np.count_nonzero(changed))
        row = {"file_name": name, "kind": scene.kind, "class": CLASSES[scene.class_number], "area": area}
    Image.fromarray(pixels).save(folder / "images" / name)
    Image.fromarray(changed).save(folder / "annotations" / name)
    return row


def _annotate(scene: Scene) -> Iterator[Row]:
    """What is seen of each object, the largest first, without ids."""
    for number, class_number in enumerate(scene.classes, start=1):
        mask = scene.owners == number
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        left, top, width, height = columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1
        yield {
            "category_id": class_number + 1,
            "bbox": [int(left), int(top), int(width), int(height)],
            "area": int(mask.sum()),
            "segmentation": encode_mask(mask),
            "iscrowd": 0,
        }


def _to_coco(rows: Iterable[Row], split: str) -> Row:
    """A split's annotation file."""
    images: list[Row] = []
    annotations: list[Row] = []
    for row in sorted(rows, key=lambda row: row["id"]):
        images.append({key: value for key, value in row.items() if key not in ("annotations", "defect")})
        for annotation in row["annotations"]:
            annotations.append({"id": len(annotations) + 1, "image_id": row["id"], **annotation})
    return {
        "info": {"description": f"OpenJEPA scenes, {split}", "version": __version__},
        "licenses": [{"id": 1, "name": LICENSE, "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name, "supercategory": "shape"} for number, name in enumerate(CLASSES, start=1)],
    }


def _describe(counts: dict[str, int], size: int, seed: int, defects: float) -> Row:
    """dataset.json: what it takes to make the set again."""
    flags = " ".join(f"--{split} {count}" for split, count in counts.items())
    end = f" --defects {defects:g}" if defects else ""
    return {
        "description": "Scenes of one large and up to three smaller textured shapes; the folder names the class of the largest",
        "command": f"openjepa make-scenes OUT {flags} --size {size} --seed {seed}{end}",
        "version": __version__,
        "license": LICENSE,
        "images": counts,
        "size_px": size,
        "seed": seed,
        "classes": CLASSES,
    }


def _progress_bar() -> Progress:
    """A bar on standard error that leaves nothing behind; silent unless standard error is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
