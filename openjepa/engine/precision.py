"""Arithmetic of the forward and backward passes: bf16, fp16 with a gradient scaler, or fp32. Weights stay float32.

Source: Micikevicius et al. 2018 (arXiv 1710.03740). Only fp16 needs the scaler; its range is too small for raw gradients.
Many CPUs have no bf16 or fp16 products and emulate them, up to a hundred times slower than float32; GPUs before Ampere emulate
bf16. `choose_precision` finds out, CPUs by measuring, and the run says and records what it chose.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float32
from torch import Tensor

from openjepa.engine.prefetch import wait_for
from openjepa.engine.threads import use_threads

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
Precision = Literal["bf16", "fp16", "fp32"]
TRIES = 3  # of each, in turn
EMULATED_RATIO = 0.5  # products at less than half of float32's rate are emulated, not merely untuned
LEAST_SCALE = 1.0  # of fp16 gradients: as large a scale enlarges nothing, and what is not finite under it is broken
SIDES = (2048, 16384)  # of the products that measure a peak: on a CPU the first, on a GPU from the first to the last at most
GROWN = 1.05  # times the rate at half the side: less, and the GPU is full
PRODUCTS = 4  # in a row: a GPU is kept busy from the first to the last


def choose_precision(device: torch.device, asked: Precision) -> Precision:
    """The precision asked for, or fp32 on a device that emulates it.

    fp16 would be faster on a GPU before Ampere, but it is never chosen by itself: its range is smaller than bf16's, so that a run
    could overflow in activations where bf16 would not. fp32 gives what bf16 would have given, only later. The run names fp16.
    """
    return "fp32" if asked != "fp32" and _emulates(device, asked) else asked


def _emulates(device: torch.device, precision: Precision) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):  # PyTorch asks the current one
            return precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return _cpu_emulates(precision)
    return False


@cache
def _cpu_emulates(precision: Precision) -> bool:
    """Whether products take at least twice as long as in float32, on one thread: on a busy machine several wait for one another.

    There float32 on two threads has looked as slow as emulated bf16, whose products take 45 times as long on an AVX2 CPU.
    """
    with use_threads(1):
        pairs = [(_product_s(torch.float32), _product_s(DTYPES[precision])) for _ in range(TRIES)]
    ours, theirs = (min(column) for column in zip(*pairs, strict=True))
    return bool(ours / theirs <= EMULATED_RATIO)


def explain_precision(device: torch.device, asked: Precision, chosen: Precision) -> str:
    """Why a run trains in another precision than the recipe's, as a sentence; empty if it does not."""
    if chosen == asked:
        return ""
    if chosen != choose_precision(device, asked):
        return f"Training in {chosen}, in which this run was started, not in {asked}."
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return f"{name} emulates {asked}, slowly: training in fp32; --train.precision fp16 is faster there."
    return f"This CPU emulates {asked}, slowly: training in fp32."


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context in which matrix products run in the precision; does nothing for fp32."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context in which nothing is cast down. The meta device, which computes nothing, knows no casting."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def widen(tensor: Tensor) -> Tensor:
    """The tensor in float32, unless it is float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


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
        raise ValueError(f"train.device {name!r} is not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"train.device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"train.device {name!r} is not here: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def read_scale(scaler: torch.amp.GradScaler, device: torch.device) -> Float32[Tensor, ""]:
    """The scaler's scale on its device, 1 if the scaler is off. `get_scale` would wait for a GPU."""
    scale: Tensor = scaler.scale(torch.ones((), device=device))
    return scale


def measure_peak(device: torch.device, precision: Precision) -> float:
    """FLOP/s of large square matrix products in the precision: the best that a step's products can hope for.

    A large GPU is not full with products that fill a CPU, so there the side grows until the rate does not.
    """
    if device.type != "cuda":
        return float(2 * SIDES[0] ** 3 / _product_s(DTYPES[precision], SIDES[0]))
    return find_saturated_rate(lambda side: measure_rate(device, precision, side))


def find_saturated_rate(measure: Callable[[int], float]) -> float:
    """The rate at a side that another doubling would hardly raise, or at the largest that fits into memory."""
    side, last = SIDES
    best = measure(side)
    while side < last:
        side *= 2
        try:
            rate = measure(side)
        except torch.OutOfMemoryError:  # the largest that fits is large enough
            break
        if rate < GROWN * best:
            return max(rate, best)
        best = rate
    return best


def measure_rate(device: torch.device, precision: Precision, side: int) -> float:
    """FLOP/s of square products of random matrices, several in a row between two waits; the best of three after a warm-up.

    Random, because a GPU draws less power and runs faster on equal numbers.
    """
    generator = torch.Generator(device).manual_seed(0)  # torch's own generator is left alone
    matrix = torch.randn(side, side, dtype=DTYPES[precision], device=device, generator=generator)
    product = torch.empty_like(matrix)
    times = []
    for _ in range(4):
        wait_for(device)
        started = time.perf_counter()
        for _ in range(PRODUCTS):
            torch.mm(matrix, matrix, out=product)
        wait_for(device)
        times.append((time.perf_counter() - started) / PRODUCTS)
    return float(2 * side**3 / min(times[1:]))


def _product_s(dtype: torch.dtype, side: int = 256) -> float:
    """Shortest of three times of a square matrix product on the CPU, in seconds."""
    matrix = torch.ones(side, side, dtype=dtype)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - started)
    return min(times)
