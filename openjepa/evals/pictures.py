"""Pictures of what dense tasks see and say, as RGB arrays: label maps beside their image, boxes and masks over it.

Names of classes are drawn as they are; they never become names of files.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from PIL import Image, ImageDraw

from openjepa.data.decode import Pixels
from openjepa.data.label_maps import IGNORED, LabelMap
from openjepa.runs.atomic import write_atomic

Picture = UInt8[np.ndarray, "down across 3"]
Sheet = UInt8[np.ndarray, "sheet_down sheet_across 3"]  # enlarged, or several pictures

GOLDEN = 0.618033988749895  # of the colour circle from class to class: neighbours in number are far apart in hue
GAP_PX = 4
SHORTEST_PX = 256  # of a picture's sides; smaller images are enlarged by whole factors
MASK_OPACITY = 0.45
HEAT_OPACITY = 0.6
UNKNOWN = 128  # grey level of patches that have no value


def pick_colour(number: int) -> tuple[int, int, int]:
    """The colour of a class, always the same."""
    red, green, blue = colorsys.hsv_to_rgb(number * GOLDEN % 1, 0.75, 0.95 if number % 2 else 0.7)
    return round(255 * red), round(255 * green), round(255 * blue)


def colour_map(numbers: LabelMap, background: int | None) -> Picture:
    """A label map in colours: background black, pixels without a class grey."""
    palette = np.array([pick_colour(number) for number in range(IGNORED + 1)], np.uint8)
    palette[IGNORED] = 128
    if background is not None:
        palette[background] = 0
    colours: Picture = palette[numbers]
    return colours


def to_rgb(pixels: Pixels) -> Picture:
    """An image of any number of channels as a picture: the first three, or the first alone as grey."""
    return np.ascontiguousarray(pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, axis=2))


def put_side_by_side(pictures: Sequence[Picture]) -> Sheet:
    """Pictures of one size in a row, enlarged where they are small, with white between them."""
    factor = max(1, -(-SHORTEST_PX // max(pictures[0].shape[:2])))
    large = [picture.repeat(factor, 0).repeat(factor, 1) for picture in pictures]
    gap = np.full((large[0].shape[0], GAP_PX, 3), 255, np.uint8)
    return np.concatenate([part for picture in large for part in (gap, picture)][1:], axis=1)


def draw_heat(pixels: Pixels, values: Float32[np.ndarray, "rows columns"], lowest: float, highest: float) -> Picture:
    """An image in grey under one colour a patch, from dark at the lowest value to bright at the highest; NaN has no colour."""
    from matplotlib import colormaps  # here: it takes a second, which every evaluation would pay

    shares = (np.nan_to_num(values, nan=lowest) - lowest) / max(highest - lowest, 1e-12)
    colours = 255 * colormaps["inferno"](shares.clip(0, 1))[:, :, :3]
    colours[np.isnan(values)] = UNKNOWN
    height, width = pixels.shape[:2]
    rows = np.arange(height) * values.shape[0] // height
    columns = np.arange(width) * values.shape[1] // width
    grey = to_rgb(pixels).mean(2, keepdims=True)
    blended: Picture = (grey + HEAT_OPACITY * (colours[rows][:, columns] - grey)).round().astype(np.uint8)
    return blended


def draw_objects(
    pixels: Pixels,
    boxes: Float32[np.ndarray, "objects 4"],
    labels: Int64[np.ndarray, " objects"],
    names: Sequence[str],
    scores: Float32[np.ndarray, " objects"] | None = None,
    masks: Bool[np.ndarray, "objects height width"] | None = None,
) -> Sheet:
    """An image with its objects drawn over it: masks filled, boxes outlined, each with its class and its score in percent."""
    picture = to_rgb(pixels).astype(np.float32)
    factor = max(1, -(-SHORTEST_PX // max(picture.shape[:2])))
    for number, label in enumerate(labels.tolist()):
        if masks is not None:
            picture[masks[number]] += MASK_OPACITY * (np.array(pick_colour(label), np.float32) - picture[masks[number]])
    canvas = Image.fromarray(picture.round().astype(np.uint8).repeat(factor, 0).repeat(factor, 1))
    pen = ImageDraw.Draw(canvas)
    for number, (box, label) in enumerate(zip(boxes, labels.tolist(), strict=True)):
        left, top, right, bottom = (float(value) * factor for value in box)
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=pick_colour(label), width=2)
        text = names[label] if scores is None else f"{names[label]} {100 * float(scores[number]):.0f}"
        spot = (left + 3, top + 2)
        pen.rectangle(pen.textbbox(spot, text), fill=pick_colour(label))
        pen.text(spot, text, fill=(255, 255, 255))
    return np.asarray(canvas)


def write_picture(path: Path, picture: Sheet) -> None:
    """Write a PNG, whole or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())
