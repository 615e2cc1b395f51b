"""Retrieval against scikit-learn's average precision and torchmetrics' hit rate."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch.nn import functional
from torchmetrics.functional.retrieval import retrieval_hit_rate

from openjepa.evals import retrieval
from openjepa.evals.retrieval import score_retrieval
from tests.contract.test_tasks import make_clusters


@pytest.mark.parametrize("per_block", [7, 1000])
@pytest.mark.parametrize("decimals", [None, 0])  # rounded features tie
def test_agrees_with_other_libraries(monkeypatch, per_block, decimals):
    train, test = make_clusters("train", 15, spread=0.7), make_clusters("test", 10, spread=0.7, seed=1)
    if decimals is not None:
        for features in (train, test):
            features.rows[:] = np.round(features.rows, decimals)
    monkeypatch.setattr(retrieval, "MOST_SIMILARITIES", per_block * len(train.rows))
    found = score_retrieval(train, test)
    rows, queries = (functional.normalize(torch.from_numpy(features.rows).double(), dim=1) for features in (train, test))
    cosines = (queries @ rows.T).round(decimals=9)
    relevant = torch.from_numpy(test.labels)[:, None] == torch.from_numpy(train.labels)
    pairs = list(zip(relevant, cosines, strict=True))
    expected = np.mean([average_precision_score(mask.numpy(), row.numpy()) for mask, row in pairs])
    assert found.scores["mean_average_precision"].value == pytest.approx(expected, abs=1e-6)
    if decimals is None:
        for k in (1, 5, 10):
            hits = [retrieval_hit_rate(row, mask, top_k=k) for mask, row in pairs]
            assert found.scores[f"recall_{k}"].value == pytest.approx(float(torch.stack(hits).mean()))


def test_recall_at_more_images_than_there_are_is_left_out():
    found = score_retrieval(make_clusters("train", 1), make_clusters("test", 2, seed=1))
    assert set(found.scores) == {"mean_average_precision", "recall_1"}
