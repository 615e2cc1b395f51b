"""Read a pack: images decoded once by `openjepa pack`, for runs of many epochs.

A pack is a folder. pixels.bin holds the images, uint8 (height, width, channels), one after another, and is mapped into memory:
only what a crop covers is read. pack.parquet has a row per image, in order: path, label, offset, height, width; under the key
"openjepa" of its metadata stands JSON with version, source, channels, size_px, classes, num_bytes and reading (reading.py).
skipped.txt lists images that could not be read, one a line: path, tab, reason. Damage to the table's columns and a wrong
length of pixels.bin are noticed when a pack is opened; a changed byte within pixels.bin is a changed pixel, and is not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64, UInt8
from PIL import Image

from openjepa.data.decode import Decoded, Picture, Pixels
from openjepa.data.reading import AS_STORED, Reading
from openjepa.runs.paths import user_path

TABLE, PIXELS, SKIPPED = "pack.parquet", "pixels.bin", "skipped.txt"
METADATA_KEY = b"openjepa"
VERSION = 1
COLUMNS = {"path": pa.string(), "label": pa.int64(), "offset": pa.int64(), "height": pa.int64(), "width": pa.int64()}


@dataclass(frozen=True)
class PackSource:
    """The images of a pack. Three channels are also shown as grey."""

    spec: str
    channels: int
    paths: list[str] = field(repr=False)  # of the files that were packed
    labels: Int64[np.ndarray, " N"] | None = field(repr=False)
    classes: list[str]
    offsets: Int64[np.ndarray, " N"] = field(repr=False)
    shapes: Int64[np.ndarray, "N 3"] = field(repr=False)  # height, width, channels as packed
    pixels: UInt8[np.ndarray, " bytes"] = field(repr=False)  # mapped
    reading: Reading = AS_STORED  # by which the files were packed

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker process that does not inherit the map opens the pack itself, rather than be sent all pixels."""
        return open_pack, (self.spec, self.channels)

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> Picture:
        """The image as it lies in the map; grey if it was packed in colour and is wanted so."""
        first, shape = self.offsets[index], self.shapes[index]
        pixels: Pixels = self.pixels[first : first + shape.prod()].reshape(shape)
        if self.channels != pixels.shape[2]:
            pixels = np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]
        return Decoded(pixels)

    def load(self, index: int) -> Pixels:
        """The image's pixels."""
        return self.open(index).decode()

    def path(self, index: int) -> str:
        """Where the image was when it was packed."""
        return self.paths[index]


def is_pack(folder: Path) -> bool:
    """Whether a folder was made by `openjepa pack`."""
    return (folder / TABLE).is_file()


def read_packed_channels(spec: str) -> int | None:
    """Channels of the images in a pack; None if it is not a pack, or a damaged one, which open_pack reports."""
    try:
        return int(json.loads(pq.read_schema(user_path(spec) / TABLE).metadata[METADATA_KEY])["channels"])
    except (ValueError, LookupError, TypeError, OSError, pa.ArrowException):
        return None


def open_pack(spec: str, channels: int) -> PackSource:
    """Open a pack's folder. ValueError with one line if it is damaged or cannot give `channels` channels."""
    folder = user_path(spec)
    try:
        table = pq.read_table(folder / TABLE, page_checksum_verification=True)
        facts = json.loads(table.schema.metadata[METADATA_KEY])
        if facts["version"] != VERSION:
            raise ValueError(f"it has version {facts['version']}, and this OpenJEPA reads version {VERSION}")
        if dict(zip(table.schema.names, table.schema.types, strict=True)) != COLUMNS:
            raise ValueError(f"the columns of {TABLE} have other names or types")
        columns = {name: table[name].to_numpy().astype(np.int64) for name in ("offset", "height", "width")}
        packed_channels = int(facts["channels"])
        shapes = np.stack([columns["height"], columns["width"], np.full(len(table), packed_channels)], axis=1)
        sizes = shapes.prod(axis=1)
        starts = np.cumsum(sizes) - sizes
        if shapes.min() < 1 or not np.array_equal(columns["offset"], starts) or sizes.sum() != facts["num_bytes"]:
            raise ValueError(f"the sizes in {TABLE} do not fit together")
        found = (folder / PIXELS).stat().st_size
        if found != facts["num_bytes"]:
            raise ValueError(f"{PIXELS} has {found:,} bytes, not {facts['num_bytes']:,}")
        classes = [str(name) for name in facts["classes"]]
        labels = table["label"].to_numpy().astype(np.int64) if classes else None
        paths = table["path"].to_pylist()
        reading = Reading(**facts.get("reading", {}))
    except (ValueError, LookupError, TypeError, OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{spec} is a damaged pack: {reason}; pack the images again with openjepa pack") from None
    if channels != packed_channels and (packed_channels, channels) != (3, 1):
        raise ValueError(
            f"{spec} holds images of {packed_channels} channels and {channels} are asked for; "
            f"pack the images again with openjepa pack --channels {channels}"
        )
    pixels = np.memmap(folder / PIXELS, np.uint8, mode="r")
    return PackSource(spec, channels, paths, labels, classes, columns["offset"], shapes, pixels, reading)
