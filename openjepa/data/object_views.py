"""A training view of an image with its objects: resized at random, cropped or padded, mirrored, boxes and masks with it.

Source: large-scale jittering, Ghiasi et al. 2021 (arXiv 2012.07177, section 3), as ViTDet trains (arXiv 2203.16527): the image is
fitted into the view, resized by a factor uniform in `scale_jitter`, and a window of the view's size is taken where it is larger.
Where it is smaller it fills the upper left of the view. A box is cut to what the window shows; an object of which less than a
pixel is left, or no pixel of its mask, is left out, and so are crowd regions. A view is a function of its generator.
tests/unit/test_object_views.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8

from openjepa.data.annotations import Objects
from openjepa.data.decode import Picture
from openjepa.data.views import ViewPlan, change_colours, cut, decode_for
from openjepa.nn.objects import Target, fit_size

LEAST_PX = 1.0  # of a side of a box


class ObjectSettings(NamedTuple):
    """How images with objects are shown. scale_jitter: smallest and largest factor of what fits the view."""

    scale_jitter: tuple[float, float]
    with_masks: bool


class ObjectView(NamedTuple):
    """A view, what is in it, and the height and width that the image fills of it, from the upper left."""

    pixels: UInt8[np.ndarray, "channels view_height view_width"]
    target: Target
    filled: tuple[int, int]


def draw_object_view(picture: Picture, objects: Objects, plan: ViewPlan, settings: ObjectSettings) -> ObjectView:
    """A random view of an image. Raises DecodeError if it cannot be read."""
    group, size, generator = plan
    (height, width), (most_height, most_width) = picture.size, size
    resized = fit_size((height, width), size, generator.uniform(*settings.scale_jitter))
    filled = min(resized[0], most_height), min(resized[1], most_width)
    top, left = (int(generator.integers(side - part + 1)) for side, part in zip(resized, filled, strict=True))
    is_mirrored = bool(generator.random() < group.flip)
    down, across = resized[0] / height, resized[1] / width
    window = (top / down, left / across, filled[0] / down, filled[1] / across)
    if filled == resized:
        window = (0, 0, height, width)
    view = cut(*decode_for(picture, window, filled), filled)
    view = change_colours(view[:, ::-1] if is_mirrored else view, group, generator)
    pixels = np.zeros((view.shape[2], *size), np.uint8)
    pixels[:, : filled[0], : filled[1]] = view.transpose(2, 0, 1)

    single = objects.without_crowds()
    boxes = single.boxes * np.array([across, down] * 2, np.float32) - np.array([left, top] * 2, np.float32)
    boxes = np.clip(boxes, 0, np.array([filled[1], filled[0]] * 2, np.float32))
    if is_mirrored:
        boxes = np.stack([filled[1] - boxes[:, 2], boxes[:, 1], filled[1] - boxes[:, 0], boxes[:, 3]], axis=1)
    kept_mask = (boxes[:, 2:] - boxes[:, :2] >= LEAST_PX).all(axis=1)
    masks = None
    if settings.with_masks:
        rows, columns = (
            np.minimum(((start + np.arange(part) + 0.5) / factor).astype(np.int64), side - 1)
            for start, part, factor, side in zip((top, left), filled, (down, across), (height, width), strict=True)
        )
        shown = single.masks()[:, rows][:, :, columns]
        shown = shown[:, :, ::-1] if is_mirrored else shown
        kept_mask &= shown.any(axis=(1, 2))
        masks = torch.from_numpy(np.ascontiguousarray(shown[kept_mask]))
    target = Target(torch.from_numpy(boxes[kept_mask]), torch.from_numpy(single.labels[kept_mask]), masks)
    return ObjectView(pixels, target, filled)
