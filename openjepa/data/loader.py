"""Batches: which images, which views and which masks a step trains on.

Position p of the training stream is image p mod N of epoch p // N, and each epoch is a fresh permutation of all N
images. A view is a function of (seed, position), the masks of a global batch are one of (seed, step). Step s of rank r
takes the positions from s * global batch + r * local batch on, in micro-batches, and its rows of the masks. So a run
resumes at any step without replaying, and neither the number of processes nor of workers changes what is seen
(tests/laws/test_sample_order.py, tests/unit/test_loader.py).
"""

from __future__ import annotations

import atexit
import io
import os
import pickle
import signal
import weakref
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from openjepa.data.decode import DecodeError
from openjepa.data.sources import ArraySource, ImageSource
from openjepa.data.views import View, evaluation_view, training_view
from openjepa.masks import Masks, sample_masks
from openjepa.recipe.sections import Data, Mask

# What a generator is for: the second number of its seed.
ORDER, VIEW, REPLACEMENT = 2, 3, 4

REPLACEMENT_TRIES = 20
PREFETCH_STEPS = 2  # per worker
SHARED_MEMORY = Path("/dev/shm")
WORKER_DIED = (
    "a process that loads images has died, as happens where memory runs out; use fewer workers (data.workers, or "
    "--workers of pack) or a smaller data.batch_size"
)
SEMAPHORE_BYTES = 2**19  # that starting some dozen workers takes, generously
LEAST_SHARED_BYTES = 2**30  # free: containers get 64 MB, and a batch of 2,048 images of 224 px takes 308

Item = TypeVar("Item")
EvaluationBatch = tuple[UInt8[Tensor, "B C H W"], Int64[Tensor, " B"], list[tuple[str, str]]]


@dataclass(frozen=True)
class Batch:
    """A micro-batch: what goes through the model at once. A step of one process is accumulation_steps of them."""

    step: int
    images: UInt8[Tensor, "B C H W"]
    masks: Masks
    image_idx: Int64[Tensor, " B"]  # numbers in the source
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (path, reason) of unreadable files, replaced by others
    share: float = 1.0  # of the real target tokens of the step's global batch

    def pin_memory(self) -> Batch:
        """Called by the DataLoader, so that copies of the images to a GPU overlap with its work."""
        return replace(self, images=self.images.pin_memory())


def sample_order(num_images: int, seed: int, start: int, count: int) -> Int64[np.ndarray, " {count}"]:
    """Image numbers (count,) at positions start, start + 1, ... of an endless stream of shuffled epochs."""
    parts = []
    while count > 0:
        epoch, first = divmod(start, num_images)
        part = _shuffle_epoch(num_images, seed, epoch)[first : first + count]
        parts.append(part)
        start, count = start + len(part), count - len(part)
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


@lru_cache(maxsize=2)
def _shuffle_epoch(num_images: int, seed: int, epoch: int) -> Int64[np.ndarray, " {num_images}"]:
    order = np.random.default_rng([seed, ORDER, epoch]).permutation(num_images)
    order.setflags(write=False)
    return order


def training_batches(
    source: ImageSource,
    settings: Data,
    mask: Mask,
    grid: tuple[int, int],
    *,
    seed: int,
    start_step: int,
    total_steps: int,
    accumulation_steps: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> Generator[Batch, None, None]:
    """Micro-batches of the steps start_step to total_steps - 1 of one process: accumulation_steps of them for each step.

    B = settings.batch_size // world_size // accumulation_steps. An unreadable image is replaced by another and listed in
    `Batch.skipped`. Closing the generator ends its workers. Raises ValueError if the batch cannot be divided evenly; while
    iterating, DecodeError if replacements fail as well.
    """
    if settings.batch_size % (world_size * accumulation_steps):
        raise ValueError(
            f"data.batch_size {settings.batch_size} cannot be shared evenly by {world_size} processes with "
            f"train.accumulation_steps {accumulation_steps}; make it a multiple of {world_size * accumulation_steps}"
        )
    assert source.channels == settings.channels, (source.channels, settings.channels)
    items = _MicroBatches(source, settings, mask, grid, seed, accumulation_steps, rank, world_size)
    numbers = range(start_step * accumulation_steps, total_steps * accumulation_steps)
    return stream_items(items, numbers, settings.workers, pin_memory=torch.cuda.is_available())


def evaluation_batches(
    source: ImageSource,
    size: tuple[int, int],
    *,
    batch_size: int = 256,
    workers: int = 0,
    indices: Sequence[int] | Int64[np.ndarray, " N"] | None = None,
) -> Generator[EvaluationBatch, None, None]:
    """Views (B, C, H, W) uint8 of all or the given images in order, their numbers (B,), and unreadable (path, reason) pairs.

    Unreadable images are left out: B may be below batch_size but is never 0. DecodeError if no image at all can be read.
    Images in memory are cut faster than workers could send them, so workers are for folders.
    """
    numbers = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)
    parts = [numbers[first : first + batch_size] for first in range(0, len(numbers), batch_size)]
    items = stream_items(_Parts(source, size, parts), range(len(parts)), 0 if isinstance(source, ArraySource) else workers)
    return _drop_empty(source, items)


@dataclass(frozen=True)
class _MicroBatches(Dataset[Batch | ValueError]):
    """The training stream, indexed by step * accumulation_steps + micro-batch.

    Errors are items: the DataLoader would bury their one line in a traceback.
    """

    source: ImageSource
    settings: Data
    mask: Mask
    grid: tuple[int, int]
    seed: int
    accumulation_steps: int
    rank: int
    world_size: int

    def __getitem__(self, number: int) -> Batch | ValueError:
        try:
            return self._make_batch(*divmod(number, self.accumulation_steps))
        except ValueError as error:
            return error

    def _make_batch(self, step: int, micro_batch: int) -> Batch:
        global_batch = self.settings.batch_size
        count = global_batch // self.world_size // self.accumulation_steps
        first = (self.rank * self.accumulation_steps + micro_batch) * count  # within the global batch
        position = step * global_batch + first
        order = sample_order(len(self.source), self.seed, position, count)
        height, width = self.settings.size
        views = np.empty((count, self.source.channels, height, width), np.uint8)
        image_idx = np.empty(count, np.int64)
        skipped: list[tuple[str, str]] = []
        for i in range(count):
            views[i], image_idx[i] = self._make_view(int(order[i]), position + i, skipped)
        drawn = sample_masks(self.mask, self.grid, global_batch, seed=self.seed, step=step)
        masks = drawn.take(first, first + count)
        share = float(masks.target_lengths.sum() / drawn.target_lengths.sum())
        return Batch(step, torch.from_numpy(views), masks, torch.from_numpy(image_idx), skipped, share)

    def _make_view(self, number: int, position: int, skipped: list[tuple[str, str]]) -> tuple[View, int]:
        """View and number of the image at a position of the stream, or of the first readable one of a random row of others."""
        for candidate in self._list_candidates(number, position):
            generator = np.random.default_rng([self.seed, VIEW, position])
            try:
                view = training_view(self.source.open(candidate), self.settings.size, self.settings, generator)
                return view, candidate
            except DecodeError as error:
                skipped.append((self.source.path(candidate), error.reason))
        path, reason = skipped[-1]
        raise DecodeError(
            self.source.spec, f"{REPLACEMENT_TRIES + 1} images in a row cannot be read; the last is {path} ({reason})"
        )

    def _list_candidates(self, number: int, position: int) -> Iterator[int]:
        yield number
        generator = np.random.default_rng([self.seed, REPLACEMENT, position])
        yield from generator.integers(len(self.source), size=REPLACEMENT_TRIES).tolist()


@dataclass(frozen=True)
class _Parts(Dataset[EvaluationBatch]):
    """Evaluation batches, indexed by number."""

    source: ImageSource
    size: tuple[int, int]
    parts: list[Int64[np.ndarray, " _"]]

    def __getitem__(self, part: int) -> EvaluationBatch:
        views, numbers, skipped = [], [], []
        for number in self.parts[part].tolist():
            try:
                views.append(evaluation_view(self.source.open(number), self.size))
                numbers.append(number)
            except DecodeError as error:
                skipped.append((self.source.path(number), error.reason))
        shape = (len(views), self.source.channels, *self.size)
        return torch.from_numpy(np.array(views, np.uint8).reshape(shape)), torch.tensor(numbers, dtype=torch.int64), skipped


def _drop_empty(source: ImageSource, batches: Generator[EvaluationBatch, None, None]) -> Generator[EvaluationBatch, None, None]:
    """Pass on batches that hold images; the unreadable files of an empty one go to a neighbour's list."""
    held: EvaluationBatch | None = None
    skipped: list[tuple[str, str]] = []
    for images, numbers, failed in batches:
        skipped += failed
        if len(numbers):
            if held is not None:
                yield held
            held, skipped = (images, numbers, skipped), []
    if held is not None:
        yield (held[0], held[1], held[2] + skipped)
    elif skipped:
        raise DecodeError(
            source.spec, f"none of {len(skipped)} images can be read; the first is {skipped[0][0]} ({skipped[0][1]})"
        )


def stream_items(
    dataset: Dataset[Item] | Dataset[Item | ValueError], numbers: range, workers: int, pin_memory: bool = False
) -> Generator[Item, None, None]:
    """Items of a data set in the order of their numbers, made ahead of time by so many workers; errors among them are raised.

    Closing the generator, or the end of the program, ends its workers. Raises ChildProcessError if one of them dies.
    """
    if not _has_room(SEMAPHORE_BYTES):
        workers = 0  # not even processes that share nothing can be started
    by_value = workers > 0 and not _has_room(LEAST_SHARED_BYTES)
    loader = DataLoader(
        _ByValue(dataset) if by_value else dataset,
        batch_size=None,  # an item is a whole batch
        collate_fn=_leave_alone,  # the default would make lists of tuples
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=PREFETCH_STEPS if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # its own: starting workers draws a number, which must not move torch's global state
    )
    return _close_at_exit(_raise_errors(loader))


def _has_room(needed: int) -> bool:
    """Whether shared memory has this many bytes free. A batch that finds no room there is lost, and awaited for ever."""
    if not SHARED_MEMORY.is_dir():
        return True
    found = os.statvfs(SHARED_MEMORY)
    return found.f_bavail * found.f_frsize >= needed


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


def _ignore_signals(_worker: int) -> None:
    """Ctrl-C and a group's signals are the training process's to handle: it saves, then ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _raise_errors(loader: DataLoader[Any]) -> Generator[Any, None, None]:
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
