"""Views: an image of any size, uint8 (H, W, C), cut and resized to the size that the encoder takes, uint8 (C, h, w).

Training: random resized crop as in GoogLeNet (Szegedy et al. 2014, arXiv 1409.4842, section 6) and torchvision, mirrored
at random, with the colour changes of the group of views. Evaluation: shorter side resized, centre cropped. Resizing is bilinear
with antialiasing, the default of torchvision and of the I-JEPA release. Deviation: a crop's aspect is drawn relative to
the view's, which changes nothing for square views (test_views pins both).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch.nn.functional import interpolate

from openjepa.data.colour import blur, jitter_colour, remove_colour, solarize
from openjepa.data.decode import Picture, Pixels
from openjepa.data.rand_augment import rand_augment
from openjepa.recipe.views import ViewGroup

View = UInt8[np.ndarray, "channels view_height view_width"]
Box = tuple[int | float, int | float, int | float, int | float]  # top, left, height and width in pixels
ResizedPixels = UInt8[np.ndarray, "view_height view_width channels"]

CROP_ASPECT = (3 / 4, 4 / 3)  # width / height before squashing; arXiv 1409.4842
CROP_TRIES = 10  # torchvision's
REDUCTIONS = (8, 4, 2)  # that a JPEG decodes to at less cost
OVERSAMPLING = 1.5  # docs/performance.md compares others: from here on the difference is below that of JPEG itself


class ViewPlan(NamedTuple):
    """A view that is to be cut: its settings, height and width in pixels, and the generator of its randomness."""

    group: ViewGroup
    size: tuple[int, int]
    generator: np.random.Generator


def training_views(image: Picture, plans: Sequence[ViewPlan]) -> list[View]:
    """Random views of an image, each (C, height, width); the image is decoded once, as finely as the finest view needs.

    A view's randomness is its generator's. Raises DecodeError if the image cannot be read.
    """
    boxes = [
        find_middle(image.size, plan.size)
        if plan.group.crop_scale is None
        else draw_crop(image.size, plan.size, plan.group.crop_scale, plan.generator)
        for plan in plans
    ]
    reduction = min(find_reduction(box, plan.size) for box, plan in zip(boxes, plans, strict=True))
    pixels = image.decode(reduction)
    is_whole = pixels.shape[:2] == image.size
    views = []
    for (group, size, generator), in_image in zip(plans, boxes, strict=True):
        box = in_image if is_whole else reduce_box(in_image, reduction)
        view = _resize(pixels, box, size) if group.crop_scale is None else cut(pixels, box, size)
        views.append(np.ascontiguousarray(_change(view, group, generator).transpose(2, 0, 1)))
    return views


def _change(view: Pixels, group: ViewGroup, generator: np.random.Generator) -> Pixels:
    """Mirror, RandAugment, colour, grey, blur, solarize, in the order of SimCLR and BYOL, each as often as the group says."""
    if generator.random() < group.flip:
        view = view[:, ::-1]
    if group.rand_augment:
        view = rand_augment(np.ascontiguousarray(view), group.rand_augment, group.rand_magnitude, generator)
    return change_colours(view, group, generator)


def change_colours(view: Pixels, group: ViewGroup, generator: np.random.Generator) -> Pixels:
    """Those of the group's changes that leave everything where it is."""
    if group.colour and generator.random() < group.colour:
        view = jitter_colour(view, group.jitter, generator)
    if group.grey and generator.random() < group.grey:
        view = remove_colour(view)
    if group.blur and generator.random() < group.blur:
        view = blur(view, generator)
    if group.solarize and generator.random() < group.solarize:
        view = solarize(view)
    return view


def evaluation_view(image: Picture, size: tuple[int, int]) -> View:
    """The middle of an image, as much as has the view's aspect, resized to (C, height, width)."""
    pixels, box = decode_for(image, find_middle(image.size, size), size)
    return np.ascontiguousarray(_resize(pixels, box, size).transpose(2, 0, 1))


def find_middle(image_size: tuple[int, ...], size: tuple[int, int]) -> Box:
    """The largest box in the middle of an image with the view's aspect."""
    image_height, image_width = image_size
    scale = min(image_height / size[0], image_width / size[1])
    height, width = min(size[0] * scale, image_height), min(size[1] * scale, image_width)
    return (image_height - height) / 2, (image_width - width) / 2, height, width


def cut(pixels: Pixels, box: Box, size: tuple[int, int]) -> ResizedPixels:
    """A box of an image, resized to (height, width, C). What lies outside the box does not count, not even at its edges.

    Whole pixels are resized by torch, several times faster than Pillow and never more than one level away from it.
    """
    top, left, height, width = box
    first_row, first_column = math.floor(top), math.floor(left)
    inside = pixels[first_row : math.ceil(top + height), first_column : math.ceil(left + width)]
    if inside.shape[:2] != (height, width):
        return _resize(inside, (top - first_row, left - first_column, height, width), size)
    batch = torch.from_numpy(np.array(inside)).unsqueeze(0).permute(0, 3, 1, 2)  # in this order torch sees channels last
    return interpolate(batch, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def find_reduction(box: Box, size: tuple[int, int]) -> int:
    """By how much the sides of an image may be divided for a box of it that becomes (height, width).

    As far as leaves OVERSAMPLING times the view's sides, so that resizing still has something to average.
    """
    fits = min(box[2] / size[0], box[3] / size[1]) / OVERSAMPLING
    return next((factor for factor in REDUCTIONS if factor <= fits), 1)


def decode_for(image: Picture, box: Box, size: tuple[int, int]) -> tuple[Pixels, Box]:
    """The pixels of an image, no finer than a box of it needs that becomes (height, width), and the box in them."""
    reduction = find_reduction(box, size)
    pixels = image.decode(reduction)
    return pixels, box if pixels.shape[:2] == image.size else reduce_box(box, reduction)


def reduce_box(box: Box, reduction: int) -> Box:
    """The box in an image whose sides were divided."""
    top, left, height, width = box
    return top / reduction, left / reduction, height / reduction, width / reduction


def draw_crop(
    image_size: tuple[int, ...], view_size: tuple[int, int], scale: tuple[float, float], generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width in pixels of a random crop.

    Its share of the area is uniform in scale and its aspect log-uniform in CROP_ASPECT times the view's. Draws that do
    not fit are repeated; after CROP_TRIES, the largest centre crop with an aspect in that range.
    """
    image_height, image_width = image_size
    view_aspect = view_size[1] / view_size[0]
    lowest, highest = CROP_ASPECT[0] * view_aspect, CROP_ASPECT[1] * view_aspect
    for _ in range(CROP_TRIES):
        area = image_height * image_width * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(lowest), math.log(highest)))
        height, width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < height <= image_height and 0 < width <= image_width:
            top, left = generator.integers(image_height - height + 1), generator.integers(image_width - width + 1)
            return int(top), int(left), height, width
    height = max(1, min(image_height, round(image_width / lowest)))
    width = max(1, min(image_width, round(image_height * highest)))
    return (image_height - height) // 2, (image_width - width) // 2, height, width


def _resize(image: Pixels, box: Box, size: tuple[int, int]) -> ResizedPixels:
    """A box of an image (H, W, C), resized to (height, width, C) by Pillow: a box may begin and end within a pixel."""
    top, left, height, width = box
    edges = (left, top, min(left + width, image.shape[1]), min(top + height, image.shape[0]))  # else rounding may go beyond
    size_wide_first = (size[1], size[0])
    if image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize(size_wide_first, Image.Resampling.BILINEAR, edges))
    bands = [  # one by one: Pillow weights colour by alpha, and a second or fourth channel need not be alpha
        Image.fromarray(image[:, :, channel]).resize(size_wide_first, Image.Resampling.BILINEAR, edges)
        for channel in range(image.shape[2])
    ]
    return np.stack([np.asarray(band) for band in bands], axis=2)
