"""One I-JEPA training step from the papers' equations, slowly and in float64: what the golden tests compare with.

Written from the papers alone, sharing no code with openjepa: one image and one block at a time, so nothing is ever padded,
batched or masked; only the gradients come from torch's autograd. Sources: ViT (Dosovitskiy et al. 2021, arXiv 2010.11929,
equations 1 to 4), attention and positions (Vaswani et al. 2017, 1706.03762, sections 3.2 and 3.5), LayerNorm (1607.06450), GELU
(1606.08415), I-JEPA (Assran et al. 2023, 2301.08243, section 3) and the brief, AdamW (1711.05101, algorithm 2).
Weights are dictionaries under timm's names. make_golden.py records such a step; test_golden_step.py checks the release's, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Block = list[int]

NORM_EPS = 1e-6  # of every affine LayerNorm; the targets' own, without weights, has 1e-5
TARGET_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Setup:
    """What a step computes. The two recipes differ in the five switches."""

    grid: tuple[int, int]
    patch: int
    heads: int
    predictor_heads: int
    whole_image_targets: bool
    normed_targets: bool
    per_block: bool
    own_positions: bool
    smooth_l1: bool


@dataclass(frozen=True)
class Rates:
    """What the optimizer and the momentum update use in one step."""

    lr: float
    encoder_decay: float
    predictor_decay: float
    momentum: float
    layer_decay: float
    max_norm: float | None
    eps: float
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass
class Outputs:
    """Of one forward pass; tokens of all images one after the other, (tokens, width)."""

    target_encoder_output: Tensor
    targets: Tensor
    context_output: Tensor
    predictions: Tensor
    loss: Tensor


def positions(grid: tuple[int, int], width: int) -> Tensor:
    """(patches, width): sines and cosines of the column, then of the row."""
    rows = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            values: list[float] = []
            for coordinate in (column, row):
                angles = [coordinate / 10_000 ** (i / (width / 4)) for i in range(width // 4)]
                values += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            rows.append(values)
    return torch.tensor(rows, dtype=torch.float64)


def layer_norm(tokens: Tensor, eps: float, weight: Tensor | float = 1.0, bias: Tensor | float = 0.0) -> Tensor:
    centred = tokens - tokens.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def linear(tokens: Tensor, weights: Weights, name: str) -> Tensor:
    return tokens @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(tokens: Tensor, weights: Weights, name: str) -> Tensor:
    return layer_norm(tokens, NORM_EPS, weights[f"{name}.weight"], weights[f"{name}.bias"])


def attention(tokens: Tensor, weights: Weights, name: str, heads: int) -> Tensor:
    """Every token attends to every token, head by head."""
    width = tokens.shape[-1]
    queries, keys, values = linear(tokens, weights, f"{name}.qkv").split(width, dim=-1)
    size, mixed = width // heads, []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = queries[:, part] @ keys[:, part].T / math.sqrt(size)
        exponentials = (scores - scores.max(-1, keepdim=True).values).exp()
        mixed.append(exponentials / exponentials.sum(-1, keepdim=True) @ values[:, part])
    return linear(torch.cat(mixed, dim=-1), weights, f"{name}.proj")


def transformer(tokens: Tensor, weights: Weights, heads: int) -> Tensor:
    """Pre-norm layers `blocks.0`, `blocks.1`, ... and the final norm, on the tokens of one sequence (tokens, width)."""
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    for layer in (f"blocks.{number}" for number in range(depth)):
        tokens = tokens + attention(norm(tokens, weights, f"{layer}.norm1"), weights, f"{layer}.attn", heads)
        hidden = linear(norm(tokens, weights, f"{layer}.norm2"), weights, f"{layer}.mlp.fc1")
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        tokens = tokens + linear(hidden, weights, f"{layer}.mlp.fc2")
    return norm(tokens, weights, "norm")


def encode(image: Tensor, patches: Block, weights: Weights, setup: Setup) -> Tensor:
    """Tokens (len(patches), width) of these patches of one normalised image (channels, height, width), which see no others."""
    side, kernel = setup.patch, weights["patch_embed.proj.weight"]
    table = positions(setup.grid, len(kernel))
    tokens = []
    for patch in patches:
        top, left = side * (patch // setup.grid[1]), side * (patch % setup.grid[1])
        pixels = image[:, top : top + side, left : left + side]
        tokens.append((kernel * pixels).sum((1, 2, 3)) + weights["patch_embed.proj.bias"] + table[patch])
    return transformer(torch.stack(tokens), weights, setup.heads)


def predict(context: Tensor, context_patches: Block, target_patches: Block, weights: Weights, setup: Setup) -> Tensor:
    """Predicted tokens of the target patches of one image, in one pass."""
    width = weights["input_proj.weight"].shape[0 if setup.own_positions else 1]
    table = positions(setup.grid, width)
    if setup.own_positions:
        seen = linear(context, weights, "input_proj") + table[context_patches]
        asked = weights["mask_token"][0] + table[target_patches]
    else:
        seen = linear(context + table[context_patches], weights, "input_proj")
        asked = weights["mask_token"][0] + linear(table[target_patches], weights, "input_proj")
    tokens = transformer(torch.cat([seen, asked]), weights, setup.predictor_heads)
    return linear(tokens[len(seen) :], weights, "output_proj")


def distance(predictions: Tensor, targets: Tensor, setup: Setup) -> Tensor:
    """Mean over tokens and width of the squared error, or of smooth L1 with beta 1."""
    error = predictions - targets
    if not setup.smooth_l1:
        return error.square().mean()
    return torch.where(error.abs() < 1, error.square() / 2, error.abs() - 0.5).mean()


def forward(
    images: Tensor, contexts: list[Block], targets: list[list[Block]], weights: dict[str, Weights], setup: Setup
) -> Outputs:
    """One batch. images (B, channels, height, width), normalised; contexts[b] and targets[b][m] are lists of patches."""
    goals, seen, guesses = [], [], []
    everything = list(range(setup.grid[0] * setup.grid[1]))
    with torch.no_grad():
        whole = torch.stack([encode(image, everything, weights["target_encoder"], setup) for image in images])
    for image, tokens, context_patches, blocks in zip(images, whole, contexts, targets, strict=True):
        with torch.no_grad():
            if setup.whole_image_targets:
                goal = torch.cat([tokens[block] for block in blocks])
            else:  # the brief: all target patches of the image together, and nothing else
                union = sorted({patch for block in blocks for patch in block})
                alone = encode(image, union, weights["target_encoder"], setup)
                goal = torch.stack([alone[union.index(patch)] for block in blocks for patch in block])
            goals.append(layer_norm(goal, TARGET_NORM_EPS) if setup.normed_targets else goal)
        seen.append(encode(image, context_patches, weights["context_encoder"], setup))
        passes = blocks if setup.per_block else [[patch for block in blocks for patch in block]]
        guesses += [predict(seen[-1], context_patches, asked, weights["predictor"], setup) for asked in passes]
    targets_of_batch, predictions = torch.cat(goals), torch.cat(guesses)
    loss = distance(predictions, targets_of_batch, setup)
    return Outputs(whole.flatten(0, 1), targets_of_batch, torch.cat(seen), predictions, loss)


class Learner:
    """Weights that take steps: {"context_encoder": {...}, "predictor": {...}, "target_encoder": {...}}, in float64."""

    def __init__(self, weights: dict[str, Weights], setup: Setup) -> None:
        self.setup = setup
        self.weights = {part: {name: value.double() for name, value in values.items()} for part, values in weights.items()}
        self.moments: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}
        self.count = 0

    def step(
        self, images: Tensor, contexts: list[Block], targets: list[list[Block]], rates: Rates
    ) -> tuple[Outputs, dict[str, Tensor]]:
        """One optimizer step and momentum update; outputs and gradients (under part.name, before clipping) of this step."""
        trained = {
            (part, name): weight for part in ("context_encoder", "predictor") for name, weight in self.weights[part].items()
        }
        for weight in trained.values():
            weight.requires_grad_()
        outputs = forward(images.double(), contexts, targets, self.weights, self.setup)
        gradients = dict(zip(trained, torch.autograd.grad(outputs.loss, list(trained.values())), strict=True))
        length = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
        shrink = 1.0 if rates.max_norm is None else min(1.0, rates.max_norm / length)
        self.count += 1
        with torch.no_grad():
            for (part, name), weight in trained.items():
                self.weights[part][name] = self._adamw(part, name, weight.detach(), shrink * gradients[part, name], rates)
            for name, target in self.weights["target_encoder"].items():
                moved = (1 - rates.momentum) * self.weights["context_encoder"][name]
                self.weights["target_encoder"][name] = rates.momentum * target + moved
        return outputs, {f"{part}.{name}": gradient for (part, name), gradient in gradients.items()}

    def _adamw(self, part: str, name: str, weight: Tensor, gradient: Tensor, rates: Rates) -> Tensor:
        """The weight after the step: decay apart from the gradient, none on biases and one-dimensional weights."""
        first, second = self.moments.get((part, name), (torch.zeros_like(weight), torch.zeros_like(weight)))
        first = rates.betas[0] * first + (1 - rates.betas[0]) * gradient
        second = rates.betas[1] * second + (1 - rates.betas[1]) * gradient.square()
        self.moments[part, name] = first, second
        first, second = (moment / (1 - beta**self.count) for moment, beta in zip((first, second), rates.betas, strict=True))
        decay = rates.encoder_decay if part == "context_encoder" else rates.predictor_decay
        decay = 0.0 if weight.ndim == 1 or name.endswith(".bias") else decay
        lr = rates.lr * self._layer_rate(part, name, rates.layer_decay)
        return weight - lr * (first / (second.sqrt() + rates.eps) + decay * weight)

    def _layer_rate(self, part: str, name: str, layer_decay: float) -> float:
        """The brief: each encoder layer learns layer_decay times as fast as the next, the patch embedding slowest of all."""
        if part != "context_encoder" or name.startswith("norm."):
            return 1.0
        depth = 1 + max(int(key.split(".")[1]) for key in self.weights[part] if key.startswith("blocks."))
        layer = int(name.split(".")[1]) if name.startswith("blocks.") else -1
        return layer_decay ** (depth - 1 - layer)
