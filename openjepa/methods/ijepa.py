"""I-JEPA: predict the representations of hidden image blocks from visible ones.

Source: Assran et al. 2023 (arXiv 2301.08243, section 3). In reading order: targets, context, prediction, loss, momentum.
The brief's variant (target patches encoded by themselves and raw, all predicted in one pass, squared error) is the
same class with other settings. Both are pinned by tests/parity/test_golden_step.py, to the release and to the equations.
Deviations: contexts of unequal length are padded and masked, never cut (tests/laws/test_padding.py); `target_norm: batch`,
the regularisers, and pooled or several layers' features as targets are ours, off in the brief and paper recipes.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.nn import functional

from openjepa.masks import Masks, sample_masks
from openjepa.methods.contract import Method, Metrics
from openjepa.methods.regularizers import mean_tokens, regularize
from openjepa.nn.ema import update_target
from openjepa.nn.encoder import VisionTransformer, gather_tokens
from openjepa.nn.predictor import Predictor
from openjepa.nn.recompute import Checkpointing
from openjepa.recipe import sections


class IJEPA(Method):
    """Context encoder, target encoder and predictor; called on normalised images it returns (loss, metrics)."""

    def __init__(
        self,
        image_size: tuple[int, int] = (224, 224),
        channels: int = 3,
        model: sections.Model | None = None,
        mask: sections.Mask | None = None,
        method: sections.Method | None = None,
        checkpointing: Checkpointing = "none",
    ) -> None:
        """image_size: height and width in pixels. Sections left out take the defaults, which are the paper's ViT-B/16."""
        super().__init__()
        model, self.mask, self.settings = model or sections.Model(), mask or sections.Mask(), method or sections.Method()
        assert self.settings.targets in ("features", "pooled"), self.settings
        self.context_encoder = VisionTransformer(
            image_size, model.patch_size, channels, model.encoder_shape,
            residual_rescale=model.residual_rescale, checkpointing=checkpointing,
        )  # fmt: skip
        self.target_encoder = copy.deepcopy(self.context_encoder).requires_grad_(False)
        self.grid = self.context_encoder.grid
        self.predictor = Predictor(
            self.grid, self.context_encoder.embed_dim, model.predictor_width, model.predictor_depth, model.predictor_heads,
            positions=model.predictor_positions, residual_rescale=model.residual_rescale, checkpointing=checkpointing,
        )  # fmt: skip

    def forward(
        self, images: Float[Tensor, "batch channels height width"], masks: Masks | None = None
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """Loss and detached metrics of a batch; without masks, fresh ones are drawn from torch's generator."""
        if masks is None:
            seed = int(torch.randint(2**31, ()))
            masks = sample_masks(self.mask, self.grid, len(images), seed=seed, step=0).to(images.device)
        targets = self.encode_targets(images, masks)
        context = self.encode_context(images, masks)
        predictions = self.predict(context, masks)
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

    @torch.no_grad()
    def encode_targets(
        self, images: Float[Tensor, "batch channels height width"], masks: Masks
    ) -> Float[Tensor, "batch blocks target out"]:
        """s_y: the target encoder's tokens at the target blocks, seeing the whole image or the target patches alone; float32."""
        num_blocks, target_idx = masks.target_idx.shape[1], masks.target_idx.flatten(1)
        encode = partial(self.target_encoder, mean_of_last=self.settings.target_layers)
        if self.settings.target_input == "image":
            tokens: Tensor = encode(images).float()
            if self.settings.target_norm == "batch":
                tokens = (tokens - tokens.mean(0)) / (tokens.var(0, unbiased=False) + 1e-5).sqrt()
            tokens = gather_tokens(tokens, target_idx)
        else:
            seen = find_distinct(target_idx, masks.target_mask.flatten(1), self.grid[0] * self.grid[1])
            tokens = encode(images, seen.patch_idx, real_mask(seen.patch_mask)).float()
            tokens = gather_tokens(tokens, seen.place_idx)
        targets: Tensor = tokens.unflatten(1, (num_blocks, -1))
        if self.settings.target_norm == "layer":
            targets = functional.layer_norm(targets, targets.shape[-1:], eps=1e-5)
        if self.settings.targets == "pooled":
            means = mean_tokens(targets.flatten(0, 1), masks.target_mask.flatten(0, 1))
            targets = means.view(len(images), num_blocks, 1, -1).expand_as(targets)
        return targets

    def encode_context(
        self, images: Float[Tensor, "batch channels height width"], masks: Masks
    ) -> Float[Tensor, "batch context dim"]:
        """s_x: the context encoder's tokens of the visible patches alone."""
        tokens: Tensor = self.context_encoder(images, masks.context_idx, masks.context_padding_mask)
        return tokens

    def predict(self, context: Float[Tensor, "batch context dim"], masks: Masks) -> Float[Tensor, "batch blocks target out"]:
        """s_y hat: the predictor's guess at every target token, from the context and the targets' positions."""
        context_mask, target_mask = masks.context_padding_mask, masks.target_padding_mask
        predictions: Tensor = self.predictor(
            context, masks.context_idx, context_mask, masks.target_idx, target_mask, self.settings.predict
        )
        return predictions

    def prediction_loss(
        self,
        predictions: Float[Tensor, "batch blocks target dim"],
        targets: Float[Tensor, "batch blocks target dim"],
        masks: Masks,
    ) -> Float[Tensor, ""]:
        """Mean distance over real target tokens and width: smooth L1 with beta 1 (the release) or squared error (the paper)."""
        distance = functional.smooth_l1_loss if self.settings.loss == "smooth_l1" else functional.mse_loss
        per_token: Tensor = distance(predictions, targets, reduction="none").mean(-1)
        return masks.pick_targets(per_token).mean()

    def update_target(self, momentum: float | Float64[Tensor, ""]) -> None:
        """Target weights <- momentum * target + (1 - momentum) * context; after every optimizer step."""
        update_target(self.target_encoder, self.context_encoder, momentum)

    def encoders(self) -> dict[str, VisionTransformer]:
        """The encoders that can be used afterwards, by name."""
        return {"context": self.context_encoder, "target": self.target_encoder}


def real_mask(mask: Bool[Tensor, "*shape"]) -> Bool[Tensor, "*shape"] | None:
    """The mask, or None where nothing is padded, which lets attention skip it. A GPU is not asked: see masks.py."""
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


@torch.no_grad()
def explain_variance(
    predictions: Float[Tensor, "batch blocks target dim"],
    targets: Float[Tensor, "batch blocks target dim"],
    masks: Masks,
    num_patches: int,
) -> Metrics:
    """How much of the targets' variance is predicted, and how much of it there is to predict; 0 knows nothing, 1 knows all.

    explained_variance: 1 - squared error / squared error of predicting the batch's mean target. explained_content: the same
    against the mean target of each position, which knowing where a patch lies cannot beat. content_frac: the share of the
    variance that is left around those means; near 0, targets say where they are and nothing of what is there.
    """
    real_targets, real_predictions = masks.pick_targets(targets), masks.pick_targets(predictions)
    error = (real_predictions - real_targets).square().mean()
    variance = (real_targets - real_targets.mean(0)).square().mean()
    content = variance_within_positions(real_targets, masks.pick_targets(masks.target_idx), num_patches)
    return {
        "explained_variance": 1 - error / variance.clamp_min(1e-12),
        "explained_content": 1 - error / content.clamp_min(1e-12),
        "content_frac": content / variance.clamp_min(1e-12),
    }


def variance_within_positions(
    tokens: Float[Tensor, "tokens dim"], positions: Int[Tensor, " tokens"], num_patches: int
) -> Float[Tensor, ""]:
    """Mean variance of tokens around the mean of those at their own position, without bias; 0 if no two share one."""
    counts = tokens.new_zeros(num_patches).index_add_(0, positions, tokens.new_ones(len(tokens)))
    means = tokens.new_zeros(num_patches, tokens.shape[1]).index_add_(0, positions, tokens) / counts.clamp_min(1)[:, None]
    squares = (tokens - means.index_select(0, positions)).square().sum() / tokens.shape[1]
    num_present = (counts > 0).sum()
    return squares / (len(tokens) - num_present).clamp_min(1)
