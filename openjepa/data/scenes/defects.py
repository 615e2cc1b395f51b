"""Scenes with a defect: one part of one object missing, of another colour, or in place of it the part of another shape.

The part is what lies of the object within a disc about one of its seen pixels, drawn uniformly over all pixels of objects, so
that larger objects have a defect more often. Missing: what lies behind is seen. Recoloured: the pattern stays, the colours move.
Replaced: within the disc the object has the outline of another class, of the same area and at the same place. All else is drawn
as without the defect, but for shadow and lit edge of the new outline. Everything is a function of (seed, split, index). Left
out: defects of the background, and several in one scene.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from openjepa.data.scenes.scene import CLASSES, SPLITS, Placed, Tint, draw_shape, find_owners, lay_out, paint

KINDS = ("missing", "recoloured", "replaced")
PART = (0.15, 0.35)  # of what is seen of the object
LEAST_OBJECT, LEAST_IMAGE = 0.08, 0.005  # share of the object, and of the image, that must change
TRIES = 100
GRID = 128  # pixels a side of the grid on which parts are tried

DEFECT = 2  # what a generator is for: the last number of its seed


@dataclass(frozen=True)
class DefectScene:
    """A scene with a defect."""

    pixels: UInt8[np.ndarray, "size size 3"] = field(repr=False)
    changed: UInt8[np.ndarray, "size size"] = field(repr=False)  # 1 + number of the kind where the object differs; else 0
    kind: str
    class_number: int  # of the object


class Plan(NamedTuple):
    """What is done to an object. Lengths in image widths."""

    kind: str
    number: int  # of the object, from the back
    centre: tuple[float, float]  # x, y
    radius: float
    other: Placed | None  # whose outline replaces the object's

    def region(self, size: int) -> Float[np.ndarray, "size size"]:
        """The share of each pixel within the disc."""
        steps = (np.arange(size, dtype=np.float32) + 0.5) / size
        distance = np.hypot(steps[None, :] - self.centre[0], steps[:, None] - self.centre[1])
        share: Float[np.ndarray, "size size"] = ((self.radius - distance) * size + 0.5).clip(0, 1).astype(np.float32)
        return share

    def cover(self, stack: list[Placed], size: int) -> list[UInt8[np.ndarray, "size size"]]:
        """How much of each pixel the objects cover."""
        covers = [placed.cover(size) for placed in stack]
        if self.kind != "recoloured":
            whole = covers[self.number].astype(np.float32)
            other = 0 if self.other is None else self.other.cover(size)
            covers[self.number] = np.rint(whole + self.region(size) * (other - whole)).astype(np.uint8)
        return covers

    def find_changed(self, stack: list[Placed], size: int) -> UInt8[np.ndarray, "size size"]:
        """1 + the number of the kind where the object differs from what it was."""
        before = find_owners([placed.cover(size) for placed in stack])
        if self.kind == "recoloured":
            changed = (before == 1 + self.number) & (self.region(size) >= 0.5)
        else:
            changed = before != find_owners(self.cover(stack, size))
        marked: UInt8[np.ndarray, "size size"] = changed * np.uint8(1 + KINDS.index(self.kind))
        return marked


def has_defect(seed: int, split: str, index: int, share: float) -> bool:
    """Whether this scene is one of the share with a defect: one that a smaller share has, a larger one has too."""
    return bool(_start(seed, split, index)[1] < share)


def render_defect(seed: int, split: str, index: int, size: int) -> DefectScene:
    """The scene with this number and a defect at size x size pixels."""
    draw, _ = _start(seed, split, index)
    painter, stack = lay_out(seed, split, index)
    plan = plan_defect(draw, stack)
    tint = Tint(plan.number, plan.region(size), draw) if plan.kind == "recoloured" else None
    pixels = paint(painter, plan.cover(stack, size), size, tint)
    return DefectScene(pixels, plan.find_changed(stack, size), plan.kind, stack[plan.number].class_number)


def plan_defect(draw: np.random.Generator, stack: list[Placed]) -> Plan:
    """A kind, an object and a part of it: the first of TRIES that changes enough, or the one that changes most."""
    kind = KINDS[draw.integers(len(KINDS))]
    owners = find_owners([placed.cover(GRID) for placed in stack])
    tried = []
    for _ in range(TRIES):
        plan = _draw_plan(draw, kind, stack, owners)
        changed = np.count_nonzero(plan.find_changed(stack, GRID))
        least = max(LEAST_OBJECT * np.count_nonzero(owners == 1 + plan.number), LEAST_IMAGE * GRID**2)
        if changed >= least:
            return plan
        tried.append((changed, plan))
    return max(tried, key=lambda pair: pair[0])[1]


def _draw_plan(draw: np.random.Generator, kind: str, stack: list[Placed], owners: UInt8[np.ndarray, "grid grid"]) -> Plan:
    rows, columns = np.nonzero(owners)
    place = draw.integers(len(rows))
    number = int(owners[rows[place], columns[place]]) - 1
    of_object = owners[rows, columns] == 1 + number
    distance = np.hypot(rows[of_object] - rows[place], columns[of_object] - columns[place])
    radius = float(np.quantile(distance, draw.uniform(*PART))) / GRID
    other = None
    if kind == "replaced":
        old = stack[number]
        new_class = (old.class_number + int(draw.integers(1, len(CLASSES)))) % len(CLASSES)
        other = Placed(draw_shape(draw, new_class), new_class, old.position, old.area, old.least_visible)
    return Plan(kind, number, ((columns[place] + 0.5) / GRID, (rows[place] + 0.5) / GRID), radius, other)


def _start(seed: int, split: str, index: int) -> tuple[np.random.Generator, float]:
    """The generator of a scene's defect, and its first draw, which says whether there is one."""
    draw = np.random.default_rng([seed, SPLITS.index(split), index, DEFECT])
    return draw, float(draw.random())
