"""What a step trains on: the views of some images, group by group, with their masks and labels where a method has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from openjepa.masks import Masks

MAIN = "main"  # the group of a method that has only one kind of views


@dataclass(frozen=True)
class Views:
    """The views of a group: uint8 from the loader, normalised floats for a method."""

    images: UInt8[Tensor, "B V C H W"] | Float[Tensor, "B V C H W"]
    masks: Masks | None = None
    """Of B * V views, those of an image in a row, and of a view in a row if it has several; None where nothing is hidden."""

    @property
    def flat(self) -> UInt8[Tensor, "views C H W"] | Float[Tensor, "views C H W"]:
        """All views in a row, those of an image one after another."""
        return self.images.flatten(0, 1)


@dataclass(frozen=True)
class Batch:
    """A micro-batch: what goes through the model at once. A step of one process is accumulation_steps of them."""

    step: int
    views: dict[str, Views]
    image_idx: Int64[Tensor, " B"]  # numbers in the source
    labels: Int64[Tensor, " B"] | None = None  # class numbers
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (path, reason) of unreadable files, replaced by others
    share: float = 1.0  # of the step's global batch: of its real target tokens, or of its images where nothing is hidden

    def pin_memory(self) -> Batch:
        """Called by the DataLoader, so that copies of the images to a GPU overlap with its work."""
        views = {name: replace(group, images=group.images.pin_memory()) for name, group in self.views.items()}
        return replace(self, views=views)

    def to(self, device: torch.device | str, pad_multiple: int = 1) -> Batch:
        """The batch on a device, its masks padded to a multiple of pad_multiple. A second time changes nothing."""
        views = {
            name: Views(
                group.images.to(device, non_blocking=True),
                None if group.masks is None else group.masks.pad(pad_multiple).to(device),
            )
            for name, group in self.views.items()
        }
        labels = None if self.labels is None else self.labels.to(device, non_blocking=True)
        return replace(self, views=views, labels=labels)

    def map_images(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with another tensor for the views (n, C, H, W) of each group."""
        views = {
            name: replace(group, images=change(group.flat).unflatten(0, group.images.shape[:2]))
            for name, group in self.views.items()
        }
        return replace(self, views=views)


def one_view(
    images: Tensor, masks: Masks | None = None, labels: Tensor | None = None, step: int = 0, share: float = 1.0
) -> Batch:
    """Images (B, C, H, W), one view each, as a batch of the group `main`."""
    return Batch(step, {MAIN: Views(images.unsqueeze(1), masks)}, torch.arange(len(images)), labels, share=share)
