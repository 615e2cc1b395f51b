"""Usual corruptions of images at five severities: noise, blur, weather and digital ones, for any number of channels.

Source: Hendrycks and Dietterich 2019 (arXiv 1903.12261, section 3), whose idea and names these are. What is computed is ours,
so that sizes scale with the image and one draw serves all severities: scores do not compare with those on ImageNet-C. The
random numbers of an image are the same at every severity, so that noise only grows. Deviations: shot noise is the normal
approximation of Poisson's, whose distance to the clean image grows with severity on every image; blurs average the interpolated
image over a disc or a line, which works below a pixel; haze stands for fog. Left out: glass and zoom blur, snow, frost, elastic
distortions. All channels are treated alike. tests/laws/test_corruptions.py holds every row to growing distances.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

NUM_SEVERITIES = 5
CORRUPT = 16  # what a generator is for: the second number of its seed
BOX, SMOOTH, HARD = Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.NEAREST

Picture = Float[np.ndarray, "H W C"]  # in [0, 1]


class Corruption(NamedTuple):
    """A row of CORRUPTIONS. apply: (picture, level, generator) -> values that may leave [0, 1]; levels by severity."""

    apply: Callable[[Picture, float, np.random.Generator], Picture]
    levels: tuple[float, float, float, float, float]


def corrupt(pixels: UInt8[np.ndarray, "H W C"], name: str, severity: int, *, seed: int, image: int) -> UInt8[np.ndarray, "H W C"]:
    """The image number `image` under a corruption at a severity of 1 to NUM_SEVERITIES."""
    row = CORRUPTIONS[name]
    generator = np.random.default_rng([seed, CORRUPT, list(CORRUPTIONS).index(name), image])
    changed = row.apply(pixels.astype(np.float64) / 255, row.levels[severity - 1], generator)
    rounded: UInt8[np.ndarray, "H W C"] = np.rint(255 * changed.clip(0, 1)).astype(np.uint8)
    return rounded


def add_gaussian_noise(picture: Picture, level: float, generator: np.random.Generator) -> Picture:
    """level: the standard deviation."""
    noisy: Picture = picture + level * generator.standard_normal(picture.shape)
    return noisy


def add_shot_noise(picture: Picture, level: float, generator: np.random.Generator) -> Picture:
    """Of counted photons; level: the standard deviation at white."""
    noisy: Picture = picture + level * np.sqrt(picture) * generator.standard_normal(picture.shape)
    return noisy


def add_impulse_noise(picture: Picture, level: float, generator: np.random.Generator) -> Picture:
    """Salt and pepper; level: the share of values that become white or black."""
    is_hit, is_white = generator.random(picture.shape) < level, generator.random(picture.shape) < 0.5
    return np.where(is_hit, is_white.astype(np.float64), picture)


def blur_defocus(picture: Picture, level: float, _: np.random.Generator) -> Picture:
    """Averaged over a disc; level: its radius as a share of the shorter side."""
    radius = level * min(picture.shape[:2])
    line = np.linspace(-1, 1, 33)
    points = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    return _average_over(picture, radius * points[(points**2).sum(1) <= 1])


def blur_motion(picture: Picture, level: float, generator: np.random.Generator) -> Picture:
    """Averaged along a line in a random direction; level: its length as a share of the shorter side."""
    angle = generator.uniform(0, np.pi)
    steps = level * min(picture.shape[:2]) * np.linspace(-0.5, 0.5, 129)
    return _average_over(picture, steps[:, None] * np.array([np.sin(angle), np.cos(angle)]))


def add_haze(picture: Picture, level: float, generator: np.random.Generator) -> Picture:
    """Mixed with bright, uneven grey, half of whose unevenness is coarse, a quarter half as coarse ...; level: its share."""
    height, width = picture.shape[:2]
    grey = np.zeros((height, width))
    for octave in range(1, 6):
        coarse = generator.random((2**octave, 2**octave)).astype(np.float32)
        grey += np.asarray(Image.fromarray(coarse).resize((width, height), SMOOTH), np.float64) / 2**octave
    bright = 0.6 + 0.4 * grey.clip(0, 1)
    return (1 - level) * picture + level * bright[:, :, None]


def brighten(picture: Picture, level: float, _: np.random.Generator) -> Picture:
    """level: what is added."""
    return picture + level


def reduce_contrast(picture: Picture, level: float, _: np.random.Generator) -> Picture:
    """level: the share of the differences from each channel's mean that is lost."""
    mean = picture.mean((0, 1))
    flatter: Picture = mean + (1 - level) * (picture - mean)
    return flatter


def pixelate(picture: Picture, level: float, _: np.random.Generator) -> Picture:
    """Cells of one colour; level: by how many per cent of the shorter side a cell is larger than a pixel."""
    height, width = picture.shape[:2]
    cell = 1 + level * min(height, width) / 100
    small = (max(round(width / cell), 1), max(round(height / cell), 1))
    bands = [
        np.asarray(Image.fromarray(band.astype(np.float32)).resize(small, BOX).resize((width, height), HARD), np.float64)
        for band in picture.transpose(2, 0, 1)
    ]
    return np.stack(bands, axis=2)


def compress_jpeg(picture: Picture, level: float, _: np.random.Generator) -> Picture:
    """level: the JPEG quality. Three channels are coded as colour, any other number each by itself as grey."""
    pixels = np.rint(255 * picture).astype(np.uint8)
    parts = [pixels] if pixels.shape[2] == 3 else [pixels[:, :, channel] for channel in range(pixels.shape[2])]
    decoded = []
    for part in parts:
        file = io.BytesIO()
        Image.fromarray(part).save(file, "JPEG", quality=int(level))
        with Image.open(file) as image:
            decoded.append(np.asarray(image).reshape(*picture.shape[:2], -1))
    return np.concatenate(decoded, axis=2) / 255


def _average_over(picture: Picture, points: Float[np.ndarray, "points 2"]) -> Picture:
    """The mean of the bilinearly interpolated picture over points (y, x) around every pixel; edges are mirrored."""
    from scipy.signal import fftconvolve  # here: importing it takes long, which every command would pay

    reach = int(np.ceil(np.abs(points).max()))
    place = np.arange(-reach, reach + 1)
    rows, columns = (np.maximum(0, 1 - np.abs(points[:, None, axis] - place)) for axis in (0, 1))
    kernel = rows.T @ columns / len(points)
    padded = np.pad(picture, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    blurred: Picture = fftconvolve(padded, kernel[::-1, ::-1, None], mode="valid", axes=(0, 1))
    return blurred


CORRUPTIONS = {
    "gaussian_noise": Corruption(add_gaussian_noise, (0.04, 0.08, 0.12, 0.18, 0.26)),
    "shot_noise": Corruption(add_shot_noise, (0.06, 0.12, 0.2, 0.3, 0.45)),
    "impulse_noise": Corruption(add_impulse_noise, (0.01, 0.03, 0.06, 0.12, 0.2)),
    "defocus_blur": Corruption(blur_defocus, (0.01, 0.02, 0.03, 0.045, 0.06)),
    "motion_blur": Corruption(blur_motion, (0.03, 0.06, 0.1, 0.15, 0.2)),
    "haze": Corruption(add_haze, (0.15, 0.3, 0.45, 0.6, 0.7)),
    "brightness": Corruption(brighten, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption(reduce_contrast, (0.3, 0.5, 0.65, 0.8, 0.9)),
    "pixelate": Corruption(pixelate, (1.0, 2.0, 3.5, 5.0, 7.5)),
    "jpeg": Corruption(compress_jpeg, (40.0, 20.0, 12.0, 7.0, 3.0)),
}
