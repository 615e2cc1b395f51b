"""TIFF files as revision 6.0 of the specification lays them out, of any kind: for tests of what reads them."""

from __future__ import annotations

import struct
import zlib
from typing import Literal

import numpy as np

NONE, LZW, DEFLATE, PACKBITS = 1, 5, 8, 32773
FORMATS = {"u": 1, "i": 2, "f": 3, "b": 1}
SHORT, LONG, ASCII = 3, 4, 2
Order = Literal["<", ">"]


def make_tiff(
    samples: np.ndarray,
    *,
    photometric: int,
    planar: int = 1,
    order: Order = "<",
    compression: int = NONE,
    extra: tuple[int, ...] = (),
    colours: np.ndarray | None = None,
    nodata: str = "",
    orientation: int = 1,
    predictor: int = 1,
    rows_per_strip: int | None = None,
) -> bytes:
    """Samples (H, W, S), bool for one bit, as a file. colours: a palette (N, 3) of 16 bits; extra: ExtraSamples."""
    height, width, num_samples = samples.shape
    bits = 1 if samples.dtype == np.bool_ else 8 * samples.dtype.itemsize
    rows = rows_per_strip or height
    planes = [samples] if planar == 1 else [samples[:, :, [band]] for band in range(num_samples)]
    strips = [
        _compress(_pack(plane[top : top + rows], order, predictor), compression)
        for plane in planes
        for top in range(0, height, rows)
    ]
    data = b"".join(strips)
    offsets = (8 + np.cumsum([0, *map(len, strips[:-1])])).tolist()
    tags: list[tuple[int, int, list[int] | bytes]] = [
        (256, LONG, [width]), (257, LONG, [height]), (258, SHORT, [bits] * num_samples), (259, SHORT, [compression]),
        (262, SHORT, [photometric]), (273, LONG, offsets), (274, SHORT, [orientation]), (277, SHORT, [num_samples]),
        (278, LONG, [rows]), (279, LONG, [len(strip) for strip in strips]), (284, SHORT, [planar]), (317, SHORT, [predictor]),
        (320, SHORT, [] if colours is None else colours.T.ravel().tolist()), (338, SHORT, list(extra)),
        (339, SHORT, [FORMATS[samples.dtype.kind]] * num_samples), (42113, ASCII, nodata.encode() + b"\0" if nodata else b""),
    ]  # fmt: skip
    tags = [(tag, kind, values) for tag, kind, values in tags if len(values)]
    place = 8 + len(data)
    beyond = place + 2 + 12 * len(tags) + 4
    entries, values_beyond = b"", b""
    for tag, kind, values in tags:
        packed = (
            values if isinstance(values, bytes) else struct.pack(f"{order}{len(values)}{'H' if kind == SHORT else 'I'}", *values)
        )
        entries += struct.pack(f"{order}HHI", tag, kind, len(values))
        if len(packed) <= 4:
            entries += packed.ljust(4, b"\0")
        else:
            entries += struct.pack(f"{order}I", beyond + len(values_beyond))
            values_beyond += packed + b"\0" * (len(packed) % 2)
    start = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, place)
    return start + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + values_beyond


def _pack(samples: np.ndarray, order: Order, predictor: int) -> bytes:
    if samples.dtype == np.bool_:
        return b"".join(np.packbits(row).tobytes() for row in samples.reshape(len(samples), -1))
    if predictor == 2:
        samples = np.concatenate([samples[:, :1], np.diff(samples, axis=1)], axis=1)
    return samples.astype(samples.dtype.newbyteorder(order)).tobytes()


def _compress(data: bytes, compression: int) -> bytes:
    return {NONE: bytes, DEFLATE: zlib.compress, LZW: _lzw, PACKBITS: _packbits}[compression](data)


def _packbits(data: bytes) -> bytes:
    """Section 9: literal runs alone."""
    runs = [data[first : first + 128] for first in range(0, len(data), 128)]
    return b"".join(bytes([len(run) - 1]) + run for run in runs)


def _lzw(data: bytes) -> bytes:
    """Section 13: bytes alone, in codes of 9 bits, with a clear code before they would need 10."""
    clear, end, most = 256, 257, 200
    codes = [code for first in range(0, len(data), most) for code in (clear, *data[first : first + most])] + [end]
    text = "".join(f"{code:09b}" for code in codes)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")
