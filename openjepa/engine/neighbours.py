"""Exact nearest neighbours by cosine, for features that may be nearly parallel.

Features of an untrained encoder are nearly parallel: their cosines differ from the sixth digit on, and float32 has seven. So
rows are compared by what they add to the mean direction. Let c be the mean of the pool's rows, scaled to length 1. For a
query a = c + a' and a row b = c + b', a.b = a'.b' + c.b' + a.c. The last term is the same for all rows and is left out; where
rows are nearly parallel the others are small, as is their error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

MOST_SIMILARITIES = 2**25  # held at a time: 128 MB
ROWS = 4096  # held in double precision at a time


class Neighbours(NamedTuple):
    """The nearest rows of a pool, nearest first; of equal ones any."""

    idx: Int64[Tensor, "queries k"]
    behind: Float[Tensor, "queries k"]
    """By how much each one's cosine is below the nearest one's."""


def find_neighbours(
    queries: Float[Tensor, "queries dim"],
    pool: Float[Tensor, "pool dim"],
    k: int,
    left_out: Bool[Tensor, "queries pool"] | None = None,
) -> Neighbours:
    """The k rows of the pool with the largest cosines to each query; k <= rows. left_out: rows that do not count for a query."""
    centre = torch.stack([unit.sum(0) for unit in _normalize(pool)]).sum(0) / len(pool)
    keys, offsets = torch.empty(pool.shape), torch.empty(len(pool))
    for unit, some_keys, some_offsets in zip(_normalize(pool), keys.split(ROWS), offsets.split(ROWS), strict=True):
        some_keys.copy_(unit.sub_(centre))
        some_offsets.copy_(unit @ centre)
    found = []
    size = max(1, MOST_SIMILARITIES // len(pool))
    for place, rows in enumerate(queries.split(size)):
        directions = torch.cat([unit.sub_(centre).float() for unit in _normalize(rows)])
        similarities = torch.addmm(offsets, directions, keys.T)
        if left_out is not None:
            similarities.masked_fill_(left_out[place * size : (place + 1) * size], -torch.inf)
        if k == 1:  # several times as fast, and the first of those that tie
            values, idx = similarities.max(dim=1, keepdim=True)
        else:
            values, idx = similarities.topk(k, dim=1)
        found.append((idx, values[:, :1] - values))
    return Neighbours(*(torch.cat(column) for column in zip(*found, strict=True)))


def _normalize(rows: Float[Tensor, "num_rows dim"]) -> Iterator[Float[Tensor, "part dim"]]:
    """Rows of length 1 in double precision, some at a time."""
    return (functional.normalize(part.double(), dim=1) for part in rows.split(ROWS))
