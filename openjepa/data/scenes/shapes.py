"""Twelve shapes that a scene is made of, as parts: each a polygon that is filled, or a hole.

Classes differ in outline, parts and holes alone, and each shape varies within its class: points, teeth, thickness, proportions.
Every one looks the same to a person after rotation and mirroring. Coordinates: x right, y down, most points within the unit
circle; size, place and rotation are the scene's business (openjepa/data/scenes/scene.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Points = Float[np.ndarray, "points 2"]

TURN = 2 * np.pi
CURVE_POINTS = 40  # of an ellipse; its polygon lies within 0.3 % of its radius


class Part(NamedTuple):
    """A polygon that is filled, or, as a hole, emptied; later parts are drawn over earlier ones."""

    outline: Points
    is_hole: bool = False


Shape = list[Part]


def arrow(draw: np.random.Generator) -> Shape:
    """A shaft and a triangular head."""
    shaft, head, neck = draw.uniform(0.15, 0.24), draw.uniform(0.55, 0.7), draw.uniform(0.1, 0.35)
    outline = [(-0.9, -shaft), (neck, -shaft), (neck, -head), (0.9, 0), (neck, head), (neck, shaft), (-0.9, shaft)]
    return [Part(np.array(outline))]


def bag(draw: np.random.Generator) -> Shape:
    """A body, wider at the bottom, under a handle that one can look through."""
    top, bottom, handle = draw.uniform(0.5, 0.62), draw.uniform(0.68, 0.8), draw.uniform(0.34, 0.42)
    return [
        Part(_ellipse(0.0, -0.35, handle, 0.5)),
        Part(_ellipse(0.0, -0.35, handle - 0.14, 0.34), is_hole=True),
        Part(np.array([(-top, -0.38), (top, -0.38), (bottom, 0.62), (-bottom, 0.62)])),
    ]


def butterfly(draw: np.random.Generator) -> Shape:
    """Two large and two small wings about a thin body."""
    tilt, upper, lower = draw.uniform(0.3, 0.6), draw.uniform(0.42, 0.52), draw.uniform(0.28, 0.36)
    parts = [Part(_ellipse(0.0, 0.05, 0.09, 0.6))]
    for side in (-1, 1):
        wing = _rotate(_ellipse(0.0, 0.0, upper, 0.68 * upper), -side * tilt)
        parts += [Part(wing + np.array([side * 0.5, -0.3])), Part(_ellipse(side * 0.38, 0.36, lower, 0.9 * lower))]
    return parts


def comb(draw: np.random.Generator) -> Shape:
    """A bar with three or four long teeth, like the letter E."""
    teeth, bar = draw.integers(3, 5), draw.uniform(0.3, 0.45)
    pitch = 1.7 / (teeth - 0.5)  # teeth as wide as the gaps between them
    starts = -0.85 + pitch * np.arange(teeth)
    return [Part(_box(-0.85, -0.65, 0.85, -0.65 + bar)), *(Part(_box(x, -0.65, x + pitch / 2, 0.65)) for x in starts)]


def crescent(draw: np.random.Generator) -> Shape:
    """A disc from which another one has bitten."""
    radius = draw.uniform(0.74, 0.84)
    return [Part(_ellipse(0.0, 0.0, 1.0, 1.0)), Part(_ellipse(draw.uniform(0.42, 0.52), 0.0, radius, radius), is_hole=True)]


def cross(draw: np.random.Generator) -> Shape:
    """Two bars of equal length at right angles."""
    half = draw.uniform(0.2, 0.33)
    return [Part(_box(-1.0, -half, 1.0, half)), Part(_box(-half, -1.0, half, 1.0))]


def fish(draw: np.random.Generator) -> Shape:
    """A long body, a forked tail, a fin on the back, an eye."""
    height, tail = draw.uniform(0.36, 0.46), draw.uniform(0.38, 0.5)
    fork, fin = draw.uniform(0.72, 0.82), draw.uniform(0.15, 0.3)
    return [
        Part(_ellipse(-0.2, 0.0, 0.75, height)),
        Part(np.array([(0.35, 0), (1, -tail), (fork, 0), (1, tail)])),
        Part(np.array([(-0.4, -0.8 * height), (0.1, -height - fin), (0.25, -0.7 * height)])),
        Part(_ellipse(-0.62, -0.1, 0.09, 0.09), is_hole=True),
    ]


def gear(draw: np.random.Generator) -> Shape:
    """Seven to ten square teeth around a disc with a hole."""
    teeth, root, hole = draw.integers(7, 11), draw.uniform(0.7, 0.78), draw.uniform(0.25, 0.38)
    angles = TURN / teeth * (np.arange(teeth)[:, None] + [0.0, 0.1, 0.45, 0.55]).ravel()
    return [Part(_polar(np.tile([root, 1, 1, root], teeth), angles)), Part(_ellipse(0.0, 0.0, hole, hole), is_hole=True)]


def heart(draw: np.random.Generator) -> Shape:
    """Two lobes and a tip."""
    angle = TURN * np.arange(CURVE_POINTS) / CURVE_POINTS
    across = 16 * np.sin(angle) ** 3
    down = -13 * np.cos(angle) + 5 * np.cos(2 * angle) + 2 * np.cos(3 * angle) + np.cos(4 * angle)
    return [Part(np.stack([across, draw.uniform(0.9, 1.1) * down], axis=1) / 17)]


def key(draw: np.random.Generator) -> Shape:
    """A ring, a shaft, and two teeth at its end."""
    bow, hole = draw.uniform(0.42, 0.5), draw.uniform(0.17, 0.24)
    shaft, teeth = draw.uniform(0.11, 0.15), draw.uniform(0.3, 0.42)
    return [
        Part(_box(-0.5, -shaft, 1.0, shaft)),
        Part(_box(0.4, 0.0, 0.58, teeth)),
        Part(_box(0.8, 0.0, 1.0, teeth)),
        Part(_ellipse(-0.5, 0.0, bow, bow)),
        Part(_ellipse(-0.5, 0.0, hole, hole), is_hole=True),
    ]


def ring(draw: np.random.Generator) -> Shape:
    """A disc with a large round hole."""
    hole = draw.uniform(0.5, 0.68)
    return [Part(_ellipse(0.0, 0.0, 1.0, 1.0)), Part(_ellipse(0.0, 0.0, hole, hole), is_hole=True)]


def star(draw: np.random.Generator) -> Shape:
    """Five to seven points."""
    points, inner = draw.integers(5, 8), draw.uniform(0.4, 0.52)
    return [Part(_polar(np.tile([1, inner], points), TURN * np.arange(2 * points) / (2 * points)))]


# Name -> shape, in alphabetical order: the number of a class is its place here.
SHAPES: dict[str, Callable[[np.random.Generator], Shape]] = {
    "arrow": arrow, "bag": bag, "butterfly": butterfly, "comb": comb, "crescent": crescent, "cross": cross,
    "fish": fish, "gear": gear, "heart": heart, "key": key, "ring": ring, "star": star,
}  # fmt: skip


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)


def _ellipse(x: float, y: float, across: float, down: float) -> Points:
    """The ellipse about (x, y) with these half axes."""
    angle = TURN * np.arange(CURVE_POINTS) / CURVE_POINTS
    return np.stack([x + across * np.cos(angle), y + down * np.sin(angle)], axis=1)


def _polar(radius: Float[np.ndarray, " points"], angle: Float[np.ndarray, " points"]) -> Points:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _rotate(points: Points, angle: float) -> Points:
    turned: Points = points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return turned
