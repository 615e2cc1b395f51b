"""MAE: reconstruct the pixels of hidden patches from visible ones. The yardstick for I-JEPA.

Source: He et al. 2021 (arXiv 2111.06377, section 3). In reading order: masked patches, encoder, decoder, targets, loss. The
decoder is I-JEPA's predictor with pixels as output: a narrow ViT on encoded visible patches and mask tokens, all with positions.
tests/parity/test_mae.py compares loss, reconstruction and gradients with transformers' MAE.
Deviations, so that I-JEPA and MAE differ in the method alone: no class token (the paper's section A.1 has average pooling do as
well); the encoder's and predictor's own initial weights instead of Xavier's; a patch's pixels are in the order channel, row,
column. Any sampler's masks, smooth L1, a regulariser and PCA of pixels (targets.py) work too; the paper's are random masks of
75 %, squared error, no regulariser, and pixels, normalised or not.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn import functional

from openjepa.masks import Masks, sample_masks
from openjepa.methods.contract import Method, Metrics
from openjepa.methods.ijepa import explain_variance
from openjepa.methods.regularizers import regularize
from openjepa.methods.targets import PixelTargets
from openjepa.nn.encoder import VisionTransformer
from openjepa.nn.predictor import Predictor
from openjepa.nn.recompute import Checkpointing
from openjepa.recipe import sections


class MAE(Method):
    """Encoder and decoder (`predictor`); called on normalised images it returns (loss, metrics)."""

    def __init__(
        self,
        image_size: tuple[int, int] = (224, 224),
        channels: int = 3,
        model: sections.Model | None = None,
        mask: sections.Mask | None = None,
        method: sections.Method | None = None,
        checkpointing: Checkpointing = "none",
    ) -> None:
        """image_size: height and width in pixels. The paper's ViT-B/16 is the recipe mae_vit_base_16."""
        super().__init__()
        model, self.mask, self.settings = (
            model or sections.Model(),
            mask or sections.Mask(),
            method or sections.Method(name="mae"),
        )
        assert self.settings.targets in ("pixels", "pca"), self.settings
        self.context_encoder = VisionTransformer(
            image_size, model.patch_size, channels, model.encoder_shape,
            residual_rescale=model.residual_rescale, checkpointing=checkpointing,
        )  # fmt: skip
        self.grid = self.context_encoder.grid
        self.pixel_targets = PixelTargets(self.settings, model.patch_size, channels)
        self.predictor = Predictor(
            self.grid, self.context_encoder.embed_dim, model.predictor_width, model.predictor_depth, model.predictor_heads,
            output_width=self.pixel_targets.width,
            positions=model.predictor_positions, residual_rescale=model.residual_rescale, checkpointing=checkpointing,
        )  # fmt: skip
        self.register_load_state_dict_pre_hook(_leave_out_target_encoder)  # type: ignore[no-untyped-call]

    def forward(
        self, images: Float[Tensor, "batch channels height width"], masks: Masks | None = None
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """Loss and detached metrics of a batch; without masks, fresh ones are drawn from torch's generator."""
        if masks is None:
            seed = int(torch.randint(2**31, ()))
            masks = sample_masks(self.mask, self.grid, len(images), seed=seed, step=0).to(images.device)
        context = self.encode_context(images, masks)
        predictions = self.predict(context, masks)
        targets = self.cut_targets(images, masks)
        with torch.autocast(images.device.type, enabled=False):
            predictions, context = predictions.float(), context.float()
            loss = self.prediction_loss(predictions, targets, masks)
            metrics = {"prediction_loss": loss.detach()} | explain_variance(
                predictions.detach(), targets, masks, self.grid[0] * self.grid[1]
            )
            if self.settings.regularizer != "none":
                term = regularize(self.settings.regularizer, self.settings.regularizer_on, context, predictions, masks)
                loss = loss + self.settings.regularizer_weight * term
                metrics["regularizer"] = term.detach()
        metrics["context_tokens"] = masks.context_lengths.float().mean()
        metrics["target_tokens"] = masks.target_lengths.float().sum(1).mean()
        return loss, metrics | {"loss": loss.detach()}

    def encode_context(
        self, images: Float[Tensor, "batch channels height width"], masks: Masks
    ) -> Float[Tensor, "batch context dim"]:
        """The encoder: tokens of the visible patches alone; mask tokens come only after it."""
        tokens: Tensor = self.context_encoder(images, masks.context_idx, masks.context_padding_mask)
        return tokens

    def predict(self, context: Float[Tensor, "batch context dim"], masks: Masks) -> Float[Tensor, "batch blocks target out"]:
        """The decoder: the pixels of every masked patch, from the encoded visible ones and shared mask tokens."""
        context_mask, target_mask = masks.context_padding_mask, masks.target_padding_mask
        predictions: Tensor = self.predictor(
            context, masks.context_idx, context_mask, masks.target_idx, target_mask, self.settings.predict
        )
        return predictions

    def cut_targets(
        self, images: Float[Tensor, "batch channels height width"], masks: Masks
    ) -> Float[Tensor, "batch blocks target out"]:
        """The reconstruction target: pixels of the masked patches, by `target_norm: layer` normalised within each; float32."""
        targets: Tensor = self.pixel_targets(images, masks.target_idx)
        return targets

    def prediction_loss(
        self,
        predictions: Float[Tensor, "batch blocks target out"],
        targets: Float[Tensor, "batch blocks target out"],
        masks: Masks,
    ) -> Float[Tensor, ""]:
        """Mean distance over the pixels of masked patches alone: squared error (the paper) or smooth L1 with beta 1."""
        distance = functional.smooth_l1_loss if self.settings.loss == "smooth_l1" else functional.mse_loss
        per_token: Tensor = distance(predictions, targets, reduction="none").mean(-1)
        return masks.pick_targets(per_token).mean()

    def update_target(self, momentum: float | Float64[Tensor, ""]) -> None:
        """Nothing: pixels need no target encoder."""

    def encoders(self) -> dict[str, VisionTransformer]:
        """The one encoder, which is used afterwards without mask: on all patches."""
        return {"context": self.context_encoder}


def _leave_out_target_encoder(_mae: nn.Module, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Version 0.1 had pixels as targets of I-JEPA: its checkpoints hold a target encoder for nothing (files.migrate)."""
    for name in [name for name in weights if name.startswith(f"{prefix}target_encoder.")]:
        del weights[name]
