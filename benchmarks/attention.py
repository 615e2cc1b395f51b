"""Attention on this machine, explicit (product, softmax, product) against PyTorch's fused kernel: one JSON line a shape.

    python benchmarks/attention.py [--rounds 8]

Shapes are those of our recipes' encoders and predictors in bf16, forward and backward, the two taking turns. The ratio is the
fused kernel's time over the explicit one's: above 1, explicit is faster. It decides what openjepa/nn/unpadded.py does on a CPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from openjepa.runs.environment import describe_machine

# name: sequences, heads, tokens, head width
SHAPES = {
    "demo encoder": (128, 3, 49, 32),
    "demo predictor": (128, 3, 36, 16),
    "ViT-B/16 context": (16, 12, 96, 64),
    "ViT-B/16 predictor, per block": (64, 12, 132, 32),
    "ViT-B/16 whole image": (16, 12, 196, 64),
    "ViT-B/16 at 448 px": (4, 12, 784, 64),
}


def explicit(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As openjepa/nn/unpadded.py computes it."""
    return ((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(-1) @ value


def seconds(attend: Callable[[Tensor, Tensor, Tensor], Tensor], qkv: Tensor) -> float:
    """One forward and backward pass from a joint projection (sequences, tokens, 3, heads, head width)."""
    qkv.grad = None
    started = time.perf_counter()
    attend(*qkv.permute(2, 0, 3, 1, 4).unbind(0)).sum().backward()
    return time.perf_counter() - started


def main() -> None:
    """Measure every shape and print its line."""
    parser = argparse.ArgumentParser(description="Explicit against fused attention.")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    for name, (sequences, heads, tokens, width) in SHAPES.items():
        qkv = torch.randn(sequences, tokens, 3, heads, width, dtype=torch.bfloat16, requires_grad=True)
        pairs = [
            (seconds(explicit, qkv), seconds(functional.scaled_dot_product_attention, qkv)) for _ in range(options.rounds + 2)
        ]
        ratios = [fused / ours for ours, fused in pairs[2:]]
        line = {
            "figure": f"attention forward and backward, {name}: {sequences} x {heads} heads, {tokens} tokens of {width}, bf16",
            "unit": "ms",
            "explicit_ms": round(1000 * statistics.median(ours for ours, _ in pairs[2:]), 2),
            "fused_ms": round(1000 * statistics.median(fused for _, fused in pairs[2:]), 2),
            "ratio": {
                "median": round(statistics.median(ratios), 2),
                "lowest": round(min(ratios), 2),
                "highest": round(max(ratios), 2),
            },
            "command": f"python {shlex.join(sys.argv)}",
            "machine": describe_machine(torch.device("cpu")),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
