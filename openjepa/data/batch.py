"""What a step trains on: the views of some images, group by group, with their masks and labels where a method has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from openjepa.masks import Masks
from openjepa.nn.objects import Target

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
class BatchObjects:
    """The annotated objects of a batch's images, one image's after another's: few tensors, which workers can send."""

    boxes: Float[Tensor, "objects 4"]  # left, top, right, bottom in pixels of the view
    labels: Int64[Tensor, " objects"]
    masks: Bool[Tensor, "objects height width"] | None  # of the view
    counts: list[int]  # objects of each image
    sizes: list[tuple[int, int]]  # height and width of what an image fills of its view, from the upper left

    @classmethod
    def gather(cls, targets: Sequence[Target], sizes: Sequence[tuple[int, int]], view_size: tuple[int, int]) -> BatchObjects:
        """The objects of images that fill so much of their views; masks are as large as what they fill."""
        counts = [len(target.labels) for target in targets]
        masks = None
        if all(target.masks is not None for target in targets):
            masks = torch.zeros(sum(counts), *view_size, dtype=torch.bool)
            for part, target, (height, width) in zip(masks.split(counts), targets, sizes, strict=True):
                part[:, :height, :width] = target.masks
        boxes, labels = (torch.cat([getattr(target, key) for target in targets]) for key in ("boxes", "labels"))
        return cls(boxes, labels, masks, counts, list(sizes))

    def split(self) -> list[Target]:
        """What is in each image, masks as large as what it fills of its view."""
        boxes, labels = self.boxes.split(self.counts), self.labels.split(self.counts)
        if self.masks is None:
            return [Target(*pair) for pair in zip(boxes, labels, strict=True)]
        masks = [
            part[:, :height, :width] for part, (height, width) in zip(self.masks.split(self.counts), self.sizes, strict=True)
        ]
        return [Target(*parts) for parts in zip(boxes, labels, masks, strict=True)]

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> BatchObjects:
        """The same with every tensor changed, as by a copy to another place."""
        masks = None if self.masks is None else change(self.masks)
        return replace(self, boxes=change(self.boxes), labels=change(self.labels), masks=masks)


@dataclass(frozen=True)
class Batch:
    """A micro-batch: what goes through the model at once. A step of one process is accumulation_steps of them."""

    step: int
    views: dict[str, Views]
    image_idx: Int64[Tensor, " B"]  # numbers in the source
    labels: Int64[Tensor, " B"] | None = None  # class numbers
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (path, reason) of unreadable files, replaced by others
    objects: BatchObjects | None = None  # of a method that needs them
    share: float = 1.0  # of the step's global batch: of its real target tokens, or of its images where nothing is hidden

    def pin_memory(self) -> Batch:
        """Called by the DataLoader, so that copies of the images to a GPU overlap with its work."""
        views = {name: replace(group, images=group.images.pin_memory()) for name, group in self.views.items()}
        objects = None if self.objects is None else self.objects.map_tensors(lambda tensor: tensor.pin_memory())
        return replace(self, views=views, objects=objects)

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
        objects = None
        if self.objects is not None:
            objects = self.objects.map_tensors(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(self, views=views, labels=labels, objects=objects)

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
