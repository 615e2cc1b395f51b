"""What the surfaces of a scene look like: two colours and a pattern that mixes them, drawn alike for backgrounds and objects.

Colours are chosen and mixed in Oklab (B. Ottosson 2020, "A perceptual color space for image processing"), where distances are
about what a person sees: so surfaces that meet can be told apart by a stated contrast, whatever their hues. Lightness is 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

Oklab = Float[np.ndarray, "*pixels 3"]
Field = Float[np.ndarray, "size size"]

LIGHTNESS = (0.32, 0.92)
MOST_CHROMA = 0.17
WITHIN = (0.05, 0.2)  # Oklab distance of the two colours of one surface
CONTRAST = 0.27  # Oklab distance of an object's mean colour from its background's
OCTAVES = 4  # of noise: cells of a third of the image, a sixth, ...

_TO_CONE = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]], np.float32
)
_TO_LINEAR = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ],
    np.float32,
)


class Surface(NamedTuple):
    """One surface all over the image."""

    base: Float[np.ndarray, " 3"]  # the colour about which its pixels lie
    pixels: Float[np.ndarray, "size size 3"]  # Oklab


def draw_surface(draw: np.random.Generator, size: int, avoided: list[Float[np.ndarray, " 3"]]) -> Surface:
    """A pattern of two colours whose mean is at least CONTRAST from those avoided, or the farthest of 30 if none is."""
    base = draw_base(draw, avoided)
    step = draw.normal(size=3) * [1.0, 0.5, 0.5]  # mostly lightness
    step *= draw.uniform(*WITHIN) / np.linalg.norm(step)
    names = list(PATTERNS)
    pattern = PATTERNS[names[draw.integers(len(names))]](draw, *_turned_coordinates(draw, size))
    return Surface(base, (base + (pattern[:, :, None] - 0.5) * step).astype(np.float32))


def draw_base(draw: np.random.Generator, avoided: list[Float[np.ndarray, " 3"]]) -> Float[np.ndarray, " 3"]:
    """A colour at least CONTRAST from those avoided, or the farthest of 30 if none is."""
    candidates = [_draw_colour(draw) for _ in range(30)]
    distances = [min((float(np.linalg.norm(colour - other)) for other in avoided), default=np.inf) for colour in candidates]
    far = [number for number, distance in enumerate(distances) if distance >= CONTRAST]
    return candidates[far[0] if far else int(np.argmax(distances))]


def to_srgb(colours: Oklab) -> UInt8[np.ndarray, "*pixels 3"]:
    """Oklab to 8-bit sRGB; what no screen can show is clipped."""
    linear = ((colours.astype(np.float32) @ _TO_CONE.T) ** 3 @ _TO_LINEAR.T).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    rounded: UInt8[np.ndarray, "*pixels 3"] = np.rint(255 * srgb).astype(np.uint8)
    return rounded


# A pattern is a function of coordinates in image widths, turned and moved by chance, to shares in [0, 1] of the second colour.


def plain(draw: np.random.Generator, x: Field, y: Field) -> Field:
    """A ramp over the whole image."""
    return (x / 1.5 + 0.5).clip(0, 1)


def stripes(draw: np.random.Generator, x: Field, y: Field) -> Field:
    """Soft or hard stripes."""
    return _wave(x, draw.uniform(0.08, 0.3), draw.uniform(0.5, 3))


def checks(draw: np.random.Generator, x: Field, y: Field) -> Field:
    """Squares or diamonds of alternating colour."""
    period, hardness = draw.uniform(0.12, 0.35), draw.uniform(1, 3)
    product: Field = (_wave(x, period, 0.5) - 0.5) * (_wave(y, period, 0.5) - 0.5)
    return (0.5 + 2 * hardness * product).clip(0, 1)


def dots(draw: np.random.Generator, x: Field, y: Field) -> Field:
    """Round spots on a grid."""
    period = draw.uniform(0.12, 0.3)
    spots: Field = 4 * (_wave(x, period, 0.5) + _wave(y, period, 0.5) - draw.uniform(1.1, 1.5))
    return spots.clip(0, 1)


def noise(draw: np.random.Generator, x: Field, y: Field) -> Field:
    """Clouds: random grids of ever finer cells and ever smaller weight, smoothly enlarged and summed."""
    size, decay = len(x), draw.uniform(0.45, 0.9)
    total = np.zeros((size, size), np.float32)
    for octave in range(OCTAVES):
        cells = draw.random((3 * 2**octave + 1,) * 2, np.float32)
        enlarged = Image.fromarray(cells).resize((size, size), Image.Resampling.BICUBIC)
        total += decay**octave * np.asarray(enlarged)
    low, high = float(total.min()), float(total.max())
    shares: Field = (total - low) / (high - low)
    return shares


PATTERNS: dict[str, Callable[[np.random.Generator, Field, Field], Field]] = {
    "plain": plain, "stripes": stripes, "checks": checks, "dots": dots, "noise": noise,
}  # fmt: skip


def _draw_colour(draw: np.random.Generator) -> Float[np.ndarray, " 3"]:
    hue, chroma = draw.uniform(0, 2 * np.pi), MOST_CHROMA * np.sqrt(draw.random())
    return np.array([draw.uniform(*LIGHTNESS), chroma * np.cos(hue), chroma * np.sin(hue)])


def _wave(position: Field, period: float, hardness: float) -> Field:
    """A sine in [0, 1], cut off at both ends if hardness is above 0.5."""
    return (0.5 + hardness * np.sin(position * np.float32(2 * np.pi / period))).clip(0, 1)


def _turned_coordinates(draw: np.random.Generator, size: int) -> tuple[Field, Field]:
    """Coordinates of the pixels' centres about a random point near the middle, in image widths, turned by a random angle."""
    x, y = _coordinates(size)
    angle, (right, down) = draw.uniform(0, 2 * np.pi), draw.uniform(-0.2, 0.2, 2)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y = x - np.float32(right), y - np.float32(down)
    return cosine * x + sine * y, cosine * y - sine * x


@cache
def _coordinates(size: int) -> tuple[Field, Field]:
    steps = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    x, y = np.meshgrid(steps, steps)
    return x, y
