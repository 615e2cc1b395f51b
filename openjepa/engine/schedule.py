"""Learning rate, weight decay and momentum as pure functions of the step. Nothing is replayed on resume.

Steps count from 0. Rates and decays take the value of step + 1, as the release does, so that the first step already moves;
momentum takes the value of step. Source: arXiv 2301.08243, section A.1; pinned to the release's values to 1e-9 by
tests/parity/test_schedules.py. A step may lie between two (training/pace.py).
"""

from __future__ import annotations

import math
from typing import Literal


def warmup_cosine(step: int | float, total_steps: int, warmup_steps: int, start: float, peak: float, final: float) -> float:
    """Linear from start to peak over the warm-up, then half a cosine down to final."""
    count = step + 1
    if count < warmup_steps:
        return start + (peak - start) * count / warmup_steps
    progress = (count - warmup_steps) / max(total_steps - warmup_steps, 1)
    return interpolate_cosine(progress, peak, final)


def interpolate_cosine(progress: float, start: float, end: float) -> float:
    """Half a cosine from start at progress 0 to end at progress 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def cosine_weight_decay(step: int | float, total_steps: int, start: float, end: float) -> float:
    """Weight decay, half a cosine from start to end."""
    return interpolate_cosine((step + 1) / total_steps, start, end)


def ramp(step: int | float, steps: float, start: float, end: float) -> float:
    """Linear from start to end over the first `steps` steps, then end."""
    return end if step >= steps else start + (end - start) * step / steps


def target_momentum(
    step: int | float, total_steps: int, schedule: Literal["cosine", "linear", "fixed"], start: float, end: float
) -> float:
    """Momentum of the target encoder; fixed stays at start."""
    if schedule == "fixed":
        return start
    progress = step / total_steps
    return interpolate_cosine(progress, start, end) if schedule == "cosine" else start + (end - start) * progress
