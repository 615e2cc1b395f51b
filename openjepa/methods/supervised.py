"""A classifier: what the labels alone give, with the encoder, images and steps of the methods that see none.

Source: ViT (Dosovitskiy et al. 2021, arXiv 2010.11929) with the mean patch token as its authors' later plain ViT has it (Beyer et
al. 2022, arXiv 2205.01580), label smoothing (Szegedy et al. 2016, arXiv 1512.00567, section 7) and stochastic depth (Huang
et al. 2016, arXiv 1603.09382). Left out: mixup and RandAugment of DeiT-style recipes. Pinned by tests/unit/test_supervised.py.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from openjepa.data.batch import MAIN, Batch
from openjepa.engine.precision import full_precision
from openjepa.methods.contract import Method, Metrics, Rates
from openjepa.nn.vit import VisionTransformer, initialise
from openjepa.recipe import methods


class Supervised(Method):
    """Encoder and a linear classifier on its mean patch token."""

    def __init__(self, encoder: VisionTransformer, settings: methods.Supervised, num_classes: int | None) -> None:
        assert num_classes is not None, "a classifier is made for a number of classes"
        super().__init__(encoder, settings)
        self.settings = settings
        self.classifier = nn.Linear(encoder.embed_dim, num_classes)
        initialise(self.classifier)

    def forward(self, batch: Batch, rates: Rates) -> tuple[Float[Tensor, ""], Metrics]:
        """Loss and detached metrics of a batch with labels."""
        images, labels = batch.views[MAIN].flat, batch.labels
        assert labels is not None, "a classifier is given labels"
        logits = self.classifier(self.context_encoder(images).mean(1))
        with full_precision(images.device):
            loss = functional.cross_entropy(logits.float(), labels, label_smoothing=self.settings.label_smoothing)
        right = (logits.detach().argmax(1) == labels).float().mean()
        return loss, {"loss": loss.detach(), "train_accuracy": right}
