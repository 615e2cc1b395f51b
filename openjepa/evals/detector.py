"""A trained detector on test images: the last step of training one, and what `openjepa predict` asks.

The protocol is COCO's (evals/coco.py): whole images, fitted into the size that the detector was trained at, and at most 100
findings an image. Classes are matched by name. AP has no interval here: a bootstrap over images would have to sort and match
anew for every resample.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from openjepa.data.annotations import AnnotatedSource
from openjepa.engine.precision import pick_device
from openjepa.evals.coco import to_coco, write_truth
from openjepa.evals.detection import Predict, score_detector
from openjepa.evals.outcome import Outcome, Score
from openjepa.methods.detection import Detection
from openjepa.nn.detector import Detector, predict
from openjepa.recipe.methods import DETECTION_TASKS
from openjepa.weights.load import find_checkpoint, load_method

PROTOCOL = "COCO: IoU 0.50 to 0.95, 100 findings an image, faster-coco-eval; images fitted into {0} x {1} px"


class TrainedDetector(NamedTuple):
    """A detector ready to find, the classes it knows, and the channels and the canvas that it takes images in."""

    detector: Detector
    classes: list[str]
    channels: int
    size: tuple[int, int]

    @property
    def task(self) -> str:
        """detection, or instances where it finds masks."""
        return next(task for task, kind in DETECTION_TASKS.items() if kind == self.detector.kind)

    @property
    def find(self) -> Predict:
        """What the detector finds in images."""
        return partial(predict, self.detector)


def load_detector(run: str | Path, device: str = "auto") -> TrainedDetector:
    """The detector of a run folder or checkpoint file. ValueError if it holds none."""
    method, recipe, mean, std, classes = load_method(find_checkpoint(run))
    if not isinstance(method, Detection) or classes is None:
        raise ValueError(
            f"{run} holds no detector; train one: openjepa finetune {run} --task detection --train DATA --test DATA --out "
            "runs/detector"
        )
    detector = method.detector
    detector.normalise_with(mean, std)
    method.to(pick_device(device)).eval()
    return TrainedDetector(detector, classes, recipe.data.channels, recipe.data.size)


def score_trained(trained: TrainedDetector, test: AnnotatedSource, num_train: int, seed: int, folder: Path | None) -> Outcome:
    """Average precision on annotated test images, whose classes are the detector's.

    folder: gets found.json and truth.json, for any COCO evaluator, and pictures of some images; None writes nothing.
    """
    predictions = None if folder is None else folder / "found.json"
    if folder is not None:
        write_truth(folder / "truth.json", to_coco(test))
    with torch.inference_mode():
        scored = score_detector(trained.find, test, predictions=predictions, pictures=folder)
    parts = {"box": scored.boxes} | ({} if scored.masks is None else {"mask": scored.masks})
    scores = {f"{part}_{name}": Score(value) for part, found in parts.items() for name, value in found.items()}
    warnings = [f"{len(scored.skipped)} images of {test.spec} could not be read"] if scored.skipped else []
    words = "; ".join(
        f"{part} {', '.join(f'{name} {100 * value:.1f}' for name, value in found.items())}" for part, found in parts.items()
    )
    main = "mask_AP" if "mask" in parts else "box_AP"
    return Outcome(
        task=trained.task, scores=scores, main=main, num_train=num_train, num_test=len(test), num_classes=len(trained.classes),
        seed=seed, hyper_parameters={}, warnings=[*test.notes, *warnings], predictions=np.empty(0, np.int64),
        classes=trained.classes, words=words,
        details={
            "by_class": scored.by_class, "num_test_objects": test.count_objects(), "protocol": PROTOCOL.format(*trained.size),
        },
    )  # fmt: skip
