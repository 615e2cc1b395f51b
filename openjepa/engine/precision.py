"""Arithmetic of the forward and backward passes: bf16, fp16 with a gradient scaler, or fp32. Weights stay float32.

Source: Micikevicius et al. 2018 (arXiv 1710.03740). Only fp16 needs the scaler; its range is too small for raw gradients.
Many CPUs have no bf16 or fp16 products and emulate them, up to a hundred times slower than float32: `choose_precision` finds
out by measuring, and the run says and records what it chose.
"""

from __future__ import annotations

import time
from typing import Literal

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
Precision = Literal["bf16", "fp16", "fp32"]
EMULATED_RATIO = 0.5  # products at less than half of float32's rate are emulated, not merely untuned


def choose_precision(device: torch.device, asked: Precision) -> Precision:
    """The precision asked for, or fp32 on a CPU that emulates it."""
    if device.type != "cpu" or asked == "fp32":
        return asked
    return asked if _product_s(torch.float32) / _product_s(DTYPES[asked]) > EMULATED_RATIO else "fp32"


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context in which matrix products run in the precision; does nothing for fp32."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def make_scaler(device: torch.device, precision: Precision) -> torch.amp.GradScaler:
    """Gradient scaler, active for fp16 alone."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU if there is one, else the CPU. ValueError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"train.device {name!r} is no device; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"train.device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"train.device {name!r} is not here: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def measure_peak(device: torch.device, precision: Precision, side: int = 2048) -> float:
    """FLOP/s of a large square matrix product in the precision: the best that a step's products can hope for."""
    return 2 * side**3 / _product_s(DTYPES[precision], side, device)


def _product_s(dtype: torch.dtype, side: int = 256, device: torch.device | None = None) -> float:
    """Shortest of three times of a square matrix product, in seconds."""
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        matrix @ matrix
        if matrix.is_cuda:
            torch.cuda.synchronize(matrix.device)
        times.append(time.perf_counter() - started)
    return min(times)
