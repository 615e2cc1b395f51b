"""How fast a run is, what holds it back, and what to change, in words.

Three things can hold a step back: waiting for images, the matrix products themselves, and all that is neither (small
products, passes over memory, kernel starts). The share of the time at which products would run at the machine's peak tells
the second from the third. The thresholds are ours.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

WAITING_FRAC = 0.1  # of a step spent waiting for images: worth doing something about
BUSY_FRAC = 0.5  # of the peak: more than that, the products are most of the step


def describe_speed(rows: Sequence[dict[str, Any]], *, workers: int, num_cores: int, device: str) -> str:
    """A sentence or two on rows of kind "train", each with images_per_s, fraction_of_peak and data_wait_frac."""
    rate, peak, waiting = (
        statistics.median(row[key] for row in rows) for key in ("images_per_s", "fraction_of_peak", "data_wait_frac")
    )
    figures = f"{rate:,.0f} images/s" if rate >= 10 else f"{rate:.2g} images/s"
    measured = f"{figures}, {peak:.0%} of the peak of matrix products, {waiting:.0%} of each step waiting for images."
    return f"{measured} {_advise(peak, waiting, workers, num_cores, device)}"


def _advise(peak: float, waiting: float, workers: int, num_cores: int, device: str) -> str:
    if waiting > WAITING_FRAC:
        spare = num_cores - workers - (device == "cpu")
        if spare > 0:
            more = min(spare, max(1, round(workers * waiting / (1 - waiting)))) if waiting < 1 else spare
            return f"Decoding holds it back: {more} more data.workers, or `openjepa pack DATA OUT` once and train on OUT."
        return "Decoding holds it back and every core is taken: `openjepa pack DATA OUT` once and train on OUT."
    if peak >= BUSY_FRAC:
        return "The matrix products hold it back: only a smaller model, fewer patches or a faster machine changes that."
    if device == "cpu":
        return "Small products and passes over memory hold it back: a larger model or data.batch_size uses the machine better."
    return "Small products and kernel starts hold it back: raise data.batch_size while memory lasts."


def in_words(seconds: float) -> str:
    """A duration in the largest unit that fits."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
