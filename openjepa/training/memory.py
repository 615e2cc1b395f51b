"""How much memory a training step takes, and the largest batch that fits: measured, not looked up.

Memory grows with the batch by the same amount for every image, so steps of two small batches tell the line. All their images
have one mask, the heaviest of some thousands drawn, since a run that fits on average still stops at its worst batch. Left out:
what malloc keeps of steps that all have other shapes, some hundred MB on a CPU, for which USABLE_FRAC leaves room.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from openjepa.data.batch import Batch, BatchObjects, Views
from openjepa.data.sources import ImageSource
from openjepa.engine.precision import choose_precision, pick_device
from openjepa.engine.world import alone, current
from openjepa.masks import Masks, sample_masks
from openjepa.nn.objects import Target
from openjepa.recipe.edit import with_changes
from openjepa.recipe.sections import Recipe
from openjepa.recipe.views import Mask
from openjepa.runs.launch import read_launch
from openjepa.runs.machine import available_memory
from openjepa.training.build import count_classes, list_groups, make_trainer

SMALL_BATCHES = (8, 24)  # images in each accumulated part; below, what does not grow with the batch hides what does
STEPS = 2  # from the second on the optimizer has its moments
DRAWN_BATCHES, DRAWN_IMAGES = 64, 32  # among which the heaviest mask is looked for
OBJECTS = 20  # of an image, where a method needs some
USABLE_FRAC = 0.85  # of the memory there is: the rest is for data workers, health and checkpoints
BATCH_MULTIPLE = 8  # from here on batches are multiples of it, which matrix products like


class MemoryLine(NamedTuple):
    """Peak memory of training in bytes as a line over the images of a batch."""

    fixed: float
    per_image: float

    def predict(self, batch_size: int) -> float:
        """Bytes at a batch size."""
        return self.fixed + self.per_image * batch_size


def fit_memory(recipe: Recipe, num_classes: int | None = None) -> MemoryLine:
    """Measure the peak at two small batches of the heaviest mask."""
    parts = recipe.train.accumulation_steps
    small, large = (parts * size for size in SMALL_BATCHES)
    peaks = [measure_peak_bytes(with_changes(recipe, {"data.batch_size": size}), num_classes) for size in (small, large)]
    per_image = max(peaks[1] - peaks[0], 1) / (large - small)
    return MemoryLine(peaks[0] - per_image * small, per_image)


def find_batch_size(recipe: Recipe, num_images: int, num_classes: int | None = None) -> int:
    """The largest batch that fits into the device's free memory, and holds no image twice.

    ValueError if not even a small one fits.
    """
    line, parts, device = fit_memory(recipe, num_classes), recipe.train.accumulation_steps, pick_device(recipe.train.device)
    usable = USABLE_FRAC * free_bytes(device) / (read_launch().local_size if device.type == "cpu" else 1)
    fitting = min(int((usable - line.fixed) / line.per_image), num_images)
    multiple = parts * BATCH_MULTIPLE if fitting >= parts * BATCH_MULTIPLE else parts
    batch_size = fitting // multiple * multiple
    if batch_size < parts:
        raise ValueError(
            f"data.batch_size auto: {parts} images of recipe {recipe.name} need {line.predict(parts) / 2**30:.1f} GB, "
            f"{usable / 2**30:.1f} GB can be used; take a smaller model.encoder, or "
            "turn on train.activation_checkpointing"
        )
    return batch_size


def measure_peak_bytes(recipe: Recipe, num_classes: int | None = None) -> int:
    """Peak memory of training steps at the recipe's batch size: of the process on a CPU, of PyTorch on a GPU."""
    device = pick_device(recipe.train.device)
    batches = heaviest_batches(recipe)
    reset_peak(device)
    channels = recipe.data.channels
    precision = choose_precision(device, recipe.train.precision)
    trainer = make_trainer(recipe, [0.5] * channels, [0.25] * channels, 1000, precision, num_classes)
    for _ in range(STEPS):
        trainer.step(batches)
    return peak_bytes(device)


def heaviest_batches(recipe: Recipe) -> list[Batch]:
    """The micro-batches of a step on black images that all have the mask with the most tokens among those drawn."""
    count = recipe.train.accumulation_steps
    size = recipe.batch_size // count
    groups = {}
    for name, group, view_size, grid in list_groups(recipe):
        images = torch.zeros(size, group.count, recipe.data.channels, *view_size, dtype=torch.uint8)
        masks = None if group.mask is None else _find_heaviest(group.mask, grid).repeat(size * group.count * group.mask.per_view)
        groups[name] = Views(images, masks)
    labels = torch.zeros(size, dtype=torch.int64) if recipe.method.NEEDS_LABELS else None
    objects = _make_objects(recipe, size) if recipe.method.NEEDS_OBJECTS else None
    batch = Batch(0, groups, torch.zeros(size, dtype=torch.int64), labels, objects=objects, share=1 / count)
    return [batch] * count


def _make_objects(recipe: Recipe, num_images: int) -> BatchObjects:
    """Objects that fill their image, as many in each as few sets exceed."""
    height, width = recipe.data.size
    boxes = torch.tensor([[0.0, 0.0, width, height]]).expand(OBJECTS, 4)
    masks = torch.ones(OBJECTS, height, width, dtype=torch.bool)
    target = Target(boxes, torch.zeros(OBJECTS, dtype=torch.int64), masks)
    return BatchObjects.gather([target] * num_images, [(height, width)] * num_images, (height, width))


def _find_heaviest(settings: Mask, grid: tuple[int, int]) -> Masks:
    """The mask, of one view, with the most tokens among those drawn."""
    drawn = [sample_masks(settings, grid, DRAWN_IMAGES, seed=0, step=step) for step in range(DRAWN_BATCHES)]
    tokens = [int((masks.context_lengths + masks.target_lengths.sum(1)).max()) for masks in drawn]
    heaviest = drawn[tokens.index(max(tokens))]
    place = int((heaviest.context_lengths + heaviest.target_lengths.sum(1)).argmax())
    return heaviest.take(place, place + 1)


def settle_batch_size(recipe: Recipe, source: ImageSource) -> Recipe:
    """The recipe with a number for data.batch_size auto: the largest batch that fits. Others come back unchanged.

    Of several processes one measures by itself what each can hold.
    """
    if recipe.data.batch_size != "auto":
        return recipe
    size = current().size
    with alone():
        each = find_batch_size(recipe, max(len(source) // size, 1), count_classes(recipe, source))
    return with_changes(recipe, {"data.batch_size": size * each})


def free_bytes(device: torch.device) -> int:
    """Memory that training may take: what is free, and what this process holds and can use again.

    That is its resident memory on a CPU, and on a GPU what PyTorch has reserved and no tensor uses.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + cached)
    return int(available_memory() + psutil.Process().memory_info().rss)


def peak_bytes(device: torch.device) -> int:
    """The largest amount since the last reset, or, where a process cannot reset it, since it started."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text("utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak(device: torch.device) -> None:
    """Measure peak_bytes from here on; what earlier work of the process freed goes back to the system first, where it can."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc keeps freed memory for itself
            trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): VmHWM starts again from the present size
