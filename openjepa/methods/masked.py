"""What the methods share that predict hidden patches from visible ones: context, prediction, loss, and how much is explained.

Source: Assran et al. 2023 (arXiv 2301.08243, section 3) and He et al. 2021 (arXiv 2111.06377, section 3). A method says
what the targets are. Deviations: contexts of unequal length are padded and masked, never cut
(tests/laws/test_padding.py); the regularisers are ours, off in the brief, paper and mae_* recipes.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from openjepa.data.batch import MAIN, Batch
from openjepa.engine.precision import full_precision
from openjepa.masks import Masks
from openjepa.methods.contract import Method, Metrics, Rates
from openjepa.methods.regularizers import regularize
from openjepa.nn.predictor import Predictor
from openjepa.nn.vit import VisionTransformer
from openjepa.recipe import methods


class MaskedMethod(Method):
    """Context encoder and predictor; what they are to predict is `make_targets`'s."""

    predictor: Predictor

    def __init__(self, encoder: VisionTransformer, settings: methods.Masked, target_width: int | None = None) -> None:
        """target_width: of a target token; None is the encoder's."""
        super().__init__(encoder, settings)
        self.settings, self.grid = settings, encoder.grid
        self._target_width = target_width

    def make_predictor(self) -> Predictor:
        """A predictor as the settings describe it."""
        shape = self.settings.predictor
        return Predictor(
            self.grid, self.context_encoder.embed_dim, shape.width, shape.depth, shape.heads,
            output_width=self._target_width, positions=shape.positions, checkpointing=self.context_encoder.checkpointing,
        )  # fmt: skip

    def forward(self, batch: Batch, rates: Rates) -> tuple[Float[Tensor, ""], Metrics]:
        """Loss and detached metrics of a batch: targets, context, prediction, distance, regulariser."""
        group = batch.views[MAIN]
        images, masks = group.flat, group.masks
        assert masks is not None, "a masked method is given masks"
        targets = self.make_targets(images, masks)
        context = self.encode_context(images, masks)
        predictions = self.predict(context, masks)
        with full_precision(images.device):
            predictions, context = predictions.float(), context.float()
            loss = self.prediction_loss(predictions, targets, masks)
            metrics = {"prediction_loss": loss.detach()} | explain_variance(
                predictions.detach(), targets, masks, self.grid[0] * self.grid[1]
            )
            if (regularizer := self.settings.regularizer) is not None:
                term = regularize(regularizer.name, regularizer.acts_on, context, masks)
                loss = loss + regularizer.weight * term
                metrics["regularizer"] = term.detach()
        metrics["context_tokens"] = masks.context_lengths.float().mean()
        metrics["target_tokens"] = masks.target_lengths.float().sum(1).mean()
        return loss, metrics | {"loss": loss.detach()}

    @abstractmethod
    def make_targets(
        self, images: Float[Tensor, "batch channels height width"], masks: Masks
    ) -> Float[Tensor, "batch blocks target out"]:
        """What is to be predicted at the target blocks; float32, without gradient."""

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
        predictions: Float[Tensor, "batch blocks target out"],
        targets: Float[Tensor, "batch blocks target out"],
        masks: Masks,
    ) -> Float[Tensor, ""]:
        """Mean distance over real target tokens and width: squared error, or smooth L1 with beta 1."""
        distance = functional.smooth_l1_loss if self.settings.loss == "smooth_l1" else functional.mse_loss
        per_token: Tensor = distance(predictions, targets, reduction="none").mean(-1)
        return masks.pick_targets(per_token).mean()


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
