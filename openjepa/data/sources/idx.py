"""The idx files of MNIST and Fashion-MNIST: a big-endian header, then unsigned bytes; plain or gzipped.

Format: Y. LeCun, C. Cortes, C. Burges, "The MNIST database", file formats. Data: H. Xiao, K. Rasul, R. Vollgraf 2017,
arXiv 1708.07747. Only unsigned bytes are read, the one type that these sets use.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

MOST_DEFLATED = 1032  # bytes that a byte of deflated data gives at most

FASHION_MNIST_CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
]  # fmt: skip


def read_fashion_mnist(folder: str | Path, part: str) -> tuple[UInt8[np.ndarray, "N H W"], Int64[np.ndarray, " N"]]:
    """Images (N, H, W) and labels (N,) of part "train" or "test", from files with their original names.

    Raises ValueError if a file is missing or damaged, or the two do not belong together.
    """
    prefix = {"train": "train", "test": "t10k"}[part]
    images_file = _find_file(Path(folder), f"{prefix}-images-idx3-ubyte")
    labels_file = _find_file(Path(folder), f"{prefix}-labels-idx1-ubyte")
    images, labels = read_idx(images_file, dimensions=3), read_idx(labels_file, dimensions=1)
    if len(images) != len(labels):
        raise ValueError(f"{images_file} has {len(images)} images, but {labels_file.name} has {len(labels)} labels")
    if images.size == 0:
        raise ValueError(f"{images_file} has no images")
    if labels.max() >= len(FASHION_MNIST_CLASSES):
        raise ValueError(f"{labels_file} has label {labels.max()}; Fashion-MNIST's are 0 to {len(FASHION_MNIST_CLASSES) - 1}")
    return images, labels.astype(np.int64)


def read_idx(path: Path, dimensions: int) -> UInt8[np.ndarray, " ..."]:
    """An idx file of unsigned bytes with `dimensions` dimensions; ValueError if it is anything else or damaged."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * dimensions)
            if header[:4] != bytes([0, 0, 0x08, dimensions]) or len(header) < 4 + 4 * dimensions:
                raise ValueError(f"{path} is not an idx file of unsigned bytes with {dimensions} dimensions")
            shape = struct.unpack(f">{dimensions}I", header[4:])
            if math.prod(shape) > MOST_DEFLATED * path.stat().st_size:  # before memory is taken for it
                raise ValueError(f"{path} is damaged: its header says {shape}, more than a file of its size can hold")
            data = file.read(math.prod(shape) + 1)  # one more, to notice a file that is too long
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if len(data) != math.prod(shape):
        found = f"{len(data):,}" if len(data) < math.prod(shape) else "more"
        raise ValueError(f"{path} is damaged: its header says {shape}, {math.prod(shape):,} bytes; found {found}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _find_file(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise ValueError(f"{folder} has no {name}.gz and no {name}")
