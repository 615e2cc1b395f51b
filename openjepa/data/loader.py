"""Batches: which images, which views and which masks a step trains on.

Position p of the training stream is image p mod N of epoch p // N, and each epoch is a fresh permutation of all N
images. A view is a function of (seed, position, its group and number), the masks of a global batch are one of (seed, step,
group). Step s of rank r takes the positions from s * global batch + r * local batch on, in micro-batches, and its rows of the
masks. So a run resumes at any step without replaying, and neither the number of processes nor of workers changes what is
seen (tests/laws/test_sample_order.py, tests/unit/test_loader.py).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from openjepa.data.annotations import AnnotatedSource
from openjepa.data.batch import Batch, BatchObjects, Views
from openjepa.data.errors import DecodeError, none_readable
from openjepa.data.object_views import ObjectSettings, ObjectView, draw_object_view
from openjepa.data.sources import ArraySource, ImageSource, whole_of
from openjepa.data.views import View, ViewPlan, evaluation_view, training_views
from openjepa.data.workers import stream_items
from openjepa.masks import Masks, sample_masks
from openjepa.recipe.views import ViewGroup

# What a generator is for: the second number of its seed.
ORDER, VIEW, REPLACEMENT = 2, 3, 4

MOST_VIEWS = 2**16  # of a group, whose views and those of the next have numbers of their own
REPLACEMENT_TRIES = 20
Made = TypeVar("Made")
EvaluationBatch = tuple[UInt8[Tensor, "B C H W"], Int64[Tensor, " B"], list[tuple[str, str]]]


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


@dataclass(frozen=True)
class StreamSettings:
    """What a run's stream of batches is made of."""

    groups: tuple[GroupSettings, ...]
    batch_size: int  # images of the global batch
    workers: int
    seed: int
    accumulation_steps: int = 1
    with_labels: bool = False
    with_objects: ObjectSettings | None = None  # how annotated objects come along; None: there are none
    counts_tokens: bool = True  # a process's share of the batch, where patches are hidden: of target tokens, else of images
    rank: int = 0
    world_size: int = 1


class GroupSettings(NamedTuple):
    """A group of views: its name, its settings, and what they come to for this recipe."""

    name: str
    views: ViewGroup
    size: tuple[int, int]  # height and width in pixels
    grid: tuple[int, int]  # patches


def training_batches(
    source: ImageSource, settings: StreamSettings, *, start_step: int, total_steps: int
) -> Generator[Batch, None, None]:
    """Micro-batches of the steps start_step to total_steps - 1 of one process: accumulation_steps of them for each step.

    B = batch_size // world_size // accumulation_steps. An unreadable image is replaced by another and listed in
    `Batch.skipped`. Closing the generator ends its workers. Raises ValueError if the batch cannot be divided evenly; while
    iterating, DecodeError if replacements fail as well.
    """
    pieces = settings.world_size * settings.accumulation_steps
    if settings.batch_size % pieces:
        raise ValueError(
            f"data.batch_size {settings.batch_size} cannot be shared evenly by {settings.world_size} processes with "
            f"train.accumulation_steps {settings.accumulation_steps}; make it a multiple of {pieces}"
        )
    items = _MicroBatches(source, settings)
    numbers = range(start_step * settings.accumulation_steps, total_steps * settings.accumulation_steps)
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
    items = stream_items(
        _Parts(source, size, parts), range(len(parts)), 0 if isinstance(whole_of(source), ArraySource) else workers
    )
    return _drop_empty(source, items)


@dataclass(frozen=True)
class _MicroBatches(Dataset[Batch | ValueError]):
    """The training stream, indexed by step * accumulation_steps + micro-batch.

    Errors are items: the DataLoader would bury their one line in a traceback.
    """

    source: ImageSource
    settings: StreamSettings

    def __getitem__(self, number: int) -> Batch | ValueError:
        try:
            return self._make_batch(*divmod(number, self.settings.accumulation_steps))
        except ValueError as error:
            return error

    def _make_batch(self, step: int, micro_batch: int) -> Batch:
        settings = self.settings
        count = settings.batch_size // settings.world_size // settings.accumulation_steps
        first = (settings.rank * settings.accumulation_steps + micro_batch) * count  # within the global batch
        position = step * settings.batch_size + first
        order = sample_order(len(self.source), settings.seed, position, count)
        images = [np.empty((count, group.views.count, self.source.channels, *group.size), np.uint8) for group in settings.groups]
        image_idx = np.empty(count, np.int64)
        skipped: list[tuple[str, str]] = []
        seen: list[ObjectView] = []
        for i in range(count):
            if settings.with_objects is not None:
                found, image_idx[i] = self._make_first(int(order[i]), position + i, skipped, self._draw_objects)
                seen.append(found)
                images[0][i, 0] = found.pixels
                continue
            views, image_idx[i] = self._make_first(int(order[i]), position + i, skipped, self._draw_views)
            for place, group in zip(images, settings.groups, strict=True):
                place[i] = views[: group.views.count]
                views = views[group.views.count :]
        share, groups = count / settings.batch_size, {}
        for number, (group, pixels) in enumerate(zip(settings.groups, images, strict=True)):
            masks = None
            if group.views.mask is not None:
                masks, tokens_share = self._draw_masks(number, step, first, count)
                share = tokens_share if self.settings.counts_tokens else share
            groups[group.name] = Views(torch.from_numpy(pixels), masks)
        labels = None
        if settings.with_labels:
            assert self.source.labels is not None, self.source.spec
            labels = torch.from_numpy(np.asarray(self.source.labels)[image_idx].astype(np.int64))
        objects = None
        if seen:
            objects = BatchObjects.gather([view.target for view in seen], [view.filled for view in seen], settings.groups[0].size)
        return Batch(step, groups, torch.from_numpy(image_idx), labels, skipped, objects, share)

    def _draw_masks(self, number: int, step: int, first: int, count: int) -> tuple[Masks, float]:
        """The masks of a group's views of this micro-batch, and its share of the global batch's real target tokens."""
        settings, group = self.settings, self.settings.groups[number]
        assert group.views.mask is not None
        per_image = group.views.count * group.views.mask.per_view
        drawn = sample_masks(
            group.views.mask, group.grid, settings.batch_size * per_image, seed=settings.seed, step=step, group=number
        )
        masks = drawn.take(first * per_image, (first + count) * per_image)
        return masks, float(masks.target_lengths.sum() / drawn.target_lengths.sum())

    def _make_first(
        self, number: int, position: int, skipped: list[tuple[str, str]], make: Callable[[int, int], Made]
    ) -> tuple[Made, int]:
        """What is made of the image at a position of the stream, or of the first readable one of a random row; and its number."""
        for candidate in self._list_candidates(number, position):
            try:
                return make(candidate, position), candidate
            except DecodeError as error:
                skipped.append((self.source.path(candidate), error.reason))
        path, reason = skipped[-1]
        raise DecodeError(
            self.source.spec, f"{REPLACEMENT_TRIES + 1} images in a row cannot be read; the last is {path} ({reason})"
        )

    def _draw_views(self, number: int, position: int) -> list[View]:
        key = (self.settings.seed, VIEW, position)
        plans = [
            ViewPlan(group.views, group.size, np.random.default_rng([*key, MOST_VIEWS * place + view]))
            for place, group in enumerate(self.settings.groups)
            for view in range(group.views.count)
        ]
        return training_views(self.source.open(number), plans)

    def _draw_objects(self, number: int, position: int) -> ObjectView:
        assert isinstance(self.source, AnnotatedSource) and self.settings.with_objects is not None
        (group,) = self.settings.groups
        plan = ViewPlan(group.views, group.size, np.random.default_rng([self.settings.seed, VIEW, position, 0]))
        picture = self.source.open_checked(number)
        return draw_object_view(picture, self.source.objects[number], plan, self.settings.with_objects)

    def _list_candidates(self, number: int, position: int) -> Iterator[int]:
        yield number
        generator = np.random.default_rng([self.settings.seed, REPLACEMENT, position])
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
        raise none_readable(source.spec, skipped)
