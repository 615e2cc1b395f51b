"""What keeps a GPU busy: batches copied ahead of time, and flags read without blocking the host.

The CPU only writes down what the GPU is to do, and is ahead of it. Two things would make it stop in each step: copying the batch,
and asking whether the step was finite. So the copy runs on a stream of its own beside the step before, and the answer is read
when it has come. On a CPU all is done at once, in the same order. Pinned by tests/unit/test_prefetch.py.
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
        copying.wait_event(free)  # memory of the item before last is written over only when no kernel reads it any more
        with torch.cuda.stream(copying):
            placed = place(item)
        computing.wait_stream(copying)
        free = computing.record_event()
        yield placed


class Answer:
    """Truths on their way from the device, in one copy."""

    def __init__(self, truths: Bool[Tensor, " N"]) -> None:
        self.truths = truths.to("cpu", non_blocking=True)
        self.arrived = torch.cuda.current_stream(truths.device).record_event() if truths.is_cuda else None

    def read(self) -> list[bool]:
        """The truths; blocks until they have arrived, and for nothing that was queued after them."""
        if self.arrived is not None:
            self.arrived.synchronize()
        truths: list[bool] = self.truths.tolist()
        return truths


def wait_for(device: torch.device) -> None:
    """Block until a GPU's queued work is done; a CPU's is done already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
