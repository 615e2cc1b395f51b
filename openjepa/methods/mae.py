"""MAE: reconstruct the pixels of hidden patches from visible ones. The yardstick for I-JEPA.

Source: He et al. 2021 (arXiv 2111.06377, section 3). In reading order: targets (targets.py), encoder, decoder and loss
(masked.py). The decoder is I-JEPA's predictor with pixels as output: a narrow ViT on encoded visible patches and mask tokens,
all with positions. tests/parity/test_mae.py compares loss, reconstruction and gradients with transformers' MAE.
Deviations, so that I-JEPA and MAE differ in the method alone: no class token (the paper's section A.1 has average pooling do as
well); the encoder's and predictor's own initial weights instead of Xavier's; a patch's pixels are in the order channel, row,
column. Any sampler's masks, smooth L1, a regulariser and PCA of pixels work too; the paper's are random masks of 75 %, squared
error, no regulariser, and pixels, normalised or not.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openjepa.masks import Masks
from openjepa.methods.masked import MaskedMethod
from openjepa.methods.targets import PixelTargets
from openjepa.nn.vit import VisionTransformer
from openjepa.recipe import methods


class MAE(MaskedMethod):
    """Encoder and decoder (`predictor`)."""

    settings: methods.MAE

    def __init__(self, encoder: VisionTransformer, settings: methods.MAE) -> None:
        pixel_targets = PixelTargets(settings, encoder.patch_size, encoder.channels)
        super().__init__(encoder, settings, target_width=pixel_targets.width)
        self.pixel_targets = pixel_targets
        self.predictor = self.make_predictor()
        self.register_load_state_dict_pre_hook(_leave_out_target_encoder)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def make_targets(
        self, images: Float[Tensor, "batch channels height width"], masks: Masks
    ) -> Float[Tensor, "batch blocks target out"]:
        """The pixels of the masked patches: as they are, normalised within each patch, or on the principal components."""
        targets: Tensor = self.pixel_targets(images, masks.target_idx)
        return targets


def _leave_out_target_encoder(_mae: nn.Module, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Version 0.1 had pixels as targets of I-JEPA: its checkpoints hold a target encoder for nothing (recipe/migrate.py)."""
    for name in [name for name in weights if name.startswith(f"{prefix}target_encoder.")]:
        del weights[name]
