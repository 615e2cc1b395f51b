"""The mask of one object as COCO files write it: polygons, or run lengths, plain or compressed.

Source: T.-Y. Lin et al. 2014 (arXiv 1405.0312), format at cocodataset.org. Run lengths go column by column and begin with
background. Compressed, each length is digits of five bits, least first, a bit of 32 where another follows and a sign in the last,
written from the character "0" on; from the fourth on it is the difference from the length two before. tests/unit/test_segments.py
compares with faster-coco-eval, which also rasterises polygons: COCO's rule decides about pixels on an edge. Nothing here trusts a
file: lengths that do not fill the image never reach a library.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from jaxtyping import Bool

Segmentation = list[list[float]] | dict[str, Any]  # polygons x, y, x, y, ...; or run lengths: size, counts
Mask = Bool[np.ndarray, "height width"]

FARTHEST = 10  # image sides that a polygon may leave the image by; rasterising takes time in proportion
NEEDS_LIBRARY = "polygons need faster-coco-eval: pip install 'openjepa[detection]'"


def clean_segmentation(found: Any, size: tuple[int, int]) -> Segmentation | None:
    """What can be used of an annotation's segmentation in an image of height and width; None if nothing can."""
    if isinstance(found, dict):
        counts = _read_counts(found.get("counts"))
        fits = list(found.get("size") or []) == list(size) and counts is not None and sum(counts) == math.prod(size)
        return {"size": list(size), "counts": counts} if fits else None
    if not isinstance(found, list):
        return None
    polygons = [found] if found and isinstance(found[0], int | float) else found  # some tools leave the outer list out
    return [[float(value) for value in polygon] for polygon in polygons if _is_polygon(polygon, max(size))] or None


def decode_mask(segmentation: Segmentation, size: tuple[int, int]) -> Mask:
    """True at the object's pixels, of what clean_segmentation gave."""
    if isinstance(segmentation, dict):
        return _fill_runs(segmentation["counts"], size)
    try:
        from faster_coco_eval.core import mask
    except ImportError:
        raise ValueError(NEEDS_LIBRARY) from None
    parts: Any = mask.frPyObjects(segmentation, *size)
    covered: Mask = np.asarray(mask.decode(mask.merge(parts))).astype(bool)
    return covered


def decompress_counts(text: str) -> list[int]:
    """Run lengths of COCO's compressed string. ValueError if it is none."""
    counts: list[int] = []
    value, shift = 0, 0
    for letter in text:
        digit = ord(letter) - 48
        if not 0 <= digit < 64 or shift > 60:
            raise ValueError(f"{letter!r} is not a digit of compressed run lengths")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            value -= (1 << shift) if digit & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise ValueError("compressed run lengths end within a number")
    return counts


def _read_counts(found: Any) -> list[int] | None:
    """Run lengths of either form, none negative; None if they are damaged."""
    try:
        counts = decompress_counts(found.decode("ascii") if isinstance(found, bytes) else found) if _is_text(found) else found
    except ValueError:
        return None
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        return None
    return counts


def _is_text(found: Any) -> bool:
    return isinstance(found, str | bytes)


def _is_polygon(found: Any, longest: int) -> bool:
    """Whether these are the coordinates of three points or more, none far outside the image."""
    if not isinstance(found, list) or len(found) < 6 or len(found) % 2:
        return False
    return all(isinstance(value, int | float) and abs(value) <= (1 + FARTHEST) * longest for value in found)  # False for NaN


def _fill_runs(counts: list[int], size: tuple[int, int]) -> Mask:
    values = list(itertools.islice(itertools.cycle((False, True)), len(counts)))
    return np.repeat(values, counts).reshape(size[1], size[0]).T
