"""Arithmetic that a training step must do: floating-point operations (FLOPs) of its matrix products, part by part.

A product of (n, k) and (k, m) counts 2nkm; norms, softmax, GELU and losses count nothing, as is usual (Kaplan et al. 2020,
arXiv 2001.08361, section 2.1). Only what the recipe demands is counted: real tokens and no padding, the context projected
once for all blocks, the predictor's last layer at the targets alone, and no gradients of images. docs/performance.md
writes the sum out; tests/unit/test_cost.py holds it against PyTorch's own counter.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from openjepa.masks import Masks
from openjepa.methods.contract import Method

TRAINED = 3  # forward, gradients of the inputs, gradients of the weights: each a product of the same size

Lengths = Float64[Tensor, " sequences"]


def count_flops(method: Method, masks: Masks) -> dict[str, float]:
    """FLOPs of one step of a method on these masks, of its target encoder, context encoder and predictor."""
    vit: Any = method.context_encoder
    predictor: Any = method.predictor
    settings: Any = method.settings
    context, targets = masks.context_lengths.double().cpu(), masks.target_lengths.double().cpu()
    hidden = vit.blocks[0].mlp.fc1.out_features
    embed = 2 * vit.channels * vit.patch_size**2 * vit.embed_dim  # a patch

    flops = {"context": 2 * embed * float(context.sum())}  # forward and weights
    flops["context"] += TRAINED * len(vit.blocks) * count_layer(context, vit.embed_dim, hidden)
    if "target" in method.encoders():
        whole = torch.full_like(context, vit.grid[0] * vit.grid[1])
        seen = whole if settings.target_input == "image" else count_distinct(masks.target_idx)
        flops["target"] = embed * float(seen.sum()) + len(vit.blocks) * count_layer(seen, vit.embed_dim, hidden)

    width, hidden = predictor.output_proj.in_features, predictor.blocks[0].mlp.fc1.out_features
    predicted = targets if settings.predict == "per_block" else targets.sum(1, keepdim=True)
    lengths, wanted = (context[:, None] + predicted).flatten(), predicted.flatten()
    project = 2 * vit.embed_dim * width  # a token
    products = project * float(context.sum()) + 2 * width * predictor.output_proj.out_features * float(wanted.sum())
    products += (len(predictor.blocks) - 1) * count_layer(lengths, width, hidden)
    products += count_layer(lengths, width, hidden, wanted)
    flops["predictor"] = TRAINED * products
    if predictor.positions == "projected":
        flops["predictor"] += 2 * project * float(targets.sum())  # forward and weights
    return flops


def count_layer(lengths: Lengths, width: int, hidden: int, wanted: Lengths | None = None) -> float:
    """FLOPs of a transformer layer's forward pass on sequences of these lengths; `wanted`: tokens it must answer for."""
    wanted = lengths if wanted is None else wanted
    keys_and_values = 2 * 2 * width**2 * lengths.sum()
    queries_output_mlp = (2 * 2 * width**2 + 2 * 2 * width * hidden) * wanted.sum()
    scores_and_sums = 2 * 2 * width * (lengths * wanted).sum()
    return float(keys_and_values + queries_output_mlp + scores_and_sums)


def count_distinct(target_idx: Int64[Tensor, "batch blocks target"]) -> Lengths:
    """How many patches the blocks of each image hold together; a patch counts once, and padding repeats a real one."""
    flat = target_idx.flatten(1)
    held = torch.zeros(len(flat), int(flat.max()) + 1, device=flat.device)
    return held.scatter_(1, flat, 1.0).sum(1).double().cpu()
