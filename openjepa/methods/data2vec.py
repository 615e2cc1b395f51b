"""data2vec 2.0: predict a target network's layers at hidden patches, from several contexts of one image at a time.

Source: Baevski et al. 2022 (arXiv 2212.07525), for images. In reading order: targets (section 3.1: the last layers of the
target encoder on the whole image, each normalised over the image's patches, averaged, and normalised over the width),
contexts (sections 3.3 and 3.4: several masks of an image share its targets; masks/inverse_block.py), prediction (section
3.2; nn/conv_decoder.py), squared error, momentum (momentum.py). Pinned by tests/parity/test_data2vec.py. Deviations: no
class token, and so not its loss of weight 0.01; a layer's output, not its MLP's before the sum, and pre-norm layers; the
mean over the width, where the authors' code divides the sum by its root, which a step of Adam does not see but clipping
does. data2vec 1.0 (2202.03555) is not here.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from openjepa.data.batch import MAIN, Batch
from openjepa.engine.precision import full_precision, widen
from openjepa.masks import Masks
from openjepa.methods.contract import Metrics, Rates
from openjepa.methods.masked import explain_variance
from openjepa.methods.momentum import MomentumMethod
from openjepa.nn.conv_decoder import ConvDecoder
from openjepa.nn.vit import VisionTransformer, gather_tokens
from openjepa.recipe import methods

NORM_EPS = 1e-5


class Data2Vec(MomentumMethod):
    """Context encoder, decoder and target encoder."""

    settings: methods.Data2Vec

    def __init__(self, encoder: VisionTransformer, settings: methods.Data2Vec) -> None:
        super().__init__(encoder, settings)
        if settings.averaged_layers > len(encoder.blocks):
            raise ValueError(f"method.averaged_layers {settings.averaged_layers}: the encoder has {len(encoder.blocks)}")
        shape = settings.decoder
        self.decoder = ConvDecoder(encoder.grid, encoder.embed_dim, shape.width, shape.depth, shape.kernel, shape.groups)

    def forward(self, batch: Batch, rates: Rates) -> tuple[Float[Tensor, ""], Metrics]:
        """Loss and detached metrics of a batch with several masks of each image."""
        group = batch.views[MAIN]
        images, masks = group.flat, group.masks
        assert masks is not None, "data2vec is given masks"
        times, place = len(masks.context_idx) // len(images), masks.target_idx.flatten(1)
        targets = gather_tokens(self.make_targets(images).repeat_interleave(times, 0), place)
        context = self.context_encoder(images.repeat_interleave(times, 0), masks.context_idx, masks.context_padding_mask)
        if (
            real := masks.context_padding_mask
        ) is not None:  # padding stands where its row's first patch does, and must not learn
            context = torch.where(real[..., None], context, context[:, :1].detach())
        predictions = gather_tokens(self.decoder(context, masks.context_idx, self.settings.noise), place)
        blocks = masks.target_idx.shape[1:]
        with full_precision(images.device):
            predictions, targets = (widen(tokens).unflatten(1, blocks) for tokens in (predictions, targets))
            loss = regress(predictions, targets, masks)
            num_patches = self.decoder.grid[0] * self.decoder.grid[1]
            metrics = explain_variance(predictions.detach(), targets, masks, num_patches)
            metrics["target_std"] = masks.pick_targets(targets).std(0).mean()
        metrics["context_tokens"] = masks.context_lengths.float().mean()
        metrics["target_tokens"] = masks.target_lengths.float().sum(1).mean()
        return loss, metrics | {"loss": loss.detach()}

    @torch.no_grad()
    def make_targets(self, images: Float[Tensor, "images channels height width"]) -> Float[Tensor, "images patches dim"]:
        """The contextualised target of every patch."""
        layers = self.target_encoder.layer_outputs(images, self.settings.averaged_layers)
        with full_precision(images.device):
            normed = [functional.instance_norm(widen(tokens).transpose(1, 2), eps=NORM_EPS).transpose(1, 2) for tokens in layers]
            mean = torch.stack(normed).mean(0)
            targets: Tensor = functional.layer_norm(mean, mean.shape[-1:], eps=NORM_EPS)
        return targets


def regress(
    predictions: Float[Tensor, "contexts blocks target dim"], targets: Float[Tensor, "contexts blocks target dim"], masks: Masks
) -> Float[Tensor, ""]:
    """Mean squared error over hidden patches and width."""
    per_patch = (predictions - targets).square().mean(-1)
    return masks.pick_targets(per_patch).mean()
