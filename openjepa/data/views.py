"""Views: an image of any size, uint8 (H, W, C), cut and resized to the size that the encoder takes, uint8 (C, h, w).

Training: random resized crop as in GoogLeNet (Szegedy et al. 2014, arXiv 1409.4842, section 6) and torchvision, mirrored
at random; the stronger levels add colour changes. Evaluation: shorter side resized, centre cropped. Resizing is bilinear
with antialiasing, the default of torchvision and of the I-JEPA release. Deviation: a crop's aspect is drawn relative to
the view's, which changes nothing for square views (test_views pins both).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch.nn.functional import interpolate

from openjepa.data.colour import blur, jitter_colour, solarize
from openjepa.data.decode import DecodeError, Picture, Pixels
from openjepa.data.sources import ImageSource
from openjepa.recipe.sections import Data

View = UInt8[np.ndarray, "channels view_height view_width"]
Box = tuple[int | float, int | float, int | float, int | float]  # top, left, height and width in pixels
ResizedPixels = UInt8[np.ndarray, "view_height view_width channels"]

# Of ImageNet's training images, red, green and blue, in [0, 1] units; torchvision's documented values.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CROP_ASPECT = (3 / 4, 4 / 3)  # width / height before squashing; arXiv 1409.4842
CROP_TRIES = 10  # torchvision's
JITTER_PROBABILITY = 0.8  # SimCLR's (Chen et al. 2020, arXiv 2002.05709, appendix A), as is the blur's
BLUR_PROBABILITY = 0.5
SOLARIZE_PROBABILITY = 0.2  # BYOL's (Grill et al. 2020, arXiv 2006.07733, appendix B)
NORMALIZATION_IMAGES = 2000  # enough for a mean to two digits
LOWEST_STD = 1 / 255  # one grey level: constant images have a standard deviation of 0, and pixels are divided by it
MEASURED_SIDE_PX = 512
REDUCTIONS = (8, 4, 2)  # that a JPEG decodes to at less cost
OVERSAMPLING = 1.5  # docs/performance.md compares others: from here on the difference is below that of JPEG itself


def training_view(image: Picture, size: tuple[int, int], settings: Data, generator: np.random.Generator) -> View:
    """A random view (C, height, width) of an image; all randomness is the generator's.

    Levels: none is the evaluation view; minimal crops and mirrors; moderate adds colour jitter; strong adds blur and solarize.
    Raises DecodeError if the image cannot be read.
    """
    if settings.augmentation == "none":
        return evaluation_view(image, size)
    top, left, height, width = draw_crop(image.size, size, settings.crop_scale, generator)
    view = cut(image, (top, left, height, width), size)
    if generator.random() < settings.flip_probability:
        view = view[:, ::-1]
    if settings.augmentation != "minimal" and generator.random() < JITTER_PROBABILITY:
        view = jitter_colour(view, generator)
    if settings.augmentation == "strong":
        if generator.random() < BLUR_PROBABILITY:
            view = blur(view, generator)
        if generator.random() < SOLARIZE_PROBABILITY:
            view = solarize(view)
    return np.ascontiguousarray(view.transpose(2, 0, 1))


def evaluation_view(image: Picture, size: tuple[int, int]) -> View:
    """The middle of an image, as much as has the view's aspect, resized to (C, height, width)."""
    image_height, image_width = image.size
    scale = min(image_height / size[0], image_width / size[1])
    height, width = min(size[0] * scale, image_height), min(size[1] * scale, image_width)
    pixels, box = decode_for(image, ((image_height - height) / 2, (image_width - width) / 2, height, width), size)
    return np.ascontiguousarray(_resize(pixels, box, size).transpose(2, 0, 1))


def cut(image: Picture, box: Box, size: tuple[int, int]) -> ResizedPixels:
    """A box of an image, resized to (height, width, C). What lies outside the box does not count, not even at its edges.

    Whole pixels are resized by torch, several times faster than Pillow and never more than one level away from it.
    """
    pixels, (top, left, height, width) = decode_for(image, box, size)
    first_row, first_column = math.floor(top), math.floor(left)
    inside = pixels[first_row : math.ceil(top + height), first_column : math.ceil(left + width)]
    if inside.shape[:2] != (height, width):
        return _resize(inside, (top - first_row, left - first_column, height, width), size)
    batch = torch.from_numpy(np.array(inside)).unsqueeze(0).permute(0, 3, 1, 2)  # in this order torch sees channels last
    return interpolate(batch, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def decode_for(image: Picture, box: Box, size: tuple[int, int]) -> tuple[Pixels, Box]:
    """The pixels of an image, no finer than a box of it needs that becomes (height, width), and the box in them.

    Sides are reduced as far as leaves OVERSAMPLING times the view's, so that resizing still has something to average.
    """
    fits = min(box[2] / size[0], box[3] / size[1]) / OVERSAMPLING
    reduction = next((factor for factor in REDUCTIONS if factor <= fits), 1)
    pixels = image.decode(reduction)
    if pixels.shape[:2] == image.size:
        return pixels, box
    top, left, height, width = box
    return pixels, (top / reduction, left / reduction, height / reduction, width / reduction)


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


def find_normalization(settings: Data, source: ImageSource) -> tuple[list[float], list[float]]:
    """Channel mean and standard deviation of images in [0, 1]: ImageNet's, or measured on the source."""
    if settings.normalization == "measured":
        return measure_normalization(source, NORMALIZATION_IMAGES)
    if settings.channels == 3:
        return list(IMAGENET_MEAN), list(IMAGENET_STD)
    if settings.channels == 1:
        return [sum(IMAGENET_MEAN) / 3], [sum(IMAGENET_STD) / 3]
    raise ValueError(f"data.normalization imagenet has no statistics for {settings.channels} channels; use measured")


def measure_normalization(source: ImageSource, num_images: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel in [0, 1] units, over images spread evenly through the source.

    Every image weighs the same, whatever its size; of large ones only every so many-th pixel is looked at. The standard
    deviation is at least LOWEST_STD. Unreadable images are left out; DecodeError if there is no other.
    """
    means, squares = [], []
    for index in np.linspace(0, len(source) - 1, min(num_images, len(source))).round().astype(int):
        try:
            image = source.load(int(index))
        except DecodeError:
            continue  # training lists it in skipped.txt when it comes to it
        stride = max(1, min(image.shape[:2]) // MEASURED_SIDE_PX)
        pixels = image[::stride, ::stride].reshape(-1, image.shape[2]) / 255.0
        means.append(pixels.mean(axis=0))
        squares.append((pixels**2).mean(axis=0))
    if not means:
        raise DecodeError(source.spec, f"none of {min(num_images, len(source))} images can be read")
    mean = np.mean(means, axis=0)
    std = np.sqrt(np.maximum(np.mean(squares, axis=0) - mean**2, LOWEST_STD**2))
    return mean.tolist(), std.tolist()


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
