"""Masks: which patches of each image are context and which are predicted, as padded index tensors.

Images of a batch may keep different numbers of patches, so rows are padded to the longest and never cut to the
shortest. Entries past a row's length repeat that row's first index: a gather stays legal, and the boolean masks say
which entries are real. Masks are made on the CPU, and what has no fixed shape is found out there, before they go to a GPU:
a GPU that is asked whether anything is padded makes the CPU wait for all that it has to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Masks:
    """The masks of B images: C context patches and M target blocks of T patches, padded."""

    context_idx: Tensor
    """(B, C) int64 into the row-major grid, rising within the real entries."""
    context_lengths: Tensor
    """(B,) int64, at least 1."""
    target_idx: Tensor
    """(B, M, T) int64 into the row-major grid, rising within the real entries."""
    target_lengths: Tensor
    """(B, M) int64, at least 1."""

    @property
    def context_mask(self) -> Tensor:
        """(B, C) bool, True at real entries."""
        return _real_entries(self.context_idx, self.context_lengths)

    @property
    def target_mask(self) -> Tensor:
        """(B, M, T) bool, True at real entries."""
        return _real_entries(self.target_idx, self.target_lengths)

    @cached_property
    def context_padding_mask(self) -> Tensor | None:
        """`context_mask`, or None where no context is padded, which lets attention skip it."""
        return None if int(self.context_lengths.min()) == self.context_idx.shape[-1] else self.context_mask

    @cached_property
    def target_padding_mask(self) -> Tensor | None:
        """`target_mask`, or None where no target is padded."""
        return None if int(self.target_lengths.min()) == self.target_idx.shape[-1] else self.target_mask

    @cached_property
    def real_target_places(self) -> Tensor:
        """(R,) int64, the real entries of target_idx, counted through images and blocks."""
        return self.target_mask.flatten().nonzero().squeeze(1)

    @cached_property
    def real_context_places(self) -> Tensor:
        """(R,) int64, the real entries of context_idx, counted through images."""
        return self.context_mask.flatten().nonzero().squeeze(1)

    def pick_context(self, values: Tensor) -> Tensor:
        """(B, C, ...) -> (R, ...): the values at real context entries alone, as `values[context_mask]` gives them."""
        return values.flatten(0, 1).index_select(0, self.real_context_places)

    def pick_targets(self, values: Tensor) -> Tensor:
        """(B, M, T, ...) -> (R, ...): the values at real targets alone, as `values[target_mask]` gives them."""
        return values.flatten(0, 2).index_select(0, self.real_target_places)

    def to(self, device: torch.device | str) -> Masks:
        """The same masks on another device, with what would have to be asked there. Nobody waits for the copies to a GPU."""

        def send(tensor: Tensor) -> Tensor:
            on_gpu = torch.device(device).type == "cuda" and not tensor.is_cuda
            return tensor.pin_memory().to(device, non_blocking=True) if on_gpu else tensor.to(device)

        if self.context_idx.device == torch.device(device):
            return self
        moved = Masks(*map(send, self._tensors()))
        for name in ("context_padding_mask", "target_padding_mask", "real_context_places", "real_target_places"):
            known: Tensor | None = getattr(self, name)
            vars(moved)[name] = None if known is None else send(known)
        return moved

    def take(self, start: int, stop: int) -> Masks:
        """The masks of images start to stop - 1, padded only to their own longest row."""
        assert 0 <= start < stop <= len(self.context_lengths), (start, stop, len(self.context_lengths))
        context_lengths, target_lengths = self.context_lengths[start:stop], self.target_lengths[start:stop]
        context_idx = self.context_idx[start:stop, : int(context_lengths.max())]
        return Masks(context_idx, context_lengths, self.target_idx[start:stop, :, : int(target_lengths.max())], target_lengths)

    def split(self, count: int) -> list[Masks]:
        """Cut along the images into `count` pieces as equal as they can be."""
        edges = [number * len(self.context_lengths) // count for number in range(count + 1)]
        return [self.take(start, stop) for start, stop in pairwise(edges)]

    def pad(self, multiple: int) -> Masks:
        """Rows padded on, contexts and blocks each to a multiple of `multiple`: few shapes instead of one a batch."""

        if multiple == 1:
            return self

        def fill(idx: Tensor) -> Tensor:
            missing = -idx.shape[-1] % multiple
            return torch.cat([idx, idx[..., :1].expand(*idx.shape[:-1], missing)], dim=-1)

        return Masks(fill(self.context_idx), self.context_lengths, fill(self.target_idx), self.target_lengths)

    def repeat(self, times: int) -> Masks:
        """The masks of every image, `times` times in a row."""
        return Masks(*(tensor.repeat_interleave(times, dim=0) for tensor in self._tensors()))

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.context_idx, self.context_lengths, self.target_idx, self.target_lengths


def every_patch(num_images: int, num_patches: int) -> Masks:
    """Every patch as the one target block, to have the targets of whole images; the context is not to be looked at."""
    every = torch.arange(num_patches).expand(num_images, -1)
    lengths = torch.full((num_images,), num_patches)
    return Masks(every, lengths, every[:, None], lengths[:, None])


def _real_entries(idx: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(idx.shape[-1], device=idx.device) < lengths.unsqueeze(-1)
