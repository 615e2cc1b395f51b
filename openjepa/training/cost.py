"""Arithmetic that a training step must do: floating-point operations (FLOPs) of its matrix products, part by part.

A product of (n, k) and (k, m) counts 2nkm; norms, softmax, GELU, losses and regularisers count nothing, as is usual (Kaplan
et al. 2020, arXiv 2001.08361, section 2.1). Only what the recipe demands is counted: real tokens and no padding, the context
projected once for all blocks, the predictor's last layer at the targets alone, and no gradients of images. Of a detector only
the encoder and linear maps are counted, not its convolutions. PyTorch's own
counter agrees on steps without padding (tests/unit/test_cost.py), but counts padding and losses where there are some, and
took 10 to 27 CPU seconds for a recipe, as it needs a step of every image. docs/performance.md writes the sum out.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from openjepa.masks import Masks, sample_masks
from openjepa.methods.contract import Method
from openjepa.methods.data2vec import Data2Vec
from openjepa.methods.ijepa import IJEPA
from openjepa.methods.masked import MaskedMethod
from openjepa.methods.momentum import MomentumMethod
from openjepa.nn.vit import VisionTransformer
from openjepa.recipe.sections import Recipe

TRAINED = 3  # forward, gradients of the inputs, gradients of the weights: each a product of the same size
COUNTED_IMAGES = 256  # with masks of their own, of which the mean is taken

Lengths = Float64[Tensor, " sequences"]


def count_flops(method: Method, recipe: Recipe) -> float:
    """FLOPs of a step for each image, of all its views: the mean over masks as the recipe draws them."""
    if isinstance(method, MaskedMethod):
        assert recipe.mask is not None
        masks = sample_masks(recipe.mask, recipe.grid, COUNTED_IMAGES, seed=recipe.train.seed, step=0)
        return sum(count_parts(method, masks).values()) / COUNTED_IMAGES
    if isinstance(method, Data2Vec):
        return count_data2vec(method, recipe)
    vit, flops = method.context_encoder, 0.0
    passes = TRAINED if any(weight.requires_grad for weight in vit.blocks.parameters()) else 1  # a frozen one has no gradients
    for name, group in recipe.views.items():
        rows, columns = recipe.grid_of(group)
        seen = torch.full((group.count,), float(rows * columns), dtype=torch.float64)
        vectors = group.count * (
            1 + rows * columns if group.mask is not None else 1
        )  # iBOT's head sees every patch of a masked view
        flops += _embed(vit) * (2 if vit.patch_embed.proj.weight.requires_grad else 1) * float(seen.sum())
        flops += passes * _count_layers(vit, seen) + vectors * TRAINED * _count_maps(method, trained=True)
        if isinstance(method, MomentumMethod) and name in method.seen_by_target:
            flops += _embed(vit) * float(seen.sum()) + _count_layers(vit, seen)
            flops += vectors * _count_maps(method, trained=False)
    return flops


def count_data2vec(method: Data2Vec, recipe: Recipe) -> float:
    """FLOPs of a step for each image: one pass of the target encoder, and context encoder and decoder on every mask."""
    vit, decoder, mask = method.context_encoder, method.decoder, recipe.mask
    assert mask is not None
    drawn = sample_masks(mask, recipe.grid, COUNTED_IMAGES, seed=recipe.train.seed, step=0)
    seen, patches = drawn.context_lengths.double(), vit.grid[0] * vit.grid[1]
    context = 2 * _embed(vit) * float(seen.sum()) + TRAINED * _count_layers(vit, seen)
    maps = sum(2 * layer.weight.numel() for layer in [*decoder.layers, decoder.output_proj])
    target = _embed(vit) * patches + _count_layers(vit, torch.full((1,), float(patches), dtype=torch.float64))
    return float(target + mask.per_view * (context / COUNTED_IMAGES + TRAINED * patches * maps))


def count_parts(method: MaskedMethod, masks: Masks) -> dict[str, float]:
    """FLOPs of one step of a masked method on these masks, of its context encoder, target encoder and predictor."""
    vit, predictor, settings = method.context_encoder, method.predictor, method.settings
    context, targets = masks.context_lengths.double().cpu(), masks.target_lengths.double().cpu()
    flops = {"context": 2 * _embed(vit) * float(context.sum()) + TRAINED * _count_layers(vit, context)}  # forward and weights
    if isinstance(method, IJEPA):
        whole = torch.full_like(context, vit.grid[0] * vit.grid[1])
        seen = whole if method.settings.target_input == "image" else count_distinct(masks.target_idx)
        flops["target"] = _embed(vit) * float(seen.sum()) + _count_layers(vit, seen)

    width, hidden = predictor.output_proj.in_features, 4 * predictor.output_proj.in_features
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


def _embed(vit: VisionTransformer) -> int:
    """FLOPs of a patch's embedding."""
    return int(2 * vit.channels * vit.patch_size**2 * vit.embed_dim)


def _count_layers(vit: VisionTransformer, lengths: Lengths) -> float:
    """FLOPs of an encoder's layers on sequences of these lengths, forward."""
    first: Any = vit.blocks[0]
    hidden: int = first.mlp.fc1.out_features
    return len(vit.blocks) * count_layer(lengths, vit.embed_dim, hidden)


def _count_maps(method: Method, trained: bool) -> float:
    """FLOPs of a method's linear maps outside its encoders on a vector, forward: of those that are trained, or of the others."""
    inside = {id(part) for vit in method.encoders().values() for part in vit.modules()}
    maps = [part for part in method.modules() if isinstance(part, nn.Linear) and id(part) not in inside]
    return float(sum(2 * part.weight.numel() for part in maps if part.weight.requires_grad == trained))
