"""Masks: which patches of each image are context and which are predicted, as padded index tensors.

Images of a batch may keep different numbers of patches, so rows are padded to the longest and never cut to the
shortest. Entries past a row's length repeat that row's first index: a gather stays legal, and the boolean masks say
which entries are real.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Masks:
        """The same masks on another device."""
        return Masks(*(tensor.to(device, non_blocking=non_blocking) for tensor in self._tensors()))

    def split(self, parts: int) -> list[Masks]:
        """Cut along the images into `parts` parts as equal as they can be, each padded only to its own longest row."""
        num_images = len(self.context_lengths)
        assert 1 <= parts <= num_images, f"{num_images} images cannot go into {parts} parts"
        pieces = zip(*(tensor.tensor_split(parts) for tensor in self._tensors()), strict=True)
        return [
            Masks(
                context_idx[:, : int(context_lengths.max())],
                context_lengths,
                target_idx[:, :, : int(target_lengths.max())],
                target_lengths,
            )
            for context_idx, context_lengths, target_idx, target_lengths in pieces
        ]

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.context_idx, self.context_lengths, self.target_idx, self.target_lengths


def _real_entries(idx: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(idx.shape[-1], device=idx.device) < lengths.unsqueeze(-1)
