"""The attentive probe: its formula, heads that do not disturb one another, and what it finds that a mean hides."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from openjepa.evals.attentive import AttentiveHeads, Setting, measure_channels, score_attentive, train_heads
from openjepa.evals.features import Features
from openjepa.evals.linear import score_linear


def test_scores_are_the_papers_formula():
    """Each query's softmax over patches, its own slice of the values, slices side by side, a linear classifier."""
    heads = AttentiveHeads(2, 12, 3, torch.Generator().manual_seed(0)).double()
    for weight in heads.parameters():
        torch.nn.init.normal_(weight)
    tokens = torch.randn(2, 5, 12, dtype=torch.float64)
    for head in range(2):
        queries, values, classify, bias = heads.weights_of(head)
        assert values.shape == (4, 12, 3)  # 8 queries do not divide 12; 4 do
        for image in range(2):
            pooled = []
            for query in range(4):
                logits = [float(queries[query] @ tokens[image, patch]) / math.sqrt(12) for patch in range(5)]
                shares = [math.exp(logit) / sum(map(math.exp, logits)) for logit in logits]
                pooled += sum(share * (tokens[image, patch] @ values[query]) for patch, share in enumerate(shares)).tolist()
            expected = classify @ torch.tensor(pooled, dtype=torch.float64) + bias
            torch.testing.assert_close(heads(tokens)[head, image], expected)


def make_hidden(spec, count, seed, num_patches=16, dim=16):
    """One patch of each image, anywhere, carries a mark and its class; the others are noise of the classes' own dimensions."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(4, size=count)
    rows = draw.standard_normal((count, num_patches, dim)).astype(np.float32)
    rows[:, :, 4] = 0
    place = draw.integers(num_patches, size=count)
    rows[np.arange(count), place, :4] = 2 * np.eye(4, dtype=np.float32)[labels]
    rows[np.arange(count), place, 4] = 4
    return Features(rows, labels, np.arange(count), ["a", "b", "c", "d"], spec)


def test_finds_what_lies_in_one_patch():
    train, test = make_hidden("train", 600, 0), make_hidden("test", 300, 1)
    attentive = score_attentive(train, test)
    means = [Features(one.rows.mean(1), one.labels, one.image_idx, one.classes, one.spec) for one in (train, test)]
    assert attentive.score > 0.9 > score_linear(*means).score + 0.1
    assert set(attentive.hyper_parameters) == {"lr", "weight_decay", "num_queries", "num_held_out", "held_out_accuracy"}


def test_heads_trained_together_are_those_trained_alone():
    features = make_hidden("train", 100, 0)
    tokens, labels = torch.from_numpy(features.rows), torch.from_numpy(features.labels)
    moments = measure_channels(tokens)
    chosen = torch.arange(100)
    grid = [Setting(1e-3, 0.1), Setting(1e-2, 0.0)]
    together = train_heads(tokens, labels, chosen, grid, 4, moments, 0)
    for number, setting in enumerate(grid):
        alone = train_heads(tokens, labels, chosen, [setting], 4, moments, 0)
        for first, second in zip(together.weights_of(number), alone.weights_of(0), strict=True):
            torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)


def test_channels_are_standardised_over_all_patches():
    tokens = torch.randn(300, 4, 3) * torch.tensor([1.0, 5.0, 0.0]) + 7
    mean, std = measure_channels(tokens)
    flat = tokens.flatten(0, 1).double()
    torch.testing.assert_close(mean.double(), flat.mean(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(std[:2].double(), flat.std(0, unbiased=False)[:2], rtol=1e-5, atol=0)
    assert std[2] == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_is_a_function_of_the_seed(seed):
    train, test = make_hidden("train", 80, 0), make_hidden("test", 40, 1)
    before = torch.random.get_rng_state()
    first, second = score_attentive(train, test, seed), score_attentive(train, test, seed)
    assert first.to_record() == second.to_record()
    assert torch.equal(torch.random.get_rng_state(), before), "torch's own generator is left alone"
    assert functional.one_hot(torch.from_numpy(first.predictions)).sum() == 40
