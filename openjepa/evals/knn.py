"""Weighted k-nearest-neighbour classification: the k most similar training images vote, each with exp(cosine / temperature).

Source: Wu et al. 2018 (arXiv 1805.01978, section 3.4), k and temperature as in DINO (Caron et al. 2021, arXiv 2104.14294,
section 3 and appendix F). Nothing is fitted and nothing is chosen, so it reads the features as they are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from openjepa.engine.neighbours import find_neighbours
from openjepa.evals.features import Features
from openjepa.evals.labels import pair_up
from openjepa.evals.outcome import Outcome

NEIGHBOURS = 20  # DINO, appendix F: best over its models
TEMPERATURE = 0.07  # Wu et al., section 3.4


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
    """The class with the most votes for every test row; the first of those that tie. k <= num_train."""
    neighbours = find_neighbours(test, train, k)
    # Counted from the most similar one, which changes no vote and cannot overflow at a low temperature.
    weights = (-neighbours.behind / temperature).exp()
    return torch.zeros(len(test), num_classes).scatter_add_(1, train_labels[neighbours.idx], weights).argmax(1)
