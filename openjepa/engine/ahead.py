"""What keeps a GPU busy: batches that are there before they are needed, and answers that nobody waits for.

The CPU only writes down what the GPU is to do, and is ahead of it. Two things would make it stop in each step: copying the batch,
and asking whether the step was finite. So the copy runs on a stream of its own beside the step before, and the answer is read
when it has come. On a CPU all is done at once, in the same order. Pinned by tests/unit/test_ahead.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

Item = TypeVar("Item")
Placed = TypeVar("Placed")


def place_ahead(items: Iterable[Item], place: Callable[[Item], Placed], device: torch.device) -> Iterator[Placed]:
    """Every item as `place` puts it on the device; on a GPU while it still computes with the item before.

    Copies overlap only from pinned memory and if `place` does not wait for them.
    """
    if device.type != "cuda":
        yield from map(place, items)
        return
    copying, computing = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    free = computing.record_event()
    for item in items:
        copying.wait_event(free)  # memory of the item before last is written over only when nobody computes with it
        with torch.cuda.stream(copying):
            placed = place(item)
        computing.wait_stream(copying)
        free = computing.record_event()
        yield placed


class Answer:
    """A truth on its way from the device."""

    def __init__(self, truth: Bool[Tensor, ""]) -> None:
        self.truth = truth.to("cpu", non_blocking=True)
        self.arrived = torch.cuda.current_stream(truth.device).record_event() if truth.is_cuda else None

    def read(self) -> bool:
        """The truth; waits until it is here, and for nothing that the device was told after it."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return bool(self.truth)


def wait_for(device: torch.device) -> None:
    """Until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
