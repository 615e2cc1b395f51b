"""The embedded sample: 10,000 training and 2,000 test images of Fashion-MNIST, class-balanced, lossless, 4.3 MB.

Fashion-MNIST: H. Xiao, K. Rasul, R. Vollgraf 2017, arXiv 1708.07747, MIT licence (LICENSE in this folder).
`benchmarks/make_sample.py` made the files. images.xz: every image column by column, training images first;
columns because clothes hang: the same pixels row by row compress 5 % worse. sample.json: labels, where each image lies
in the original files, and the names of the classes.
"""

from __future__ import annotations

import json
import lzma
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

SIDE_PX = 28


def load_sample(part: str) -> tuple[UInt8[np.ndarray, "N 28 28"], Int64[np.ndarray, " N"]]:
    """Images (N, 28, 28) and labels (N,) of part "train" (10,000) or "test" (2,000), in the order of the original files."""
    first = 0 if part == "train" else len(read_index()["train"]["labels"])
    labels = np.array([int(digit) for digit in read_index()[part]["labels"]], np.int64)
    return _decode_images()[first : first + len(labels)], labels


@cache
def read_index() -> dict[str, Any]:
    """What sample.json holds: "classes"; for "train" and "test", "labels" (a digit per image) and "original_idx"."""
    index: dict[str, Any] = json.loads((resources.files(__name__) / "sample.json").read_text("utf-8"))
    return index


@cache
def _decode_images() -> UInt8[np.ndarray, "12000 28 28"]:
    """All images (12,000, 28, 28), read-only; 0.4 s."""
    data = lzma.decompress((resources.files(__name__) / "images.xz").read_bytes())
    columns = np.frombuffer(data, np.uint8).reshape(-1, SIDE_PX, SIDE_PX)
    images = np.ascontiguousarray(columns.transpose(0, 2, 1))
    images.setflags(write=False)
    return images
