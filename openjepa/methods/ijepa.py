"""I-JEPA: predict the representations of hidden image blocks from visible ones.

Source: Assran et al. 2023 (arXiv 2301.08243, section 3). In reading order: targets s_y (here), context s_x, prediction s_y hat
and their distance (masked.py), momentum (here). The brief's variant (target patches encoded by themselves and raw, all
predicted in one pass, squared error) is the same class with other settings. Both are pinned by
tests/parity/test_golden_step.py, to the release and to the equations. Deviation: pooled targets are the brief's ablation.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from openjepa.engine.optim import momentum_where
from openjepa.engine.schedule import target_momentum
from openjepa.masks import Masks
from openjepa.methods.contract import Rates, Schedule
from openjepa.methods.masked import MaskedMethod
from openjepa.methods.regularizers import mean_tokens
from openjepa.nn.ema import update_target
from openjepa.nn.vit import VisionTransformer, gather_tokens
from openjepa.recipe import methods


class IJEPA(MaskedMethod):
    """Context encoder, target encoder and predictor."""

    settings: methods.IJEPA

    def __init__(self, encoder: VisionTransformer, settings: methods.IJEPA) -> None:
        super().__init__(encoder, settings)
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.predictor = self.make_predictor()

    @torch.no_grad()
    def make_targets(
        self, images: Float[Tensor, "batch channels height width"], masks: Masks
    ) -> Float[Tensor, "batch blocks target out"]:
        """s_y: the target encoder's tokens at the target blocks, seeing the whole image or the target patches alone; float32."""
        num_blocks, target_idx = masks.target_idx.shape[1], masks.target_idx.flatten(1)
        if self.settings.target_input == "image":
            tokens: Tensor = gather_tokens(self.target_encoder(images).float(), target_idx)
        else:
            seen = find_distinct(target_idx, masks.target_mask.flatten(1), self.grid[0] * self.grid[1])
            tokens = self.target_encoder(images, seen.patch_idx, real_mask(seen.patch_mask)).float()
            tokens = gather_tokens(tokens, seen.place_idx)
        targets: Tensor = tokens.unflatten(1, (num_blocks, -1))
        if self.settings.target_norm == "layer":
            targets = functional.layer_norm(targets, targets.shape[-1:], eps=1e-5)
        if self.settings.pool_targets:
            means = mean_tokens(targets.flatten(0, 1), masks.target_mask.flatten(0, 1))
            targets = means.view(len(images), num_blocks, 1, -1).expand_as(targets)
        return targets

    def schedules(self, total_steps: int) -> dict[str, Schedule]:
        """momentum: how much of the target encoder stays in a step."""
        momentum = self.settings.momentum
        return {
            "momentum": partial(
                target_momentum, total_steps=total_steps, schedule=momentum.schedule, start=momentum.start, end=momentum.end
            )
        }

    def after_step(self, rates: Rates, finite: Bool[Tensor, ""]) -> None:
        """Target weights <- momentum * target + (1 - momentum) * context."""
        update_target(self.target_encoder, self.context_encoder, momentum_where(finite, rates["momentum"]))

    def encoders(self) -> dict[str, VisionTransformer]:
        """The encoders that can be used afterwards, by name."""
        return {"context": self.context_encoder, "target": self.target_encoder}


def real_mask(mask: Bool[Tensor, "*shape"]) -> Bool[Tensor, "*shape"] | None:
    """The mask, or None where nothing is padded, which lets attention skip it. On a GPU the mask: reading it blocks the host."""
    return None if mask.device.type == "cpu" and bool(mask.all()) else mask


class Distinct(NamedTuple):
    """The patches that the target blocks of each image hold together, each once."""

    patch_idx: Int[Tensor, "batch distinct"]  # rising, then padding
    patch_mask: Bool[Tensor, "batch distinct"]  # True at patches, False at padding
    place_idx: Int[Tensor, "batch entries"]  # where patch_idx has the patch of each entry of the blocks


def find_distinct(
    target_idx: Int[Tensor, "batch entries"], target_mask: Bool[Tensor, "batch entries"], num_patches: int
) -> Distinct:
    """Blocks may overlap. Shapes depend on no number, so that a GPU is not waited for."""
    held = torch.zeros(len(target_idx), num_patches, dtype=torch.int64, device=target_idx.device)
    held.scatter_reduce_(1, target_idx, target_mask.long(), "amax")
    most = min(target_idx.shape[1], num_patches)
    patch_idx = held.argsort(dim=1, descending=True, stable=True)[:, :most]
    patch_mask = torch.arange(most, device=held.device) < held.sum(1, keepdim=True)
    place_of_patch = (held.cumsum(1) - 1).clamp_min(0)
    return Distinct(patch_idx, patch_mask, place_of_patch.gather(1, target_idx))
