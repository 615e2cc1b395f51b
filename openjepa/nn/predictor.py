"""The predictor: from context tokens and target positions to the target tokens.

Source: Assran et al. 2023 (arXiv 2301.08243, section 3, "Prediction"): a narrow ViT that receives the context tokens and, for
each target patch, a shared mask token plus its position. `joint` predicts all targets of an image in one pass (the
brief's reading); `per_block` gives each target block a pass of its own (the paper's), projecting the context once.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from openjepa.nn.positions import sine_cosine_positions
from openjepa.nn.recompute import Checkpointing
from openjepa.nn.vit import gather_tokens, initialise, make_layers, run_layers


class Predictor(nn.Module):
    """Predicts target tokens, of the encoder's width unless told otherwise."""

    pos_embed: Tensor

    def __init__(
        self,
        grid: tuple[int, int],
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        *,
        output_width: int | None = None,
        positions: Literal["own", "projected"] = "own",
        checkpointing: Checkpointing = "none",
    ) -> None:
        """output_width: width of a prediction; None takes the encoder's. positions: own adds a table of the predictor's
        width after the input projection; projected sends the encoder's table through it, as the brief describes."""
        super().__init__()
        self.positions = positions
        self.checkpointing = checkpointing
        self.input_proj = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = make_layers(width, depth, heads, mlp_ratio=4.0)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.output_proj = nn.Linear(width, output_width or encoder_width)
        table_width = width if positions == "own" else encoder_width
        self.register_buffer("pos_embed", sine_cosine_positions(grid, table_width)[None])
        initialise(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(
        self,
        context: Float[Tensor, "batch context encoder_width"],
        context_idx: Int[Tensor, "batch context"],
        context_mask: Bool[Tensor, "batch context"] | None,
        target_idx: Int[Tensor, "batch blocks target"],
        target_mask: Bool[Tensor, "batch blocks target"] | None,
        predict: Literal["joint", "per_block"],
    ) -> Float[Tensor, "batch blocks target output_width"]:
        """Predictions for every target patch. The masks are True at real tokens; None means that all are real."""
        num_context, (num_blocks, num_targets) = context.shape[1], target_idx.shape[1:]
        context, targets = self._add_positions(context, context_idx, target_idx.flatten(1))
        if predict == "per_block":
            context = context.repeat_interleave(num_blocks, dim=0)
            targets = targets.unflatten(1, (num_blocks, num_targets)).flatten(0, 1)
        token_mask = _join_masks(context_mask, target_mask, context_idx, target_idx, predict)
        tokens = torch.cat([context, targets], dim=1)
        predicted = run_layers(self.blocks, tokens, token_mask, self.checkpointing, first=num_context)
        predictions: Tensor = self.output_proj(self.norm(predicted))
        return predictions.reshape(-1, num_blocks, num_targets, predictions.shape[-1])

    def _add_positions(
        self,
        context: Float[Tensor, "batch context encoder_width"],
        context_idx: Int[Tensor, "batch context"],
        target_idx: Int[Tensor, "batch all_targets"],
    ) -> tuple[Float[Tensor, "batch context width"], Float[Tensor, "batch all_targets width"]]:
        """Context tokens and mask tokens in the predictor's width, each with its position."""
        table = self.pos_embed.expand(len(context), -1, -1)
        context_positions, target_positions = gather_tokens(table, context_idx), gather_tokens(table, target_idx)
        if self.positions == "own":
            return self.input_proj(context) + context_positions, self.mask_token + target_positions
        return self.input_proj(context + context_positions), self.mask_token + self.input_proj(target_positions)


def _join_masks(
    context_mask: Bool[Tensor, "batch context"] | None,
    target_mask: Bool[Tensor, "batch blocks target"] | None,
    context_idx: Int[Tensor, "batch context"],
    target_idx: Int[Tensor, "batch blocks target"],
    predict: Literal["joint", "per_block"],
) -> Bool[Tensor, "sequences tokens"] | None:
    """Which tokens of each predictor sequence are real; None if all are."""
    if context_mask is None and target_mask is None:
        return None
    contexts = torch.ones_like(context_idx, dtype=torch.bool) if context_mask is None else context_mask
    targets = torch.ones_like(target_idx, dtype=torch.bool) if target_mask is None else target_mask
    if predict == "per_block":
        return torch.cat([contexts.repeat_interleave(targets.shape[1], dim=0), targets.flatten(0, 1)], dim=1)
    return torch.cat([contexts, targets.flatten(1)], dim=1)
