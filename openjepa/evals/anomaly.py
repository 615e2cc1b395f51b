"""Anomaly detection: how well a number an image, and one a patch, tell images with a defect from normal ones.

The measure is the area under the ROC curve (Hanley and McNeil 1982): the share of pairs of a defect and a normal one in which the
defect has the higher number, ties counting half. Of images by their own number (`image_auroc`) and by that of their worst patch
(`image_auroc_by_patch`); of pixels of all images as one set, where maps of defects exist (`pixel_auroc`): a pixel has the number
of its patch, which is not interpolated. Intervals are percentiles of a bootstrap over images, normal ones and defects apart.

The task here compares with normal training images: the number is the cosine distance to the nearest one's features, pooled ones
for an image and patches for a patch, after PatchCore, Roth et al. 2021 (arXiv 2106.08265, section 3), without its neighbourhoods
of patches, its coreset (a random part of the patches serves), and its reweighting. The energy of a run, which needs no training
images, is scored by the same code (commands/energy.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torch.nn import functional

from openjepa.data.defects import DefectSource, is_normal, open_defects
from openjepa.data.reading import AS_STORED, Reading
from openjepa.data.sources import ImageSource, open_source
from openjepa.engine.neighbours import find_neighbours
from openjepa.evals.features import FeatureStore, Floats, Integers
from openjepa.evals.outcome import BOOTSTRAP, RESAMPLES, TAILS, Outcome, Score
from openjepa.evals.segmentation import find_view
from openjepa.evals.task import TaskSettings, refuse_unread

MOST_PATCHES = 2**14  # of training images, that patches are compared with
POOL = 16  # what a generator is for: the second number of its seed

Weights = Float64[np.ndarray, " values"]


@dataclass(frozen=True)
class Suspicion:
    """How much images and their patches look like defects: higher is more. image_idx: numbers in the source."""

    images: Float64[np.ndarray, " images"] = field(repr=False)
    patches: Float64[np.ndarray, "images down across"] = field(repr=False)
    image_idx: Integers = field(repr=False)


@dataclass(frozen=True)
class AnomalyTask:
    """The row of TASKS: distance to the nearest normal training image."""

    name: str
    title: str

    def open(
        self, train: str, test: str, channels: int, settings: TaskSettings, reading: Reading = AS_STORED
    ) -> tuple[ImageSource, ImageSource]:
        """Normal training images, and test images with and without a defect."""
        refuse_unread(self.name, ("test_annotations",), settings)
        return open_normal(train, channels, reading), open_defects(test, channels, settings.test_annotations, reading)

    def evaluate(
        self, features: FeatureStore, train: ImageSource, test: ImageSource, settings: TaskSettings, seed: int
    ) -> Outcome:
        """Distances of test images to training images, scored."""
        assert isinstance(test, DefectSource)
        if settings.layers != 1:
            raise ValueError(f"task {self.name} reads the last layer's patches: drop --layers {settings.layers}")
        known, seen = features.extract(train), features.extract(test)
        known_patches, seen_patches = (flatten(features.extract_patches(source).rows) for source in (train, test))
        pool_idx = np.random.default_rng([seed, POOL]).permutation(len(known_patches))[:MOST_PATCHES]
        pool = known_patches[torch.from_numpy(np.sort(pool_idx))]
        grid = features.patch_shape()[:2]
        suspicion = Suspicion(
            find_distances(torch.from_numpy(seen.rows), torch.from_numpy(known.rows)),
            find_distances(seen_patches, pool).reshape(-1, *grid),
            seen.image_idx,
        )
        skipped = [f"{len(part.skipped)} images of {part.spec} could not be read" for part in (known, seen) if part.skipped]
        outcome = score_suspicion(self.name, suspicion, test, features.encoder.size, seed)
        return replace(
            outcome, num_train=len(known.image_idx), hyper_parameters={"k": 1, "pool": len(pool)},
            warnings=outcome.warnings + skipped,
        )  # fmt: skip


def open_normal(spec: str, channels: int, reading: Reading = AS_STORED) -> ImageSource:
    """Training images, all of them normal. ValueError if class folders say that some are not."""
    source = open_source(spec, channels, reading)
    others = [name for name in source.classes if not is_normal(name)]
    if others and len(others) < len(source.classes):
        normal = next(name for name in source.classes if is_normal(name))
        raise ValueError(f"{spec} has class folders beside {normal}: {', '.join(others[:5])}; give the normal images alone")
    return source


def flatten(rows: Floats) -> Float[Tensor, "patches dim"]:
    """Patch features of all images in a row."""
    return torch.from_numpy(rows).flatten(0, 1)


def find_distances(queries: Float[Tensor, "queries dim"], pool: Float[Tensor, "pool dim"]) -> Float64[np.ndarray, " queries"]:
    """1 - cosine to the nearest row of the pool."""
    nearest = pool[find_neighbours(queries, pool, 1).idx.squeeze(1)]
    distances: Float64[np.ndarray, " queries"] = (1 - functional.cosine_similarity(queries.double(), nearest.double())).numpy()
    return distances


def score_suspicion(task: str, suspicion: Suspicion, source: DefectSource, size: tuple[int, int], seed: int) -> Outcome:
    """Areas under ROC curves of images and pixels. size: of the view that the patches are of, in pixels.

    ValueError if no normal image, or none with a defect, could be read.
    """
    numbers, patches = suspicion.image_idx, suspicion.patches.reshape(len(suspicion.images), -1)
    is_defect = source.is_defect[numbers]
    if is_defect.all() or not is_defect.any():
        raise ValueError(f"of {source.spec} only {'images with a defect' if is_defect.all() else 'normal images'} could be read")
    assert source.labels is not None
    images, worst = np.arange(len(numbers)), patches.max(1)
    scores = {
        "image_auroc": score_auroc(suspicion.images, images, ~is_defect * 1.0, is_defect * 1.0, is_defect, seed),
        "image_auroc_by_patch": score_auroc(worst, images, ~is_defect * 1.0, is_defect * 1.0, is_defect, seed),
    }
    if source.maps is not None:
        pixels = [count_pixels(source.read_defect(index), size, suspicion.patches.shape[1:]) for index in numbers.tolist()]
        normal, defect = (np.stack(column).ravel() for column in zip(*pixels, strict=True))
        if defect.any():
            rows = images.repeat(patches.shape[1])
            scores["pixel_auroc"] = score_auroc(patches.ravel(), rows, normal, defect, is_defect, seed)
    kinds = [name for name in source.classes if not is_normal(name)]
    for name in kinds if len(kinds) > 1 else ():
        of_kind = is_defect & (source.labels[numbers] == source.classes.index(name))
        if of_kind.any():
            of_kind_score = score_auroc(suspicion.images, images, ~is_defect * 1.0, of_kind * 1.0, is_defect, seed)
            scores[f"image_auroc {name}"] = of_kind_score
    details: dict[str, Any] = {"num_defects": int(is_defect.sum())}
    return Outcome(
        task=task,
        scores=scores,
        main="image_auroc",
        num_train=0,
        num_test=len(numbers),
        num_classes=2,
        seed=seed,
        hyper_parameters={},
        warnings=[source.unused] if source.unused else [],
        predictions=np.empty(0, np.int64),
        classes=["normal", "defect"],
        note="area under the ROC curve",
        words="; ".join(f"{name.replace('_', ' ').replace('auroc', 'AUROC')} {score.value:.3f}" for name, score in scores.items())
        + ".",
        details=details,
    )


def count_pixels(
    defect: Bool[np.ndarray, "height width"] | None, size: tuple[int, int], grid: tuple[int, ...]
) -> tuple[Float64[np.ndarray, " patches"], Float64[np.ndarray, " patches"]]:
    """How many normal pixels and pixels of a defect each patch of the evaluation view has; none where that is not known."""
    num_patches = grid[0] * grid[1]
    if defect is None:
        return np.zeros(num_patches), np.zeros(num_patches)
    seen = defect[find_view(defect.astype(np.uint8), size)]
    rows, columns = (np.arange(side) * count // side for side, count in zip(seen.shape, grid, strict=True))
    patch = rows[:, None] * grid[1] + columns[None, :]
    normal, wrong = (np.bincount(patch[part], minlength=num_patches).astype(np.float64) for part in (~seen, seen))
    return normal, wrong


def score_auroc(
    values: Float64[np.ndarray, " values"],
    image: Int64[np.ndarray, " values"],
    normal: Weights,
    defect: Weights,
    is_defect: Bool[np.ndarray, " images"],
    seed: int,
) -> Score:
    """The area under the ROC curve of weighted values with its interval.

    image: whose value each is. normal, defect: how many normal things, and how many of a defect, have the value.
    """
    levels, place = np.unique(values, return_inverse=True)

    def measure(times: Float64[np.ndarray, " images"]) -> float:
        of_normal = np.bincount(place, normal * times[image], minlength=len(levels))
        of_defect = np.bincount(place, defect * times[image], minlength=len(levels))
        pairs = of_normal.sum() * of_defect.sum()
        return float(of_defect @ (of_normal.cumsum() - of_normal / 2) / pairs) if pairs else np.nan

    generator = np.random.default_rng([seed, BOOTSTRAP])
    drawn = np.empty(RESAMPLES)
    for draw in range(RESAMPLES):
        times = np.zeros(len(is_defect))
        for group in (np.flatnonzero(~is_defect), np.flatnonzero(is_defect)):
            times += np.bincount(group[generator.integers(len(group), size=len(group))], minlength=len(is_defect))
        drawn[draw] = measure(times)
    value = measure(np.ones(len(is_defect)))
    low, high = np.nanquantile(drawn, TAILS)
    return Score(value, (min(float(low), value), max(float(high), value)))
