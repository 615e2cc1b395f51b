"""Weighted k-nearest-neighbour classification: the k most similar training images vote, each with exp(cosine / temperature).

Source: Wu et al. 2018 (arXiv 1805.01978, section 3.4), k and temperature as in DINO (Caron et al. 2021, arXiv 2104.14294,
section 3 and appendix F). Nothing is fitted and nothing is chosen, so it reads the features as they are.

Features of an untrained encoder are nearly parallel. Their cosines differ from the sixth digit on,
and float32 has seven, so they are compared by what they add to the mean direction (predict_knn).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from openjepa.evals.features import Features
from openjepa.evals.labels import pair_up
from openjepa.evals.outcome import Outcome

NEIGHBOURS = 20  # DINO, appendix F: best over its models
TEMPERATURE = 0.07  # Wu et al., section 3.4
MOST_SIMILARITIES = 2**25  # held at a time: 128 MB
ROWS = 4096  # held in double precision at a time


def score_knn(
    train: Features, test: Features, seed: int = 0, *, k: int = NEIGHBOURS, temperature: float = TEMPERATURE
) -> Outcome:
    """Accuracy of the weighted vote. With fewer than k training images all of them vote, and the record says how many.

    Nothing is drawn, so the seed is only recorded. Raises ValueError as labels.pair_up does, or for k < 1 or temperature <= 0.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"k-NN needs k of at least 1 and a temperature above 0, not k {k} and temperature {temperature:g}")
    pair = pair_up(train, test)
    used = min(k, len(pair.train_labels))
    predictions = predict_knn(pair.train, pair.train_labels, pair.test, len(pair.classes), used, temperature)
    warnings = [f"all {used} training images vote, fewer than k = {k}"] if used < k else []
    return pair.score("knn", predictions, seed, {"k": used, "temperature": temperature}, warnings)


def predict_knn(
    train: Float[Tensor, "num_train dim"],
    train_labels: Int[Tensor, " num_train"],
    test: Float[Tensor, "num_test dim"],
    num_classes: int,
    k: int,
    temperature: float,
) -> Int[Tensor, " num_test"]:
    """The class with the most votes for every test row; the first of those that tie. k <= num_train.

    Let c be the mean of the training rows, scaled to length 1. For a test row a = c + a' and a
    training row b = c + b', a.b = a'.b' + c.b' + a.c. The last term is the same for all neighbours
    of a and is left out. Where rows are nearly parallel the others are small, as is their error.
    """
    centre = torch.stack([unit.sum(0) for unit in _normalize(train)]).sum(0) / len(train)
    keys, offsets = torch.empty(train.shape), torch.empty(len(train))
    for unit, some_keys, some_offsets in zip(_normalize(train), keys.split(ROWS), offsets.split(ROWS), strict=True):
        some_keys.copy_(unit.sub_(centre))
        some_offsets.copy_(unit @ centre)
    predictions = []
    for rows in test.split(max(1, MOST_SIMILARITIES // len(train))):
        queries = torch.cat([unit.sub_(centre).float() for unit in _normalize(rows)])
        similarities, neighbour_idx = torch.addmm(offsets, queries, keys.T).topk(k, dim=1)
        # Counted from the most similar one, which changes no vote and cannot overflow at a low temperature.
        weights = ((similarities - similarities[:, :1]) / temperature).exp()
        votes = torch.zeros(len(rows), num_classes).scatter_add_(1, train_labels[neighbour_idx], weights)
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)


def _normalize(rows: Float[Tensor, "num_rows dim"]) -> Iterator[Float[Tensor, "part dim"]]:
    """Rows of length 1 in double precision, some at a time."""
    return (functional.normalize(part.double(), dim=1) for part in rows.split(ROWS))
