"""Items of a data set, computed ahead of time by worker processes, in the order of their numbers.

PyTorch's DataLoader, and what it leaves to its caller: errors as one line and not as a traceback, workers that leave signals to
the training process and end with it, and machines with little shared memory. Pinned by tests/unit/test_loader.py and
tests/chaos/test_workers_die.py.
"""

from __future__ import annotations

import atexit
import io
import pickle
import signal
import sys
import warnings
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from openjepa.runs.machine import free_shared_memory
from openjepa.runs.stop import CAUGHT

PREFETCH_STEPS = 2  # per worker
WORKER_DIED = (
    "a process that loads images has died, as happens where memory runs out; use fewer workers (data.workers, or "
    "--workers of pack) or a smaller data.batch_size"
)
SEMAPHORE_BYTES = 2**19  # that starting some dozen workers takes, generously
LEAST_SHARED_BYTES = 2**30  # free: containers get 64 MB, and a batch of 2,048 images of 224 px takes 308

Item = TypeVar("Item")


def stream_items(
    dataset: Dataset[Item] | Dataset[Item | ValueError], numbers: range, workers: int, pin_memory: bool = False
) -> Generator[Item, None, None]:
    """Items of a data set in the order of their numbers, made ahead of time by `workers` processes; errors among them are raised.

    Closing the generator, or the end of the program, ends its workers. Raises ChildProcessError if one of them dies.
    """
    if not _has_room(SEMAPHORE_BYTES):
        workers = 0  # not even processes that share nothing can be started
    by_value = workers > 0 and not _has_room(LEAST_SHARED_BYTES)
    with _without_advice():
        loader = DataLoader(
            _ByValue(dataset) if by_value else dataset,
            batch_size=None,  # an item is a whole batch
            collate_fn=_leave_alone,  # the default would make lists of tuples
            sampler=numbers,
            num_workers=workers,
            prefetch_factor=PREFETCH_STEPS if workers else None,
            pin_memory=pin_memory,
            worker_init_fn=_be_quiet,
            generator=torch.Generator(),  # its own: starting workers draws a number, which must not move torch's global state
        )
    return _close_at_exit(_raise_errors(loader))


@contextmanager
def _without_advice() -> Iterator[None]:
    """Without PyTorch's two lines on the number of workers, at every start, where there are more of them than cores."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield


def _has_room(needed: int) -> bool:
    """Whether shared memory has this many bytes free. Without room for a batch the loader would wait without end."""
    free = free_shared_memory()
    return free is None or free >= needed


class _ByValue(Dataset[bytes]):
    """The items of a data set as bytes, which go through a pipe: slower than shared memory, and of any size."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, number: int) -> bytes:
        written = io.BytesIO()
        _Pickler(written, protocol=pickle.HIGHEST_PROTOCOL).dump(self.dataset[number])
        return written.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """A tensor as its numbers."""
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented


def _leave_alone(item: Item) -> Item:
    return item


def _be_quiet(_worker: int) -> None:
    """Ctrl-C and a group's signals are the training process's to handle: it saves, then ends its workers.

    A training process that is killed while it takes a batch resets the connection of the thread that sends it: no traceback for
    that. Errors of reading an image do not come here: PyTorch sends them to the training process.
    """
    for number in CAUGHT:
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _forget_lost_connections


def _forget_lost_connections(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _raise_errors(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    with _without_advice():
        items = iter(loader)
    try:
        while (item := _take(items)) is not None:
            if isinstance(item, ValueError):
                raise item
            yield item
    finally:
        del items  # ends the workers, also where somebody keeps the traceback of an error


def _take(items: Iterator[Any]) -> Any:
    """The next item, None after the last. ChildProcessError if a worker has died."""
    try:
        item = next(items, None)
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(WORKER_DIED) from None
    return pickle.loads(item) if isinstance(item, bytes) else item  # noqa: S301 (our own worker's)


def _close_at_exit(batches: Generator[Item, None, None]) -> Generator[Item, None, None]:
    """Close the generator when Python exits, if it still lives.

    Else, after an error elsewhere, Python would wait at exit for workers that ignore its SIGTERM.
    """
    reference = weakref.ref(batches)

    def close() -> None:
        if (alive := reference()) is not None:
            alive.close()

    atexit.register(close)
    return batches
