"""One scene: one large and up to three smaller objects on a background, as pixels, and as a map that says whose each pixel is.

The class is in the shape alone. Colour, pattern, place, size, rotation, mirroring, depth and light are drawn without looking at
it, and size means filled area, so neither a mean colour nor a count of pixels tells a class: a data set on which features have to
be learned. Everything is a function of (seed, split, index). Left out: perspective, transparency and any meaning of the
background.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFilter

from openjepa.data.scenes.shapes import SHAPES, Part, Shape
from openjepa.data.scenes.surfaces import draw_base, draw_surface, to_srgb

SPLITS = ("train", "test")
CLASSES = list(SHAPES)

MAIN_AREA = (0.14, 0.26)  # share of the image that the largest object would fill if nothing hid it
OTHER_AREA = (0.1, 0.35)  # of the smaller ones, as a share of the largest one's
MAIN_VISIBLE, OTHER_VISIBLE = 0.85, 0.5  # least share of an object that is seen; so the largest is seen to be 2.4 times the next
MOST_OTHERS = 3
MOST_TURN = 0.6  # radians to either side: things stand or lie on a ground, more or less
TRIES, MAIN_TRIES = 20, 1000  # places tried; the largest object finds one in two or three
GRID = 32  # pixels a side of the grid on which places are tried
OVERSAMPLING = 4  # a side, for smooth edges

# What a generator is for: the last number of its seed. defects.py has 2.
SCENE, ORDER = 0, 1


@dataclass(frozen=True)
class Scene:
    """A rendered scene. Objects are numbered from 1, the largest first."""

    pixels: UInt8[np.ndarray, "size size 3"] = field(repr=False)
    owners: UInt8[np.ndarray, "size size"] = field(repr=False)  # number of the object seen at each pixel; 0 is background
    classes: list[int]  # class number of each object

    @property
    def label(self) -> int:
        """Class number of the largest object."""
        return self.classes[0]


@dataclass(frozen=True)
class Placed:
    """An object at its place. Position in image widths, area as a share of the image, both of the whole object."""

    shape: Shape  # centre of mass 0, area 1
    class_number: int
    position: tuple[float, float]  # x, y
    area: float
    least_visible: float  # share of the area

    def cover(self, size: int) -> UInt8[np.ndarray, "size size"]:
        """How much of each pixel it covers, 0 to 255."""
        fine = OVERSAMPLING * size
        centre = (self.position[0] * fine, self.position[1] * fine)
        return np.asarray(Image.fromarray(rasterise(self.shape, fine, fine * np.sqrt(self.area), centre)).reduce(OVERSAMPLING))


class Tint(NamedTuple):
    """A part of an object that gets another colour, far from the object's own and from the background's."""

    number: int  # of the object, from the back
    region: Float[np.ndarray, "size size"]  # share of each pixel
    draw: np.random.Generator


def render_scene(seed: int, split: str, index: int, size: int) -> Scene:
    """The scene with this number at size x size pixels; another size shows the same scene, sharper or coarser."""
    draw, stack = lay_out(seed, split, index)
    covers = [placed.cover(size) for placed in stack]
    by_area = sorted(range(len(stack)), key=lambda number: -stack[number].area)
    numbers = np.array([0, *(1 + by_area.index(number) for number in range(len(stack)))], np.uint8)
    owners: UInt8[np.ndarray, "size size"] = numbers[find_owners(covers)]
    return Scene(paint(draw, covers, size), owners, [stack[number].class_number for number in by_area])


def lay_out(seed: int, split: str, index: int) -> tuple[np.random.Generator, list[Placed]]:
    """The objects of the scene with this number from back to front, and the generator that goes on to paint it."""
    draw = np.random.default_rng([seed, SPLITS.index(split), index, SCENE])
    return draw, arrange(draw, choose_class(seed, split, index))


def find_owners(covers: list[UInt8[np.ndarray, "size size"]]) -> UInt8[np.ndarray, "size size"]:
    """Which object is seen at each pixel, counted from 1 at the back; 0 is background."""
    owners = np.zeros_like(covers[0])
    for number, cover in enumerate(covers, start=1):
        owners[cover >= 128] = number
    return owners


def choose_class(seed: int, split: str, index: int) -> int:
    """Class number of a scene's largest object: every run of len(CLASSES) scenes has each class once, in random order."""
    block, place = divmod(index, len(CLASSES))
    return int(np.random.default_rng([seed, SPLITS.index(split), block, ORDER]).permutation(len(CLASSES))[place])


def arrange(draw: np.random.Generator, main_class: int) -> list[Placed]:
    """The objects of a scene from back to front: a large one, then smaller ones, each where enough of all is seen.

    Tested on a coarse grid, whatever the size of the image. A smaller one that finds no place in TRIES is left out.
    """
    main_area = draw.uniform(*MAIN_AREA)
    stack: list[Placed] = []
    for number in range(1 + draw.integers(MOST_OTHERS + 1)):
        is_main = number == 0
        class_number = main_class if is_main else int(draw.integers(len(CLASSES)))
        area = main_area if is_main else main_area * draw.uniform(*OTHER_AREA)
        shape, depth = draw_shape(draw, class_number), draw.integers(number + 1)
        for _ in range(MAIN_TRIES if is_main else TRIES):
            x, y = draw.uniform(0, 1, 2)
            placed = Placed(shape, class_number, (x, y), area, MAIN_VISIBLE if is_main else OTHER_VISIBLE)
            candidate = [*stack[:depth], placed, *stack[depth:]]
            if all_seen(candidate):
                stack = candidate
                break
        assert stack, f"a {CLASSES[main_class]} of area {main_area:.2f} finds no place"
    return stack


def draw_shape(draw: np.random.Generator, class_number: int) -> Shape:
    """A shape of the class, stretched, sheared, mirrored and turned, with its centre of mass at 0 and area 1."""
    stretch, shear, angle = np.exp(draw.uniform(-0.12, 0.12)), draw.uniform(-0.15, 0.15), draw.uniform(-MOST_TURN, MOST_TURN)
    mirror = draw.choice([-1.0, 1.0])
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = np.array([[cosine, -sine], [sine, cosine]]) @ np.array([[mirror * stretch, shear], [0, 1 / stretch]])
    shape = [Part(part.outline @ matrix.T, part.is_hole) for part in SHAPES[CLASSES[class_number]](draw)]
    return standardise(shape)


def standardise(shape: Shape) -> Shape:
    """The shape moved and scaled to centre 0 and area 1, both measured on a grid of 512 x 512 over -1.5 to 1.5.

    Pillow fills half a cell too much along every edge; on a grid of 128 that made combs 4 % smaller than rings.
    """
    cells, reach = 512, 1.5
    unit = cells / (2 * reach)
    filled = rasterise(shape, cells, unit, (cells / 2, cells / 2)) // 255
    columns, rows = filled.sum(0), filled.sum(1)
    places = (np.arange(cells) + 0.5 - cells / 2) / unit
    area = int(columns.sum())
    centre = np.array([places @ columns, places @ rows]) / area
    scale = unit / np.sqrt(area)
    return [Part((part.outline - centre) * scale, part.is_hole) for part in shape]


def rasterise(shape: Shape, size: int, unit: float, centre: tuple[float, float]) -> UInt8[np.ndarray, "size size"]:
    """The shape drawn with 255 on 0, `unit` pixels to 1, its origin at centre (x, y) in pixels."""
    image = Image.new("L", (size, size))
    pencil = ImageDraw.Draw(image)
    for part in shape:
        corners = part.outline * unit + centre - 0.5  # Pillow's whole numbers are the centres of pixels
        pencil.polygon(corners.ravel().tolist(), fill=0 if part.is_hole else 255)
    return np.asarray(image)


def all_seen(stack: list[Placed]) -> bool:
    """Whether enough of every object is seen, on the coarse grid."""
    hidden = np.zeros((GRID, GRID), bool)
    for placed in reversed(stack):
        mask = placed.cover(GRID) >= 128
        if np.count_nonzero(mask & ~hidden) < placed.least_visible * placed.area * GRID**2:
            return False
        hidden |= mask
    return True


def paint(
    draw: np.random.Generator, covers: list[UInt8[np.ndarray, "size size"]], size: int, tint: Tint | None = None
) -> UInt8[np.ndarray, "size size 3"]:
    """Background, then from back to front every object with its shadow and lit edges, in Oklab; then a light over all.

    tint: a part of an object in another colour, which changes no other draw.
    """
    background = draw_surface(draw, size, [])
    canvas = background.pixels.copy()
    angle = draw.uniform(0, 2 * np.pi)
    light = np.array([np.cos(angle), np.sin(angle)], np.float32)  # x and y of where it comes from
    relief, shade = draw.uniform(0.1, 0.3), draw.uniform(0.05, 0.2)
    for number, cover in enumerate(covers):
        surface = draw_surface(draw, size, [background.base])
        if tint is not None and number == tint.number:
            base = draw_base(tint.draw, [surface.base, background.base])
            surface.pixels[...] += tint.region[:, :, None] * (base - surface.base).astype(np.float32)
        canvas[:, :, 0] -= shade * blur(shift(cover, -light * size / 32), size / 40)
        down, right = np.gradient(blur(cover, size / 64))
        lit = surface.pixels.copy()
        lit[:, :, 0] -= relief * (size / 64) * (light[0] * right + light[1] * down)
        canvas += (cover[:, :, None] / np.float32(255)) * (lit - canvas)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    canvas[:, :, 0] += draw.uniform(0, 0.08) * (light[0] * ramp[None, :] + light[1] * ramp[:, None])
    return to_srgb(canvas)


def shift(cover: UInt8[np.ndarray, "size size"], by_px: Float[np.ndarray, " 2"]) -> UInt8[np.ndarray, "size size"]:
    """A cover moved right and down; nothing comes in from beyond the border."""
    image = Image.fromarray(cover)
    inverse = (1, 0, -float(by_px[0]), 0, 1, -float(by_px[1]))
    return np.asarray(image.transform(image.size, Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR))


def blur(cover: UInt8[np.ndarray, "size size"], radius_px: float) -> Float[np.ndarray, "size size"]:
    """A cover as shares of 1, smoothed; what lies beyond the border is taken to be as at the border."""
    return np.asarray(Image.fromarray(cover).filter(ImageFilter.GaussianBlur(radius_px)), np.float32) / 255
