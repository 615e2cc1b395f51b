"""Heads and comparisons of the methods with two encoders, from their papers, one image at a time where the equation allows it.

Shares no code with openjepa; the encoder is equations.py's. Batch norm is the one thing that an image alone does not have.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.models import small_method
from tests.parity.equations import Setup, Weights, encode, positions

PATCH, HEADS = 4, 2
SIZE = 16
BATCH_NORM_EPS = 1e-5


def make_double(name: str, **changes: object):
    """A small method in float64 whose target differs from what it follows, biases and norms moved off 0 and 1."""
    method = small_method(name, 0, **{"data__image_size": SIZE, "model__width": 16, "model__depth": 1} | changes).double().train()
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight_name, weight in method.named_parameters():
            if not weight_name.endswith("pos_embed"):
                weight.add_(0.1 * torch.randn(weight.shape, generator=noise, dtype=torch.float64))
        for vit in method.encoders().values():  # whose tables were drawn up in float32
            vit.pos_embed.copy_(positions(vit.grid, vit.embed_dim))
    return method


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def part(method: torch.nn.Module, name: str) -> Weights:
    return {key.removeprefix(f"{name}."): value for key, value in method.state_dict().items() if key.startswith(f"{name}.")}


def see(image: Tensor, weights: Weights) -> Tensor:
    """Tokens (patches, width) of an image of any size that has a table of its own size."""
    grid = (image.shape[1] // PATCH, image.shape[2] // PATCH)
    setup = Setup(grid, PATCH, HEADS, 1, True, True, True, True, True)
    return encode(image, list(range(grid[0] * grid[1])), weights, setup)


def pool(images: Tensor, weights: Weights) -> Tensor:
    """(images, width): each image's mean token."""
    return torch.stack([see(image, weights).mean(0) for image in images])


def batch_norm(rows: Tensor, weight: Tensor | float = 1.0, bias: Tensor | float = 0.0) -> Tensor:
    centred = rows - rows.mean(0)
    return centred / (centred.square().mean(0) + BATCH_NORM_EPS).sqrt() * weight + bias


def mlp(rows: Tensor, weights: Weights, norm_last: bool) -> Tensor:
    """Linear, batch norm, ReLU, again and again, and a last linear map; the places are those of a Sequential."""
    linear = sorted(int(key.split(".")[0]) for key, value in weights.items() if value.ndim == 2)
    for place in linear[:-1]:
        rows = rows @ weights[f"{place}.weight"].T
        rows = batch_norm(rows, weights[f"{place + 1}.weight"], weights[f"{place + 1}.bias"]).clamp_min(0)
    rows = rows @ weights[f"{linear[-1]}.weight"].T + weights.get(f"{linear[-1]}.bias", 0.0)
    return batch_norm(rows) if norm_last else rows


def unit(vector: Tensor) -> Tensor:
    return vector / math.sqrt(float((vector * vector).sum()))


def softmax(scores: list[float]) -> list[float]:
    most = max(scores)
    powers = [math.exp(score - most) for score in scores]
    return [power / sum(powers) for power in powers]


def assign(vector: Tensor, weights: Weights) -> list[float]:
    """DINO's head on one vector: three linear maps with GELU between, and cosines with the prototypes."""
    for place in (0, 2, 4):
        vector = weights[f"mlp.{place}.weight"] @ vector + weights[f"mlp.{place}.bias"]
        if place < 4:
            vector = vector * (1 + torch.erf(vector / math.sqrt(2))) / 2
    return [float((unit(vector) * unit(prototype)).sum()) for prototype in weights["prototypes.weight"]]
