"""Average precision of boxes and masks as COCO measures it, from predictions as COCO JSON.

Source: T.-Y. Lin et al. 2014 (arXiv 1405.0312) and the detection evaluation at cocodataset.org: AP is the mean over classes and
over IoU thresholds of 0.5 to 0.95; AP50 and AP75 are of one threshold; small, medium and large are objects below 32**2, between,
and above 96**2 pixels of the original image. A crowd region is nobody's miss, and what is found in it is no mistake. The library
is faster-coco-eval; tests/unit/test_coco.py runs it by itself on the files that are written here.

The truth is what annotations.py could use, with annotations numbered from 1: evaluators take number 0 for "unmatched". Images and
classes keep the numbers of the user's file, so that predictions can be scored against that, too. Left out: average recall.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64

from openjepa.data.annotations import AnnotatedSource
from openjepa.runs.atomic import write_atomic

try:
    from faster_coco_eval import COCO, COCOeval_faster
    from faster_coco_eval.core import mask as coco_mask
except ImportError:
    raise ValueError("average precision needs faster-coco-eval: pip install 'openjepa[detection]'") from None

Row = dict[str, Any]
Measured = Literal["bbox", "segm"]

NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")  # in the order of the library's first numbers
DECIMALS = 3  # of a pixel, in predictions


def to_coco(source: AnnotatedSource) -> Row:
    """The truth of a source as a COCO annotation file holds it."""
    annotations: list[Row] = []
    for image_id, objects in zip(source.image_ids, source.objects, strict=True):
        for number, label in enumerate(objects.labels.tolist()):
            row: Row = {
                "id": len(annotations) + 1, "image_id": image_id, "category_id": source.category_ids[label],
                "bbox": _to_xywh(objects.boxes[number]), "area": float(objects.areas[number]),
                "iscrowd": int(objects.crowd_mask[number]),
            }  # fmt: skip
            if objects.segmentations[number] is not None:
                row["segmentation"] = objects.segmentations[number]
            annotations.append(row)
    images = [
        {"id": image_id, "file_name": source.path(index), "height": objects.size[0], "width": objects.size[1]}
        for index, (image_id, objects) in enumerate(zip(source.image_ids, source.objects, strict=True))
    ]
    categories = [{"id": number, "name": name} for number, name in zip(source.category_ids, source.categories, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def to_predictions(
    source: AnnotatedSource,
    index: int,
    boxes: Float32[np.ndarray, "objects 4"],
    labels: Int64[np.ndarray, " objects"],
    scores: Float32[np.ndarray, " objects"],
    masks: Bool[np.ndarray, "objects height width"] | None = None,
) -> list[Row]:
    """Rows of COCO's results format for what was found in an image of a source."""
    return to_rows(source.image_ids[index], source.category_ids, boxes, labels, scores, masks)


def to_rows(
    image_id: int,
    category_ids: Sequence[int],
    boxes: Float32[np.ndarray, "objects 4"],
    labels: Int64[np.ndarray, " objects"],
    scores: Float32[np.ndarray, " objects"],
    masks: Bool[np.ndarray, "objects height width"] | None = None,
) -> list[Row]:
    """Rows of COCO's results format for what was found in an image."""
    rows: list[Row] = []
    for number, label in enumerate(labels.tolist()):
        row: Row = {
            "image_id": image_id, "category_id": category_ids[label],
            "bbox": [round(value, DECIMALS) for value in _to_xywh(boxes[number])], "score": float(scores[number]),
        }  # fmt: skip
        if masks is not None:
            encoded = coco_mask.encode(np.asfortranarray(masks[number].astype(np.uint8)))
            row["segmentation"] = {"size": list(masks[number].shape), "counts": _to_text(encoded["counts"])}
        rows.append(row)
    return rows


def number_rows(rows: Sequence[Row], first_id: int) -> list[Row]:
    """Results as the annotations of a whole COCO file, which have numbers and areas."""
    numbered = []
    for number, row in enumerate(rows, first_id):
        area = float(coco_mask.area(row["segmentation"])) if "segmentation" in row else row["bbox"][2] * row["bbox"][3]
        numbered.append({"id": number, **row, "area": area, "iscrowd": 0})
    return numbered


def write_truth(path: Path, content: Row) -> None:
    """Write a whole COCO file, or nothing of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n")


def write_predictions(path: Path, rows: Sequence[Row]) -> None:
    """Write results as COCO JSON, whole or not at all."""
    write_atomic(path, json.dumps(list(rows), separators=(",", ":"), allow_nan=False) + "\n")


class Precision(NamedTuple):
    """AP and its kin in [0, 1] by name, over all classes; and AP and AP50 of each class that has an object, by its id."""

    overall: dict[str, float]
    by_class: dict[int, dict[str, float]]


def score_coco(truth: Row, predictions: Sequence[Row], measured: Measured) -> dict[str, float]:
    """As measure_precision, over all classes."""
    return measure_precision(truth, predictions, measured).overall


def measure_precision(truth: Row, predictions: Sequence[Row], measured: Measured) -> Precision:
    """AP, AP50, AP75 and AP by size in [0, 1]; those of sizes that no object has are left out.

    Nothing found is an AP of 0. ValueError if no object is there to be found, or masks are asked for and some lack one.
    """
    wanted = [row for row in truth["annotations"] if not row["iscrowd"]]
    if not wanted:
        raise ValueError("there is no object to be found: the annotations hold crowd regions alone, or nothing")
    if measured == "segm":
        for what, rows in (("annotations", truth["annotations"]), ("predictions", predictions)):
            lacking = sum("segmentation" not in row for row in rows)
            if lacking:
                raise ValueError(f"{lacking} of {len(rows)} {what} have no mask; average precision of masks needs one of each")
    evaluator = COCOeval_faster(_load(truth), None, measured, print_function=_say_nothing)
    evaluator.cocoDt = evaluator.cocoGt.loadRes([dict(row) for row in predictions])
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    values = [float(value) for value in evaluator.stats[: len(NAMES)]]
    overall = {name: value for name, value in zip(NAMES, values, strict=True) if value >= 0}  # -1 stands for "no such object"
    at_all_sizes = np.asarray(evaluator.eval["precision"])[:, :, :, 0, -1]  # thresholds, recalls, classes
    by_class = {}
    for number, category_id in enumerate(evaluator.params.catIds):
        found = at_all_sizes[:, :, number]
        if (found >= 0).any():
            by_class[int(category_id)] = {"AP": float(found.mean()), "AP50": float(found[0].mean())}
    return Precision(overall, by_class)


def _load(truth: Row) -> COCO:
    """The library's view of a truth, of which it may change a copy alone."""
    loaded = COCO(print_function=_say_nothing)
    loaded.dataset = {**truth, "annotations": [dict(row) for row in truth["annotations"]]}
    loaded.createIndex()
    return loaded


def _say_nothing(*_: object) -> None:
    return


def _to_xywh(box: Float32[np.ndarray, " 4"]) -> list[float]:
    left, top, right, bottom = (float(value) for value in box)
    return [left, top, right - left, bottom - top]


def _to_text(counts: str | bytes) -> str:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts
