"""`openjepa predict`: what a trained classifier or detector says of images.

Of a classifier, the class of every image, as a table that any tool reads; of a detector, a COCO file and pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import torch
from pyarrow import csv, parquet

from openjepa.data.left_out import list_beside
from openjepa.data.sources import open_source
from openjepa.engine.precision import pick_device
from openjepa.evals.classifier import load_classifier
from openjepa.evals.features import extract_features
from openjepa.runs.atomic import whole
from openjepa.runs.paths import user_path
from openjepa.weights.load import load_reading, name_method

SUFFIXES = (".csv", ".parquet")


def predict(
    run: str | Path,
    images: str,
    out: str | Path,
    device: str = "auto",
    note: Callable[[str], None] = lambda words: print(f"openjepa: {words}", file=sys.stderr),
) -> int:
    """Write path, label (where images have one), predicted class and its probability; gives the number of rows.

    Of a detector: see commands/detection.predict_objects. note: is told what was passed over or could not be read, a line each;
    both are listed beside the file.
    ValueError if the run holds no classifier, the images cannot be read, or the file's name ends in neither .csv nor .parquet.
    """
    if name_method(run) == "detection":
        from openjepa.commands.detection import predict_objects  # needs the extra [detection]

        return predict_objects(run, images, out, device, note)
    path = user_path(out)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: predictions are written as {' or '.join(SUFFIXES)}; end the name in one of them")
    classifier = load_classifier(run, device)
    source = open_source(images, classifier.channels, load_reading(run))
    found = extract_features(classifier, source, device=pick_device(device), label="predict")
    best = torch.from_numpy(found.rows).softmax(1).max(1)
    columns = {"path": pa.array([source.path(number) for number in found.image_idx.tolist()], pa.string())}
    if found.labels is not None:
        columns["label"] = pa.array([found.classes[label] for label in found.labels.tolist()], pa.string())
    columns["predicted"] = pa.array([classifier.classes[number] for number in best.indices.tolist()], pa.string())
    columns["probability"] = pa.array(best.values.numpy())
    table = pa.table(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        if path.suffix.lower() == ".csv":
            csv.write_csv(table, temporary)
        else:
            parquet.write_table(table, temporary)
    for line in list_beside(path, source, found.skipped):
        note(line)
    return len(table)
