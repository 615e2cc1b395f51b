"""Features of a source as a Parquet file that pandas, Polars, DuckDB, LanceDB and Hugging Face datasets read.

One row an image: path, label (class name or null) and features (a fixed-size list of float32). Rows are written as they are
computed, so a folder of any size fits in memory, to a temporary file that is renamed when it is whole.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

from openjepa.data.left_out import list_beside
from openjepa.data.sources import ImageSource, absolute_spec, open_source, printable
from openjepa.engine.precision import Precision, pick_device
from openjepa.evals.features import FeatureBatch, ImageEncoder, stream_features
from openjepa.runs.atomic import whole
from openjepa.runs.paths import absolute_path, user_path
from openjepa.runs.version import __version__
from openjepa.weights.load import EncoderName, load_encoder, load_reading

ROWS_PER_GROUP = 4096  # 12 MB of features at width 768


class Written(NamedTuple):
    """How many rows and columns of features a file got, and (path, reason) of the images that could not be read."""

    num_images: int
    width: int
    skipped: list[tuple[str, str]]


def write_features(
    path: Path,
    encoder: ImageEncoder,
    source: ImageSource,
    *,
    encoder_name: str,
    run: str,
    batch_size: int = 256,
    workers: int = 0,
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
    label: str | None = None,
) -> Written:
    """Write path, label and pooled features of every readable image to a Parquet file, whole or not at all.

    The file's schema says under openjepa.encoder, .run, .data and .version what the features are. encoder_name: context or
    target; run: the run folder or checkpoint; the rest as for stream_features.
    Raises ValueError unless the name ends in .parquet, and as stream_features does; OSError where it cannot be written.
    """
    if path.suffix.lower() != ".parquet":
        raise ValueError(
            f"{path}: features are written as Parquet; end the name in .parquet, as in {path.with_suffix('.parquet')}"
        )
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file to write")
    batches = stream_features(
        encoder, source, batch_size=batch_size, workers=workers, device=device, precision=precision, label=label
    )
    metadata = {
        "encoder": encoder_name,
        "run": printable(run),
        "data": printable(absolute_spec(source.spec)),
        "version": __version__,
    }
    skipped: list[tuple[str, str]] = []
    num_images = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        tables = (_make_table(group, source, metadata) for group in _gather(batches, skipped))
        first = next(tables)  # tells the width
        with parquet.ParquetWriter(temporary, first.schema, compression="zstd", use_dictionary=["label"]) as writer:
            for table in chain([first], tables):
                writer.write_table(table)
                num_images += table.num_rows
    return Written(num_images, first.schema.field("features").type.list_size, skipped)


def _gather(batches: Iterator[FeatureBatch], skipped: list[tuple[str, str]]) -> Iterator[FeatureBatch]:
    """Batches joined to groups of at least ROWS_PER_GROUP rows, the last one aside; notes what was skipped."""
    waiting: list[FeatureBatch] = []
    for batch in batches:
        skipped += batch.skipped
        waiting.append(batch)
        if sum(len(part.image_idx) for part in waiting) >= ROWS_PER_GROUP:
            yield _join(waiting)
            waiting = []
    if waiting:
        yield _join(waiting)


def _join(batches: list[FeatureBatch]) -> FeatureBatch:
    return FeatureBatch(
        np.concatenate([batch.rows for batch in batches]), np.concatenate([batch.image_idx for batch in batches]), []
    )


def _make_table(batch: FeatureBatch, source: ImageSource, metadata: Mapping[str, str]) -> pa.Table:
    """A row group."""
    numbers = batch.image_idx.tolist()
    labels = [None if source.labels is None else source.classes[source.labels[number]] for number in numbers]
    columns = {
        "path": pa.array([source.path(number) for number in numbers], pa.string()),
        "label": pa.array(labels, pa.string()),
        "features": pa.FixedSizeListArray.from_arrays(pa.array(batch.rows.reshape(-1)), batch.rows.shape[1]),
    }
    return pa.table(columns, metadata={f"openjepa.{key}": value for key, value in metadata.items()})


def embed(
    run: str | Path,
    data: str,
    out: str | Path,
    encoder: EncoderName = "context",
    device: str = "auto",
    layers: int = 1,
    note: Callable[[str], None] = lambda words: print(f"openjepa: {words}", file=sys.stderr),
) -> int:
    """Write features of every readable image to a Parquet file; gives the number of rows.

    Files that were passed over or could not be read are listed beside it and counted by note.
    """
    place = pick_device(device)
    loaded = load_encoder(run, encoder, str(place), layers)
    source = open_source(data, loaded.channels, load_reading(run))
    path = user_path(out)
    written = write_features(path, loaded, source, encoder_name=encoder, run=absolute_path(run), device=str(place), label="embed")
    for line in list_beside(path, source, written.skipped):
        note(line)
    return written.num_images
