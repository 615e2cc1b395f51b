"""A detector on annotated images: what it finds, as COCO JSON and pictures, and its average precision.

Every image is read whole, at its own size; boxes and masks come back in its pixels. Images that cannot be read, or have another
size than their annotations, are told apart and count as images in which nothing was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from openjepa.data.annotations import AnnotatedSource
from openjepa.data.decode import DecodeError
from openjepa.data.sources import ImageSource
from openjepa.evals.coco import Row, measure_precision, to_coco, to_predictions, write_predictions
from openjepa.evals.pictures import draw_objects, write_picture
from openjepa.nn.detector import Found

CHUNK = 32  # images held at a time
NUM_PICTURES = 24
LEAST_DRAWN = 0.5  # score of what is drawn

Predict = Callable[[Sequence[Tensor]], list[Found]]  # nn.detector.predict with its detector


@dataclass(frozen=True)
class DetectionScores:
    """AP and its kin (evals/coco.py) of boxes and, if there are any, of masks; and what was found, as COCO's rows.

    by_class: AP and AP50 of each class that has an object, by name, as box_AP or mask_AP50.
    """

    boxes: dict[str, float]
    masks: dict[str, float] | None
    by_class: dict[str, dict[str, float]]
    predictions: list[Row] = field(repr=False)
    skipped: list[tuple[str, str]] = field(repr=False)  # (path, reason)


def score_detector(
    predict: Predict, source: AnnotatedSource, *, predictions: Path | None = None, pictures: Path | None = None
) -> DetectionScores:
    """Run a detector over a source and score it. predictions: a file for COCO JSON; pictures: a folder for some of the images.

    ValueError as score_coco raises it.
    """
    rows: list[Row] = []
    skipped: list[tuple[str, str]] = []
    num_drawn, with_masks = 0, False
    for index, image, found in find_all(predict, source, skipped):
        arrays = (found.boxes.numpy(), found.labels.numpy(), found.scores.numpy())
        masks = None if found.masks is None else found.masks.numpy()
        with_masks = with_masks or masks is not None
        rows += to_predictions(source, index, *arrays, masks)
        if pictures is not None and num_drawn < NUM_PICTURES:
            sure = (found.scores >= LEAST_DRAWN).numpy()
            boxes, labels, scores = (part[sure] for part in arrays)
            pixels = image.permute(1, 2, 0).numpy()
            drawn = draw_objects(pixels, boxes, labels, source.categories, scores, None if masks is None else masks[sure])
            write_picture(pictures / f"{index:06d}.png", drawn)
            num_drawn += 1
    truth = to_coco(source)
    boxes = measure_precision(truth, rows, "bbox")
    masks_of = measure_precision(truth, rows, "segm") if with_masks else None
    if predictions is not None:
        write_predictions(predictions, rows)
    named = dict(zip(source.category_ids, source.categories, strict=True))
    by_class: dict[str, dict[str, float]] = {}
    for prefix, precision in (("box", boxes), ("mask", masks_of)):
        for number, scores in precision.by_class.items() if precision is not None else ():
            by_class.setdefault(named[number], {}).update({f"{prefix}_{key}": value for key, value in scores.items()})
    return DetectionScores(boxes.overall, None if masks_of is None else masks_of.overall, by_class, rows, skipped)


def find_all(
    predict: Predict, source: ImageSource, skipped: list[tuple[str, str]]
) -> Iterator[tuple[int, UInt8[Tensor, "channels height width"], Found]]:
    """Number, pixels and findings of every image that can be read; the others are added to `skipped`.

    An image with annotations is read if it has the size that they are for.
    """
    load = source.load_checked if isinstance(source, AnnotatedSource) else source.load
    for first in range(0, len(source), CHUNK):
        numbers, images = [], []
        for index in range(first, min(first + CHUNK, len(source))):
            try:
                images.append(torch.from_numpy(np.ascontiguousarray(load(index))).permute(2, 0, 1))
                numbers.append(index)
            except DecodeError as error:
                skipped.append((error.path, error.reason))
        yield from zip(numbers, images, predict(images), strict=True)
