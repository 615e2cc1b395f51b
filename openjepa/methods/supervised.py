"""A classifier: what the labels give, to a fresh encoder or, with --init, to a pretrained one (fine-tuning).

Source: ViT (Dosovitskiy et al. 2021, arXiv 2010.11929) with the mean patch token as its authors' later plain ViT has it (Beyer et
al. 2022, arXiv 2205.01580), label smoothing (Szegedy et al. 2016, arXiv 1512.00567, section 7), stochastic depth (Huang et al.
2016, arXiv 1603.09382), mixup (Zhang et al. 2018, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899, section 3.1).
Fine-tuning is MAE's (He et al. 2021, arXiv 2111.06377, appendix A.1), with rates by layer in engine/optim. Deviation from it:
the encoder's final norm comes before the mean, not after. Pinned by tests/unit/test_supervised.py.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from openjepa.data.batch import MAIN, Batch
from openjepa.engine.precision import full_precision, widen
from openjepa.engine.world import current
from openjepa.methods.contract import Method, Metrics, Rates
from openjepa.nn.vit import VisionTransformer, initialise
from openjepa.recipe import methods


class Supervised(Method):
    """Encoder and a linear classifier on its mean patch token."""

    def __init__(self, encoder: VisionTransformer, settings: methods.Supervised, num_classes: int | None) -> None:
        assert num_classes is not None, "a classifier is made for a number of classes"
        super().__init__(encoder, settings)
        self.settings, self.num_classes = settings, num_classes
        self.classifier = nn.Linear(encoder.embed_dim, num_classes)
        initialise(self.classifier)

    def forward(self, batch: Batch, rates: Rates) -> tuple[Float[Tensor, ""], Metrics]:
        """Loss and detached metrics of a batch with labels. train_accuracy: of mixed images, by the label of the larger share."""
        images, labels = batch.views[MAIN].flat, batch.labels
        assert labels is not None, "a classifier is given labels"
        wanted = functional.one_hot(labels, self.num_classes).to(images)
        if self.settings.mixup or self.settings.cutmix:
            images, wanted = mix(images, wanted, self.settings.mixup, self.settings.cutmix)
        logits = self.classify(images)
        with full_precision(images.device):
            loss = functional.cross_entropy(widen(logits), wanted, label_smoothing=self.settings.label_smoothing)
        right = (logits.detach().argmax(1) == wanted.argmax(1)).float().mean()
        return loss, {"loss": loss.detach(), "train_accuracy": right}

    def classify(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Class scores of normalised images."""
        logits: Tensor = self.classifier(self.context_encoder(images).mean(1))
        return logits


def mix(
    images: Float[Tensor, "batch channels height width"], wanted: Float[Tensor, "batch classes"], mixup: float, cutmix: float
) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch classes"]]:
    """Every image mixed with another of the global batch, and what is wanted of the mixture, by shares of the two.

    mixup, cutmix: parameters of the Beta distribution of an image's own share; 0 is off; where both are on, each has half the
    batches. A box that reaches over an edge is cut there, and shares are counted in pixels. All from torch's generator.
    """
    assert mixup or cutmix, "there is a way of mixing"
    world = current()
    partner = torch.randperm(world.size * len(images))
    by_box = bool(cutmix) and (not mixup or bool(torch.rand(()) < 0.5))
    alpha = torch.tensor(cutmix if by_box else mixup)
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    others = world.take(images, partner)
    if by_box:
        height, width = images.shape[-2:]
        rows, columns = (_cut(side, math.sqrt(1 - share)) for side in (height, width))
        images = images.clone()
        images[..., rows, columns] = others[..., rows, columns]
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    else:
        images = share * images + (1 - share) * others
    return images, share * wanted + (1 - share) * world.take(wanted, partner)


def _cut(side: int, frac: float) -> slice:
    """A stretch of frac * side pixels around a random place, as far as it lies within the side."""
    centre, half = int(torch.randint(side, ())), frac * side / 2
    return slice(max(round(centre - half), 0), min(round(centre + half), side))
