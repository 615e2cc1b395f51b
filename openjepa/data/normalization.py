"""Channel mean and standard deviation, by which images are normalised: ImageNet's, or measured on the training images."""

from __future__ import annotations

import numpy as np

from openjepa.data.errors import DecodeError, none_readable
from openjepa.data.sources import ImageSource
from openjepa.recipe.sections import Data

# Of ImageNet's training images, red, green and blue, in [0, 1] units; torchvision's documented values.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

NORMALIZATION_IMAGES = 2000  # enough for a mean to two digits
LOWEST_STD = 1 / 255  # one grey level: constant images have a standard deviation of 0, and pixels are divided by it
MEASURED_SIDE_PX = 512


def find_normalization(settings: Data, source: ImageSource) -> tuple[list[float], list[float]]:
    """Channel mean and standard deviation of images in [0, 1]: ImageNet's, or measured on the source."""
    if settings.normalization == "measured":
        return measure_normalization(source, NORMALIZATION_IMAGES)
    if settings.normalization == "init":
        raise ValueError(
            "data.normalization init takes the statistics of the weights that --init names: name some, or use measured"
        )
    if settings.channels == 3:
        return list(IMAGENET_MEAN), list(IMAGENET_STD)
    if settings.channels == 1:
        return [sum(IMAGENET_MEAN) / 3], [sum(IMAGENET_STD) / 3]
    raise ValueError(f"data.normalization imagenet has no statistics for {settings.channels} channels; use measured")


def measure_normalization(source: ImageSource, num_images: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel in [0, 1] units, over images spread evenly through the source.

    Every image weighs the same, whatever its size; large ones are read with a stride. The standard
    deviation is at least LOWEST_STD. Unreadable images are left out; DecodeError if none can be read.
    """
    means, squares, skipped = [], [], list[tuple[str, str]]()
    for index in np.linspace(0, len(source) - 1, min(num_images, len(source))).round().astype(int):
        try:
            image = source.load(int(index))
        except DecodeError as error:
            skipped.append((source.path(int(index)), error.reason))  # training lists it in skipped.txt when it comes to it
            continue
        stride = max(1, min(image.shape[:2]) // MEASURED_SIDE_PX)
        pixels = image[::stride, ::stride].reshape(-1, image.shape[2]) / 255.0
        means.append(pixels.mean(axis=0))
        squares.append((pixels**2).mean(axis=0))
    if not means:
        raise none_readable(source.spec, skipped)
    mean = np.mean(means, axis=0)
    std = np.sqrt(np.maximum(np.mean(squares, axis=0) - mean**2, LOWEST_STD**2))
    return mean.tolist(), std.tolist()
