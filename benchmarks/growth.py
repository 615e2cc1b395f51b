"""How a step's cost grows: with tokens, batch, width and depth, measured here; with GPUs, computed on paper. One JSON line each.

    python benchmarks/growth.py [--rounds 7]

Measured, as the least CPU time of some rounds on one thread, so that other programs matter little: steps of small models in
bf16, each against its count of FLOPs (openjepa/training/cost.py), with t = fixed + FLOPs / rate fitted to all of them; then one
layer, forward and backward, at a constant number of tokens in ever longer sequences: time per token is maps + attention * length,
and attention takes over where they are equal; by the count, 24 n D^2 = 4 n^2 D, at 6 D tokens.

On paper: nothing is measured. ASSUMED says what is assumed. A ring sends 2 (N - 1) / N of the gradients' bytes to sum them
(all-reduce) and half of that to gather or to scatter. DDP sums float32 gradients while the backward pass runs; FSDP2 gathers bf16
weights in the forward pass and again in the backward pass, and there scatters float32 gradients. What is not hidden is added.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from typing import Any, NamedTuple

import numpy as np
import torch

from openjepa.data.batch import one_view
from openjepa.engine.precision import choose_precision
from openjepa.masks import sample_masks
from openjepa.methods.make import make_method
from openjepa.methods.masked import MaskedMethod
from openjepa.nn.vit import make_layers, run_layers
from openjepa.recipe.check import build_recipe
from openjepa.recipe.files import load_recipe
from openjepa.runs.environment import describe_machine
from openjepa.training.build import make_trainer
from openjepa.training.cost import count_parts

BASE = {"width": 192, "depth": 4, "image_size": 224, "batch_size": 4}
GROWN = {"image_size": (112, 160, 224, 320), "batch_size": (2, 4, 8, 16), "width": (96, 192, 384), "depth": (2, 4, 8)}
LAYER_WIDTH, LAYER_TOKENS = 96, 4096
LENGTHS = (64, 128, 256, 512, 1024, 2048)

GLOBAL_BATCH = 2048
NUM_GPUS = tuple(2**power for power in range(11))
RECIPES = ("paper_vit_base_16", "paper_vit_large_16", "paper_vit_huge_14", "paper_vit_giant_16")
ASSUMED = {
    "flops_per_s": 989e12,  # an H100 SXM's dense bf16 peak, by its data sheet
    "reached": 0.5,  # of it, whatever the images per GPU: at one or two images that is too much
    "memory_bytes_per_s": 3.35e12,
    "node_gpus": 8,
    "node_bytes_per_s": 450e9,  # NVLink 4, each way
    "network_bytes_per_s": 50e9,  # one NDR InfiniBand port for each GPU
}
SAMPLED_IMAGES = 256  # whose masks are counted


class Work(NamedTuple):
    """What one step of the whole batch computes and moves."""

    forward_flops: float
    backward_flops: float
    trained: int  # weights
    encoder: int  # weights of the target encoder


def time_steps(rounds: int, **changes: int) -> dict[str, Any]:
    """Seconds and FLOPs of a step at BASE with changes; the masks are the same for every model."""
    shape = BASE | changes
    recipe = build_recipe(
        {
            "data": {"image_size": shape["image_size"], "batch_size": shape["batch_size"]},
            "model": {"width": shape["width"], "depth": shape["depth"], "heads": shape["width"] // 32},
            "method": {"predictor": {"width": shape["width"] // 2, "depth": 2, "heads": 3}},
            "train": {"device": "cpu"},
        }
    )
    trainer = make_trainer(recipe, [0.5] * 3, [0.25] * 3, 1000, choose_precision(torch.device("cpu"), "bf16"))
    size = (shape["batch_size"], 3, *recipe.data.size)
    masks = sample_masks(recipe.mask, recipe.grid, shape["batch_size"], seed=0, step=0)
    batch = one_view(torch.zeros(size, dtype=torch.uint8), masks)
    times = []
    for _ in range(1 + rounds):
        started = time.process_time()
        trainer.step([batch])
        times.append(time.process_time() - started)
    tokens = recipe.grid[0] * recipe.grid[1]
    return shape | {
        "tokens": tokens,
        "step_ms": round(1000 * min(times[1:]), 2),
        "step_gflop": round(sum(count_parts(trainer.method, masks).values()) / 1e9, 3),
    }


def time_layer(length: int, rounds: int) -> float:
    """Seconds of one layer's forward and backward pass on LAYER_TOKENS tokens in sequences of this length."""
    layers = make_layers(LAYER_WIDTH, 1, 3, 4.0)
    tokens = torch.randn(LAYER_TOKENS // length, length, LAYER_WIDTH, requires_grad=True)
    times = []
    for _ in range(1 + rounds):
        started = time.process_time()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            run_layers(layers, tokens, None).sum().backward()
        times.append(time.process_time() - started)
    return min(times[1:])


def fit_line(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """Intercept, slope and R^2; each point counts by its relative error, since small ones would not count otherwise."""
    weights = 1 / np.array(y)
    design = np.stack([np.ones(len(x)), np.array(x)], axis=1)
    (intercept, slope), *_ = np.linalg.lstsq(design * weights[:, None], np.array(y) * weights, rcond=None)
    predicted = intercept + slope * np.array(x)
    unexplained = float(np.square(np.log(predicted / y)).sum() / np.square(np.log(y) - np.log(y).mean()).sum())
    return float(intercept), float(slope), 1 - unexplained


def count_work(name: str) -> Work:
    """FLOPs and weights of a paper recipe at GLOBAL_BATCH."""
    recipe = load_recipe(name)
    with torch.device("meta"):
        method = make_method(recipe)
    assert isinstance(method, MaskedMethod) and recipe.mask is not None
    masks = sample_masks(recipe.mask, recipe.grid, SAMPLED_IMAGES, seed=0, step=0)
    flops = {part: count * GLOBAL_BATCH / SAMPLED_IMAGES for part, count in count_parts(method, masks).items()}
    backward = 2 / 3 * (flops["context"] + flops["predictor"])
    trained = sum(weight.numel() for weight in method.parameters() if weight.requires_grad)
    encoder = sum(weight.numel() for weight in method.context_encoder.parameters())
    return Work(sum(flops.values()) - backward, backward, trained, encoder)


def step_seconds(work: Work, num_gpus: int, sharded: bool, network_bytes_per_s: float) -> dict[str, float]:
    """Seconds of a step by part: computing, passes over weights, and communication that nothing hides."""
    rate = ASSUMED["flops_per_s"] * ASSUMED["reached"] * num_gpus
    forward, backward = work.forward_flops / rate, work.backward_flops / rate
    bandwidth = ASSUMED["node_bytes_per_s"] if num_gpus <= ASSUMED["node_gpus"] else network_bytes_per_s
    one_way = (num_gpus - 1) / num_gpus / bandwidth  # seconds a byte, to gather or to scatter
    adamw, momentum = 7 * 4 * work.trained, 3 * 4 * work.encoder  # bytes read and written
    update = (adamw + momentum) / ASSUMED["memory_bytes_per_s"]
    if sharded:
        forward_wait = one_way * 2 * (work.trained + work.encoder) - forward
        backward_wait = one_way * (2 + 4) * work.trained - backward
        update /= num_gpus
    else:
        forward_wait, backward_wait = 0.0, 2 * one_way * 4 * work.trained - backward
    return {"computing": forward + backward, "update": update, "waiting": max(forward_wait, 0.0) + max(backward_wait, 0.0)}


def scale_out(name: str) -> dict[str, Any]:
    """Share of perfect scaling for every number of GPUs, and where it stops paying."""
    work = count_work(name)
    line: dict[str, Any] = {
        "figure": f"on paper: {name} on 1 to {NUM_GPUS[-1]} GPUs, {GLOBAL_BATCH} images a step",
        "parameters_trained": work.trained,
        "step_tflop": round((work.forward_flops + work.backward_flops) / 1e12, 1),
        "weights_and_optimizer_gb": round((16 * work.trained + 4 * work.encoder) / 1e9, 1),
        "assumed": ASSUMED,
    }
    alone = sum(step_seconds(work, 1, False, ASSUMED["network_bytes_per_s"]).values())
    line["step_s_on_one"] = round(alone, 3)
    # A node of eight GPUs has eight ports: rings that use them all at once pass eight times as much between nodes.
    networks = {"one_port": ASSUMED["network_bytes_per_s"], "all_ports": ASSUMED["node_gpus"] * ASSUMED["network_bytes_per_s"]}
    for kind, sharded in (("ddp", False), ("fsdp2", True)):
        for ports, network in networks.items():
            seconds = {n: sum(step_seconds(work, n, sharded, network).values()) for n in NUM_GPUS}
            shares = {n: alone / n / spent for n, spent in seconds.items()}
            line[f"{kind}_{ports}"] = {
                "share_of_perfect": {n: round(share, 3) for n, share in shares.items()},
                "step_ms": {n: round(1000 * spent, 2) for n, spent in seconds.items()},
                "gpus_at_80_percent": max(n for n, share in shares.items() if share >= 0.8),
                "fastest_at": min(seconds, key=lambda n: seconds[n]),
            }
    return line


def main() -> None:
    """Measure, fit, compute; print."""
    parser = argparse.ArgumentParser(description="How a step's cost grows.")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = {
        "command": f"python {shlex.join(sys.argv)}",
        "machine": describe_machine(torch.device("cpu")),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    points = []
    for key, values in GROWN.items():
        for value in values:
            points.append({"figure": f"step against {key}", **time_steps(options.rounds, **{key: value})})
            print(json.dumps(points[-1]), flush=True)
    fixed, per_gflop, explained = fit_line([p["step_gflop"] for p in points], [p["step_ms"] for p in points])
    fit = {"figure": "step_ms = fixed_ms + step_gflop * ms_per_gflop", "fixed_ms": round(fixed, 2)}
    fit |= {"ms_per_gflop": round(per_gflop, 3), "r2_of_logarithms": round(explained, 4)}
    errors = [fixed + per_gflop * p["step_gflop"] for p in points]
    fit["worst_ratio"] = round(max(max(e / p["step_ms"], p["step_ms"] / e) for e, p in zip(errors, points, strict=True)), 2)
    print(json.dumps(fit | source), flush=True)

    layer = {length: 1e6 * time_layer(length, options.rounds) / LAYER_TOKENS for length in LENGTHS}
    maps, attention, explained = fit_line([float(length) for length in layer], list(layer.values()))
    line = {
        "figure": f"a layer {LAYER_WIDTH} wide, us a token = maps_us + attention_us * length",
        "us_a_token": {length: round(spent, 3) for length, spent in layer.items()},
        "maps_us": round(maps, 4),
        "attention_us": round(attention, 6),
        "r2_of_logarithms": round(explained, 4),
        "attention_takes_over_at": {"measured": round(maps / attention), "counted_6D": 6 * LAYER_WIDTH},
    }
    print(json.dumps(line | source), flush=True)
    for name in RECIPES:
        print(json.dumps(scale_out(name)), flush=True)


if __name__ == "__main__":
    main()
