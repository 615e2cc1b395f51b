"""Retrieval: every test image asks for the training images of its class, by cosine between features; nothing is fitted.

Mean average precision: over the training images ranked by cosine, the precision at each relevant one, averaged over these and
then over test images. Images of equal cosine share one rank, the last of theirs, as in scikit-learn's average_precision_score,
so that the order of files has no part in it. Recall at k: the share of test images with at least one image of their class among
the k nearest, as in metric learning (Oh Song et al. 2016, arXiv 1511.06452). It is not the share of relevant images found,
which k bounds where classes are large. tests/unit/test_retrieval.py compares both with other libraries. The ranking is exact.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from openjepa.engine.neighbours import MOST_SIMILARITIES, find_neighbours
from openjepa.evals.features import Features
from openjepa.evals.labels import pair_up
from openjepa.evals.outcome import Outcome, score_mean, score_share

RECALLS = (1, 5, 10)
# Cosines nearer than this are equal, since only rounding tells them apart: absolute, and as a share of a query's range.
EQUAL, EQUAL_FRAC = 1e-12, 2**-22


def score_retrieval(train: Features, test: Features, seed: int = 0) -> Outcome:
    """Mean average precision and recall at 1, 5 and 10; the seed makes the resamples of its interval.

    Raises ValueError as labels.pair_up does.
    """
    pair = pair_up(train, test)
    num_train, num_test = len(pair.train_labels), len(pair.test_labels)
    recalls = [k for k in RECALLS if k <= num_train]
    precisions, found, nearest = [], [], []
    size = max(1, MOST_SIMILARITIES // num_train)
    for rows, labels in zip(pair.test.split(size), pair.test_labels.split(size), strict=True):
        neighbours = find_neighbours(rows, pair.train, num_train)
        classes = pair.train_labels[neighbours.idx]
        is_relevant = classes == labels[:, None]
        precisions.append(average_precision(is_relevant, neighbours.behind))
        found.append(torch.stack([is_relevant[:, :k].any(1) for k in recalls]))
        nearest.append(classes[:, 0])
    scores = {"mean_average_precision": score_mean(torch.cat(precisions).numpy(), seed)}
    for k, is_found in zip(recalls, torch.cat(found, dim=1), strict=True):
        scores[f"recall_{k}"] = score_share(int(is_found.sum()), num_test)
    return Outcome(
        task="retrieval",
        scores=scores,
        main="mean_average_precision",
        num_train=num_train,
        num_test=num_test,
        num_classes=len(pair.classes),
        seed=seed,
        hyper_parameters={"gallery": num_train},
        warnings=pair.warnings,
        predictions=torch.cat(nearest).numpy(),  # the class of the nearest
        classes=pair.classes,
        note="mean average precision",
        words="Share of test images with an image of their class among the k nearest: "
        + ", ".join(f"{k}: {scores[f'recall_{k}'].value:.1%}" for k in recalls) + ".",
    )  # fmt: skip


def average_precision(
    is_relevant: Bool[Tensor, "queries pool"], behind: Float[Tensor, "queries pool"]
) -> Float[Tensor, " queries"]:
    """Average precision of each query, whose pool is ranked. behind: by how much a cosine is below the first one's, rising."""
    num_pool = is_relevant.shape[1]
    ends_tie = torch.ones_like(is_relevant)
    ends_tie[:, :-1] = behind.diff(dim=1) > (EQUAL_FRAC * behind[:, -1:]).clamp_min(EQUAL)
    place = torch.arange(num_pool).expand_as(is_relevant)
    last = place.where(ends_tie, num_pool).flip(1).cummin(1).values.flip(1)  # of the images of equal cosine
    precision = is_relevant.cumsum(1).gather(1, last).double() / (last + 1)
    return (precision * is_relevant).sum(1) / is_relevant.sum(1)
