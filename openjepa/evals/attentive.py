"""Attentive probe: learned queries choose among patch features, then a linear classifier; the encoder is frozen.

Source: efficient probing, Psomas et al. 2025 (arXiv 2506.10178): each of M queries attends to the tokens by softmax, without
a projection of keys, and reads a slice of its own of the projected values; the slices side by side are classified. Linear
classification of the mean patch underrates encoders whose features lie in patches, as those of masked prediction do.

Heads of a grid of learning rates and weight decays train together, on one pass over cached patch features (as in capi,
Darcet et al. 2025, arXiv 2502.08769, appendix). The one with the best accuracy on a held-out, stratified tenth of the
training images is then trained again on all of them, and tested once. Left out: augmented views, positions beside those that
the encoder has put into its tokens.
"""

from __future__ import annotations

import math
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from openjepa.engine.threads import threads_for
from openjepa.evals.features import Features
from openjepa.evals.labels import pair_up
from openjepa.evals.linear import hold_out
from openjepa.evals.outcome import Outcome

NUM_QUERIES = 8  # at most; each reads a slice of the values, so their number divides the width
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
DECAYS = (1e-3, 0.1)
EPOCHS = 20
MIN_STEPS = 150  # of few images, more epochs
BATCH = 256
WARMUP_FRAC = 0.1
HEADS = 12  # what a generator is for: the second number of its seed


class Setting(NamedTuple):
    """How one head is trained."""

    lr: float
    weight_decay: float


class AttentiveHeads(nn.Module):
    """H attentive classifiers side by side, with weights of their own and the same start."""

    def __init__(self, num_heads: int, dim: int, num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        num_queries = math.gcd(NUM_QUERIES, dim)
        slice_width = dim // num_queries
        queries = torch.randn(num_queries, dim, generator=generator) / math.sqrt(dim)
        values = torch.randn(num_queries, dim, slice_width, generator=generator) / math.sqrt(dim)
        classify = torch.randn(num_classes, dim, generator=generator) * 0.01
        self.queries = nn.ParameterList(queries.clone() for _ in range(num_heads))
        self.values = nn.ParameterList(values.clone() for _ in range(num_heads))
        self.classify = nn.ParameterList(classify.clone() for _ in range(num_heads))
        self.bias = nn.ParameterList(torch.zeros(num_classes) for _ in range(num_heads))

    def forward(self, tokens: Float[Tensor, "batch patches dim"]) -> Float[Tensor, "heads batch classes"]:
        """Scores of each head."""
        queries, values = torch.stack(tuple(self.queries)), torch.stack(tuple(self.values))
        scale = 1 / math.sqrt(tokens.shape[-1])
        attention = torch.einsum("bpd,hmd->hbmp", tokens, queries).mul(scale).softmax(-1)
        chosen = torch.einsum("hbmp,bpd->hbmd", attention, tokens)
        slices = torch.einsum("hbmd,hmde->hbme", chosen, values).flatten(2)
        scores: Tensor = torch.einsum("hbd,hcd->hbc", slices, torch.stack(tuple(self.classify)))
        return scores + torch.stack(tuple(self.bias))[:, None]

    def weights_of(self, head: int) -> list[nn.Parameter]:
        """The weights of one head, which no other uses."""
        return [self.queries[head], self.values[head], self.classify[head], self.bias[head]]


def score_attentive(train: Features, test: Features, seed: int = 0) -> Outcome:
    """Accuracy of an attentive probe on patch features (n, P, D). The seed draws the held-out images, weights and order.

    Raises ValueError as labels.pair_up does.
    """
    pair = pair_up(train, test)
    tokens, labels = pair.train, pair.train_labels
    mean, std = measure_channels(tokens)
    held_out_mask = hold_out(labels, seed)
    kept_idx, held_idx = (~held_out_mask).nonzero().squeeze(1), held_out_mask.nonzero().squeeze(1)
    grid = [Setting(*pair) for pair in product(RATES, DECAYS)]
    num_classes = len(pair.classes)

    with threads_for(tokens.numel()):
        heads = train_heads(tokens, labels, kept_idx, grid, num_classes, (mean, std), seed)
        scores, truth = score(heads, tokens[held_idx], mean, std), labels[held_idx]
        right = (scores.argmax(-1) == truth).double().mean(1)
        errors = torch.stack([functional.cross_entropy(rows, truth) for rows in scores])
        best = min(range(len(grid)), key=lambda head: (-float(right[head]), float(errors[head])))  # of those that tie, the surest
        chosen = train_heads(tokens, labels, torch.arange(len(labels)), [grid[best]], num_classes, (mean, std), seed)
        predictions = score(chosen, pair.test, mean, std)[0].argmax(-1)

    settings = {
        "lr": grid[best].lr, "weight_decay": grid[best].weight_decay, "num_queries": chosen.queries[0].shape[0],
        "num_held_out": len(held_idx), "held_out_accuracy": float(right[best]),
    }  # fmt: skip
    at_edge = grid[best].lr in (RATES[0], RATES[-1]) and int((right == right[best]).sum()) == 1
    doubts = [f"the chosen rate {grid[best].lr:g} is at the edge of the grid; one beyond it may be better"] if at_edge else []
    return pair.score("attentive", predictions, seed, settings, doubts)


def train_heads(
    tokens: Float[Tensor, "images patches dim"],
    labels: Int[Tensor, " images"],
    chosen_idx: Int[Tensor, " chosen"],
    grid: list[Setting],
    num_classes: int,
    moments: tuple[Tensor, Tensor],
    seed: int,
) -> AttentiveHeads:
    """One head for each setting, trained by AdamW on the chosen images; all see the same batches."""
    generator = torch.Generator().manual_seed(int(np.random.default_rng([seed, HEADS]).integers(2**62)))
    heads = AttentiveHeads(len(grid), tokens.shape[-1], num_classes, generator)
    groups = [
        {"params": heads.weights_of(number), "lr": setting.lr, "weight_decay": setting.weight_decay, "peak": setting.lr}
        for number, setting in enumerate(grid)
    ]
    optimizer = torch.optim.AdamW(groups)
    size = min(BATCH, len(chosen_idx))
    per_epoch = -(-len(chosen_idx) // size)
    total = per_epoch * max(EPOCHS, -(-MIN_STEPS // per_epoch))
    mean, std = moments
    step = 0
    while step < total:
        for batch_idx in chosen_idx[torch.randperm(len(chosen_idx), generator=generator)].split(size):
            share = min((step + 1) / (WARMUP_FRAC * total), 0.5 * (1 + math.cos(math.pi * step / total)))
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            scores = heads((tokens[batch_idx] - mean) / std)
            loss = functional.cross_entropy(scores.flatten(0, 1), labels[batch_idx].repeat(len(grid))) * len(grid)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
    return heads


@torch.inference_mode()
def score(
    heads: AttentiveHeads,
    tokens: Float[Tensor, "images patches dim"],
    mean: Float[Tensor, " dim"],
    std: Float[Tensor, " dim"],
) -> Float[Tensor, "heads images classes"]:
    """Each head's scores of the classes."""
    return torch.cat([heads((part - mean) / std) for part in tokens.split(BATCH)], dim=1)


def measure_channels(tokens: Float[Tensor, "images patches dim"]) -> tuple[Float[Tensor, " dim"], Float[Tensor, " dim"]]:
    """Mean and standard deviation of every channel over all patches; one that is rounding error next to the largest is 1."""
    mean = torch.stack([part.double().sum((0, 1)) for part in tokens.split(BATCH)]).sum(0) / tokens[..., 0].numel()
    squares = torch.stack([(part.double() - mean).square().sum((0, 1)) for part in tokens.split(BATCH)]).sum(0)
    std = (squares / tokens[..., 0].numel()).sqrt()
    return mean.float(), std.where(std > 1e-6 * std.max(), 1.0).float()
