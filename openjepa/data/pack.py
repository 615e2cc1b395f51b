"""Write a pack: every image of a source decoded once, its shorter side at most SIZE pixels. packed.py says what is in it.

A pack appears whole or not at all: it grows in a hidden folder beside its place and is renamed at the end. What a killed
attempt has left there is overwritten by the next one.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from openjepa.data.decode import DecodeError, Picture, Pixels
from openjepa.data.errors import none_readable
from openjepa.data.skipped import one_line
from openjepa.data.sources import FolderSource, ImageSource, absolute_spec, spread
from openjepa.data.sources.packed import METADATA_KEY, PIXELS, SKIPPED, TABLE, VERSION
from openjepa.data.views import cut, decode_for
from openjepa.data.workers import stream_items
from openjepa.runs.machine import free_disk

PART_IMAGES = 16  # that a worker hands over at once
MEASURED_IMAGES = 200  # whose sizes say how much room will be needed
SPARE_FRAC = 0.05  # room on the disk beyond that


@dataclass(frozen=True)
class Packed:
    """What has been written."""

    num_images: int
    num_bytes: int
    num_skipped: int


def require_new(out: Path) -> None:
    """ValueError if there is something at the place of a new pack."""
    if out.exists():
        raise ValueError(f"{out} exists already; choose another folder, or remove it first")


def write_pack(source: ImageSource, out: Path, size_px: int, workers: int = 0) -> Packed:
    """Pack all readable images of a source into the new folder `out`.

    Sides are in proportion, and images whose shorter side has at most size_px pixels stay as they are. Raises ValueError if
    `out` exists, another process is packing there, the disk has too little room, or no image can be read.
    """
    require_new(out)
    if size_px < 1:
        raise ValueError(f"size must be at least 1 pixel, not {size_px}")
    out.parent.mkdir(parents=True, exist_ok=True)
    _check_room(source, out, size_px)
    growing = out.parent / f".{out.name}.packing"
    growing.mkdir(exist_ok=True)
    with (growing / PIXELS).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another openjepa pack is writing {out}") from None
        try:
            file.truncate(0)
            packed = _write_files(source, growing, file, size_px, workers)
            growing.rename(out)
        except BaseException:
            shutil.rmtree(growing, ignore_errors=True)
            raise
    return packed


def _write_files(source: ImageSource, folder: Path, file: BinaryIO, size_px: int, workers: int) -> Packed:
    numbers: list[int] = []
    shapes: list[tuple[int, int]] = []
    skipped: list[tuple[str, str]] = []
    parts = range(-(-len(source) // PART_IMAGES))
    console = Console(stderr=True)
    with closing(stream_items(_Parts(source, size_px), parts, workers)) as items:
        shown = track(items, "pack", len(parts), console=console, transient=True, disable=not console.is_terminal)
        for part in shown:
            file.write(part.pixels.numpy().data)
            numbers += part.numbers
            shapes += part.shapes
            skipped += part.skipped
    if not numbers:
        raise none_readable(source.spec, skipped)
    file.flush()
    os.fsync(file)
    sizes = np.array(shapes, np.int64)
    num_bytes = sizes.prod(axis=1) * source.channels
    total = int(num_bytes.sum())
    facts = {
        "version": VERSION, "source": absolute_spec(source.spec), "channels": source.channels, "size_px": size_px,
        "classes": source.classes, "num_bytes": total,
        "reading": asdict(source.reading) if isinstance(source, FolderSource) else {},
    }  # fmt: skip
    columns = {
        "path": pa.array([source.path(number) for number in numbers], pa.string()),
        "label": pa.nulls(len(numbers), pa.int64()) if source.labels is None else source.labels[numbers],
        "offset": np.cumsum(num_bytes) - num_bytes,
        "height": sizes[:, 0],
        "width": sizes[:, 1],
    }
    pq.write_table(pa.table(columns, metadata={METADATA_KEY: json.dumps(facts)}), folder / TABLE, write_page_checksum=True)
    if skipped:
        lines = [f"{one_line(path)}\t{one_line(reason)}\n" for path, reason in skipped]
        (folder / SKIPPED).write_text("".join(lines), "utf-8")
    return Packed(len(numbers), total, len(skipped))


@dataclass(frozen=True)
class _Part:
    """Some images, one after another in a single tensor: workers hand over one quickly, and many slowly."""

    pixels: UInt8[Tensor, " bytes"]
    numbers: list[int]
    shapes: list[tuple[int, int]]
    skipped: list[tuple[str, str]]


@dataclass(frozen=True)
class _Parts(Dataset[_Part]):
    """The images to be packed, indexed by part."""

    source: ImageSource
    size_px: int

    def __getitem__(self, part: int) -> _Part:
        images: list[Pixels] = []
        numbers: list[int] = []
        skipped: list[tuple[str, str]] = []
        for number in range(part * PART_IMAGES, min((part + 1) * PART_IMAGES, len(self.source))):
            try:
                images.append(_shrink(self.source.open(number), self.size_px))
                numbers.append(number)
            except DecodeError as error:
                skipped.append((self.source.path(number), error.reason))
        shapes = [(image.shape[0], image.shape[1]) for image in images]
        flat = np.concatenate([np.empty(0, np.uint8), *(image.ravel() for image in images)])
        return _Part(torch.from_numpy(flat), numbers, shapes, skipped)


def _shrink(image: Picture, size_px: int) -> Pixels:
    """The image with a shorter side of size_px, or unchanged where it is not larger."""
    height, width = image.size
    if min(height, width) <= size_px:
        return image.decode()
    size = _fit((height, width), size_px)
    return cut(*decode_for(image, (0, 0, height, width), size), size)


def _fit(size: tuple[int, int], size_px: int) -> tuple[int, int]:
    """Height and width of a packed image."""
    scale = min(1.0, size_px / min(size))
    return round(size[0] * scale), round(size[1] * scale)


def _check_room(source: ImageSource, out: Path, size_px: int) -> None:
    """ValueError if the disk has too little room for what images spread evenly over the source let expect."""
    num_pixels = []
    for index in spread(len(source), MEASURED_IMAGES).tolist():
        try:
            height, width = _fit(source.open(int(index)).size, size_px)
        except DecodeError:
            continue
        num_pixels.append(height * width)
    needed = (1 + SPARE_FRAC) * sum(num_pixels) / max(len(num_pixels), 1) * source.channels * len(source)
    free = free_disk(out.parent)
    if needed > free:
        raise ValueError(
            f"a pack of {source.spec} takes about {needed / 1e9:.1f} GB at size {size_px}, and {out.parent} has only "
            f"{free / 1e9:.1f} GB free; choose another place or a smaller --size"
        )
