"""Make own_step.safetensors: three steps of each recipe at a small odd geometry, by equations.py, so without openjepa.

    python -m tests.parity.make_golden

Non-square grid, masks of unequal lengths, everything drawn here from one seed. For each recipe the file holds images (uint8),
masks, weights, and, all computed in float64 and rounded once: outputs, gradients and weights of the first step, and the losses
of three. Names: `paper/gradient.context_encoder.norm.bias`; weights that both recipes start from have no prefix.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.parity.equations import Block, Learner, Rates, Setup, Weights

FILE = Path(__file__).with_name("own_step.safetensors")
SEED = 2301_08243

NUM_IMAGES, CHANNELS, GRID, PATCH = 4, 3, (4, 7), 2
WIDTH, DEPTH, HEADS = 12, 2, 3
PREDICTOR_WIDTH, PREDICTOR_DEPTH, PREDICTOR_HEADS = 8, 2, 2
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)

PAPER = Setup(GRID, PATCH, HEADS, PREDICTOR_HEADS, True, True, True, True, True)
BRIEF = Setup(GRID, PATCH, HEADS, PREDICTOR_HEADS, False, False, False, False, False)

# A run of 10 steps, the first 4 of them warm-up. Adam's epsilon is far above the usual 1e-8: in exact arithmetic some gradients
# are 0 (a key's bias moves no softmax), and 1e-8 would blow up their rounding to a part of a step (test_golden_step.py). Rates
# are a hundred times the recipes', so that a step is large beside float32's spacing and a decay of 0.04 is not one of 0.05.
TOTAL_STEPS, WARMUP_STEPS, STEPS = 10, 4, 3
EPS = 1e-4
PAPER_START_LR, PAPER_LR, BRIEF_LR = 0.02, 0.1, 0.015


def paper_rates(step: int) -> Rates:
    """arXiv 2301.08243, section A.1: rate linear in the warm-up; decay 0.04 to 0.4 by a cosine; momentum linear."""
    decay = 0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * (step + 1) / TOTAL_STEPS)) / 2
    lr = PAPER_START_LR + (PAPER_LR - PAPER_START_LR) * (step + 1) / WARMUP_STEPS
    return Rates(lr, decay, decay, 0.996 + 0.004 * step / TOTAL_STEPS, layer_decay=1.0, max_norm=None, eps=EPS)


def brief_rates(step: int) -> Rates:
    """The brief: rate from 0 in the warm-up, decay 0.05 and 0.04, momentum by a cosine, layers at 0.75, norm at most 1.

    Scaled linearly from the recipe's batch of 256 to one of 1024.
    """
    momentum = 1.0 - 0.004 * (1 + math.cos(math.pi * step / TOTAL_STEPS)) / 2
    return Rates(4 * BRIEF_LR * (step + 1) / WARMUP_STEPS, 0.05, 0.04, momentum, layer_decay=0.75, max_norm=1.0, eps=EPS)


RECIPES = {"paper": (PAPER, paper_rates), "brief": (BRIEF, brief_rates)}


def draw_weights(generator: np.random.Generator) -> dict[str, Weights]:
    """Weights large enough that attention is uneven and every term counts; the target encoder's differ from the context's."""

    def normal(*shape: int, around: float = 0.0, std: float = 0.3) -> Tensor:
        return torch.from_numpy(generator.normal(around, std, shape).astype(np.float32))

    def layers(width: int, depth: int) -> Weights:
        weights: Weights = {}
        for layer in (f"blocks.{number}" for number in range(depth)):
            for name, rows, columns in (("attn.qkv", 3 * width, width), ("attn.proj", width, width),
                                        ("mlp.fc1", 4 * width, width), ("mlp.fc2", width, 4 * width)):  # fmt: skip
                weights |= {f"{layer}.{name}.weight": normal(rows, columns), f"{layer}.{name}.bias": normal(rows)}
            for name in ("norm1", "norm2"):
                weights |= {f"{layer}.{name}.weight": normal(width, around=1.0), f"{layer}.{name}.bias": normal(width)}
        return weights | {"norm.weight": normal(width, around=1.0), "norm.bias": normal(width)}

    def encoder() -> Weights:
        patch = {"patch_embed.proj.weight": normal(WIDTH, CHANNELS, PATCH, PATCH), "patch_embed.proj.bias": normal(WIDTH)}
        return patch | layers(WIDTH, DEPTH)

    ends = {"input_proj.weight": normal(PREDICTOR_WIDTH, WIDTH), "input_proj.bias": normal(PREDICTOR_WIDTH)}
    ends |= {"output_proj.weight": normal(WIDTH, PREDICTOR_WIDTH), "output_proj.bias": normal(WIDTH)}
    predictor = ends | {"mask_token": normal(1, 1, PREDICTOR_WIDTH)} | layers(PREDICTOR_WIDTH, PREDICTOR_DEPTH)
    return {"context_encoder": encoder(), "predictor": predictor, "target_encoder": encoder()}


def draw_rectangle(generator: np.random.Generator, height: int, width: int) -> set[int]:
    top, left = generator.integers(GRID[0] - height + 1), generator.integers(GRID[1] - width + 1)
    return {int(GRID[1] * row + column) for row in range(top, top + height) for column in range(left, left + width)}


def draw_paper_masks(generator: np.random.Generator) -> tuple[Block, list[Block]]:
    """One large rectangle minus three blocks, which may overlap; shapes differ from block to block."""
    blocks = [draw_rectangle(generator, *generator.integers(1, 4, 2)) for _ in range(3)]
    return sorted(draw_rectangle(generator, 4, 6) - set.union(*blocks)), [sorted(block) for block in blocks]


def draw_brief_masks(generator: np.random.Generator) -> tuple[Block, list[Block]]:
    """The union of three rectangles, and two blocks beside it and one another."""
    while True:
        context = set.union(*(draw_rectangle(generator, *generator.integers(1, 4, 2)) for _ in range(3)))
        first, second = (draw_rectangle(generator, *generator.integers(1, 3, 2)) for _ in range(2))
        if not (first & second or (first | second) & context):
            return sorted(context), [sorted(first), sorted(second)]


def pad(blocks: list[Block]) -> tuple[Tensor, Tensor]:
    """Indices padded with each block's first, and lengths."""
    longest = max(len(block) for block in blocks)
    rows = [block + block[:1] * (longest - len(block)) for block in blocks]
    return torch.tensor(rows), torch.tensor([len(block) for block in blocks])


def make() -> dict[str, Tensor]:
    """Everything that the file holds."""
    generator = np.random.default_rng(SEED)
    weights = draw_weights(generator)
    images = generator.integers(0, 256, (NUM_IMAGES, CHANNELS, GRID[0] * PATCH, GRID[1] * PATCH), dtype=np.uint8)
    golden = {f"{part}.{name}": value for part, values in weights.items() for name, value in values.items()}
    golden["images"] = torch.from_numpy(images)
    shape = (1, CHANNELS, 1, 1)
    pixels = (golden["images"].double() / 255 - torch.tensor(MEAN).double().view(shape)) / torch.tensor(STD).double().view(shape)
    for recipe, draw in (("paper", draw_paper_masks), ("brief", draw_brief_masks)):
        drawn = [draw(generator) for _ in range(NUM_IMAGES)]
        contexts, targets = [context for context, _ in drawn], [blocks for _, blocks in drawn]
        setup, rates = RECIPES[recipe]
        learner = Learner(weights, setup)
        outputs, gradients = learner.step(pixels, contexts, targets, rates(0))
        found = {f"gradient.{name}": gradient for name, gradient in gradients.items()}
        found |= {name: getattr(outputs, name) for name in ("target_encoder_output", "targets", "context_output", "predictions")}
        found |= {f"after.{part}.{name}": value for part, values in learner.weights.items() for name, value in values.items()}
        later = [learner.step(pixels, contexts, targets, rates(step))[0].loss for step in range(1, STEPS)]
        found["losses"] = torch.stack([outputs.loss, *later])
        golden |= {f"{recipe}/{name}": value.detach().float().clone().contiguous() for name, value in found.items()}
        golden[f"{recipe}/context_idx"], golden[f"{recipe}/context_lengths"] = pad(contexts)
        target_idx, target_lengths = pad([block for blocks in targets for block in blocks])
        golden[f"{recipe}/target_idx"] = target_idx.unflatten(0, (NUM_IMAGES, -1))
        golden[f"{recipe}/target_lengths"] = target_lengths.unflatten(0, (NUM_IMAGES, -1))
    return golden


if __name__ == "__main__":
    golden = make()
    save_file(golden, FILE)
    print(f"{FILE}: {len(golden)} tensors, {FILE.stat().st_size / 1000:.0f} kB")
