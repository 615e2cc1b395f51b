"""How much of an image the masks of given settings show, hide and leave out, measured by drawing masks.

The brief states shares (25 % context, 15 % target, 60 % unseen) that its own block scales do not give, so
shares are measured and shown rather than computed from the scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from openjepa.masks.samplers import sample_masks
from openjepa.recipe.views import Mask

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Coverage:
    """Means over images. A patch counts once in a share, however many target blocks hold it."""

    context_frac: float
    """Share of the patches that are context."""
    target_frac: float
    """Share of the patches that are in a target block."""
    unseen_frac: float
    """Share of the patches that are in neither."""
    context_rate: Floats
    """(h, w) share of the images in which each patch is context."""
    target_rate: Floats
    """(h, w) share of the images in which each patch is in a target block."""
    context_tokens: float
    """Context tokens per image, without padding."""
    target_tokens: float
    """Target tokens per image, over all its blocks and without padding."""
    padding_frac: float
    """Share of padding among the entries of context_idx and target_idx together."""


def measure_coverage(
    settings: Mask, grid: tuple[int, int], *, num_images: int = 1024, seed: int = 0, batch_size: int = 64
) -> Coverage:
    """Coverage over num_images images, drawn as training steps of batch_size draw them.

    Padding depends on batch_size, and with fidelity released so does the context. Raises ValueError like check_masks.
    """
    context_rate, target_rate, unseen_rate = np.zeros((3, grid[0] * grid[1]))
    context_tokens = target_tokens = num_entries = 0
    for step, start in enumerate(range(0, num_images, batch_size)):
        masks = sample_masks(settings, grid, min(batch_size, num_images - start), seed=seed, step=step)
        context, target = _mark(masks.context_idx, context_rate.size), _mark(masks.target_idx.flatten(1), context_rate.size)
        context_rate += context.sum(axis=0) / num_images
        target_rate += target.sum(axis=0) / num_images
        unseen_rate += (~(context | target)).sum(axis=0) / num_images
        context_tokens += int(masks.context_lengths.sum())
        target_tokens += int(masks.target_lengths.sum())
        num_entries += masks.context_idx.numel() + masks.target_idx.numel()
    return Coverage(
        context_frac=float(context_rate.mean()),
        target_frac=float(target_rate.mean()),
        unseen_frac=float(unseen_rate.mean()),
        context_rate=context_rate.reshape(grid),
        target_rate=target_rate.reshape(grid),
        context_tokens=context_tokens / num_images,
        target_tokens=target_tokens / num_images,
        padding_frac=1 - (context_tokens + target_tokens) / num_entries,
    )


def _mark(idx: Tensor, num_patches: int) -> npt.NDArray[np.bool_]:
    """(B, num_patches), True at each row's indices; padding repeats a real one and changes nothing."""
    marked = torch.zeros(len(idx), num_patches, dtype=torch.bool)
    return np.asarray(marked.scatter_(1, idx, True).numpy())
