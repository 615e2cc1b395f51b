"""How many threads a step takes on this CPU, by measuring.

More threads help a large step and harm a small one on a busy machine: they wait for one another after every operation, and one
whose core another process holds keeps all waiting. Two busy processes on two cores made a step of the demo a hundred times
slower with two threads, and twice as slow with one. The number is recorded in run.json: sums in another order round
differently, and a resume must be bit-equal. Left out: measuring again later in a run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

# On a busy machine two threads that waited for one another took 106 s for a linear probe that one did in 6 s.
ONE_THREAD_NUMBERS = 2**23
TIMED_STEPS = 3
LONG_STEP_S = 3.0  # of one thread: operations so large that waiting hardly counts
HOPELESS = 3.0  # times one thread's step: no further steps are timed


def choose_threads(step: Callable[[], object], most: int, clock: Callable[[], float] = time.perf_counter) -> int:
    """1 or `most`, whichever does the step in less time. Leaves torch's number of threads as it was."""
    if most == 1:
        return 1
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        step()  # warm-up
        alone = _time(step, clock)
        if alone[0] > LONG_STEP_S:
            return most
        alone += [_time(step, clock)[0] for _ in range(TIMED_STEPS - 1)]
        torch.set_num_threads(most)
        together = _time(step, clock)
        while len(together) < TIMED_STEPS and together[-1] < HOPELESS * alone[0]:
            together += _time(step, clock)
        return most if statistics.median(together) < statistics.median(alone) else 1
    finally:
        torch.set_num_threads(before)


def _time(step: Callable[[], object], clock: Callable[[], float]) -> list[float]:
    started = clock()
    step()
    return [clock() - started]


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """PyTorch with `threads` threads; restores the number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_for(count: int) -> AbstractContextManager[None]:
    """One thread for work on at most ONE_THREAD_NUMBERS numbers, all of them for more."""
    return use_threads(1 if count <= ONE_THREAD_NUMBERS else torch.get_num_threads())
