"""Transformer layers on the real tokens of padded sequences alone: the way of a CPU in reduced precision.

It computes what timm's layers compute (run_layers in vit.py), in fewer operations: linear maps, norms and MLPs see the
real tokens of all sequences as the rows of one matrix (as in packing: Krell et al. 2021, arXiv 2107.02027), attention alone sees
padded sequences, and the last layer answers only for the places that are asked for. Attention is explicit, product, softmax,
product, because the fused CPU kernel's backward pass is slower at these lengths (benchmarks/attention.py). In float32 the
plain layers run, and stay bit-equal. Pinned by tests/unit/test_unpadded.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from openjepa.nn.recompute import Checkpointing, call_layer


class Layout(NamedTuple):
    """Where the rows, which are the real tokens in order of sequence and place, lie in padded sequences."""

    sequences: int
    places: int  # of each sequence
    row_places: Int[Tensor, " rows"]  # the place of each row, counted through all sequences
    score_bias: Float[Tensor, "sequences 1 places"] | None  # 0 for a real key, -inf for padding; None: no padding


def run_unpadded(
    layers: Iterable[Any],
    tokens: Float[Tensor, "batch places width"],
    token_mask: Bool[Tensor, "batch places"] | None,
    first: int = 0,
    checkpointing: Checkpointing = "none",
) -> Float[Tensor, "batch wanted width"]:
    """Apply the layers and give the tokens at places from `first` on, zeros at padding.

    token_mask is True at real tokens, of which every sequence has at least one; None: all are real.
    """
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool) if token_mask is None else token_mask
    layout, wanted = lay_out(mask), lay_out(mask[:, first:])
    wanted_rows = (layout.row_places % layout.places >= first).nonzero().squeeze(1)
    rows = take_rows(tokens.flatten(0, 1), layout.row_places)
    *early, last = layers
    for layer in early:
        rows = call_layer(checkpointing, run_layer, layer, rows, layout)
    if first == 0:
        rows = call_layer(checkpointing, run_layer, last, rows, layout)
    else:
        rows = call_layer(checkpointing, run_last_layer, last, rows, layout, wanted, wanted_rows)
    places = put_rows(rows, wanted.row_places, wanted.sequences * wanted.places)
    return places.view(wanted.sequences, wanted.places, -1)


def lay_out(mask: Bool[Tensor, "sequences places"]) -> Layout:
    """The layout of sequences whose real places are True."""
    row_places = mask.flatten().nonzero().squeeze(1)
    score_bias = torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf).unsqueeze(1)
    return Layout(mask.shape[0], mask.shape[1], row_places, None if len(row_places) == mask.numel() else score_bias)


def run_layer(layer: Any, rows: Float[Tensor, "rows width"], layout: Layout) -> Float[Tensor, "rows width"]:
    """One pre-norm layer."""
    attention = layer.attn
    query, key, value = _split_heads(attention.qkv(layer.norm1(rows)), layout, 3, attention.num_heads)
    attended = _attend(query, key, value, layout.score_bias, attention.num_heads)
    rows = rows + attention.proj(take_rows(attended, layout.row_places))
    answered: Tensor = rows + layer.mlp(layer.norm2(rows))
    return answered


def run_last_layer(
    layer: Any, rows: Float[Tensor, "rows width"], layout: Layout, wanted: Layout, wanted_rows: Int[Tensor, " wanted"]
) -> Float[Tensor, "wanted width"]:
    """One pre-norm layer that answers only for the wanted rows; the others are keys and values alone."""
    attention, width, normed = layer.attn, rows.shape[1], layer.norm1(rows)
    weight, bias = attention.qkv.weight, attention.qkv.bias
    queries = functional.linear(take_rows(normed, wanted_rows), weight[:width], bias[:width])
    (query,) = _split_heads(queries, wanted, 1, attention.num_heads)
    key, value = _split_heads(functional.linear(normed, weight[width:], bias[width:]), layout, 2, attention.num_heads)
    attended = _attend(query, key, value, layout.score_bias, attention.num_heads)
    rows = take_rows(rows, wanted_rows) + attention.proj(take_rows(attended, wanted.row_places))
    answered: Tensor = rows + layer.mlp(layer.norm2(rows))
    return answered


def _split_heads(
    projected: Float[Tensor, "rows parts_times_width"], layout: Layout, parts: int, heads: int
) -> Float[Tensor, "parts sequence_heads places head_width"]:
    """Queries, keys and values of every head in padded sequences."""
    places = put_rows(projected, layout.row_places, layout.sequences * layout.places)
    return places.view(layout.sequences, layout.places, parts, heads, -1).permute(2, 0, 3, 1, 4).flatten(1, 2)


def _attend(
    query: Float[Tensor, "sequence_heads queries head_width"],
    key: Float[Tensor, "sequence_heads places head_width"],
    value: Float[Tensor, "sequence_heads places head_width"],
    score_bias: Float[Tensor, "sequences 1 places"] | None,
    heads: int,
) -> Float[Tensor, "sequences_times_queries width"]:
    """Softmax attention; the result's heads are side by side again."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(1, 2)
    if score_bias is not None:
        scores = scores + score_bias.to(scores.dtype).repeat_interleave(heads, dim=0)
    attended: Tensor = scores.softmax(-1) @ value
    return attended.view(len(query) // heads, heads, query.shape[1], -1).transpose(1, 2).flatten(2).flatten(0, 1)


def take_rows(places: Float[Tensor, "all_places width"], row_places: Int[Tensor, " rows"]) -> Float[Tensor, "rows width"]:
    """The rows at these places; where they are all places, the places themselves."""
    if len(row_places) == len(places):
        return places
    rows: Tensor = _TakeRows.apply(places, row_places)
    return rows


def put_rows(
    rows: Float[Tensor, "rows width"], row_places: Int[Tensor, " rows"], num_places: int
) -> Float[Tensor, "{num_places} width"]:
    """The rows back at their places, zeros elsewhere: the adjoint of take_rows."""
    if len(row_places) == num_places:
        return rows
    places: Tensor = _PutRows.apply(rows, row_places, num_places)
    return places


class _TakeRows(Function):
    """Autograd would add up rows one by one, since it cannot know that every place is named once."""

    @staticmethod
    def forward(context: Any, places: Tensor, row_places: Tensor) -> Tensor:
        context.save_for_backward(row_places)
        context.num_places = len(places)
        return places.index_select(0, row_places)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (row_places,) = context.saved_tensors
        return _scatter(gradient, row_places, context.num_places), None


class _PutRows(Function):
    """Gradients are gathered, not scattered."""

    @staticmethod
    def forward(context: Any, rows: Tensor, row_places: Tensor, num_places: int) -> Tensor:
        context.save_for_backward(row_places)
        return _scatter(rows, row_places, num_places)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (row_places,) = context.saved_tensors
        return gradient.index_select(0, row_places), None, None


def _scatter(rows: Tensor, row_places: Tensor, num_places: int) -> Tensor:
    return rows.new_zeros(num_places, rows.shape[1]).index_copy_(0, row_places, rows)
