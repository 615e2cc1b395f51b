"""LeJEPA: views of an image agree with the mean of its large ones, and images are spread as a Gaussian is.

Source: Balestriero and LeCun 2025 (arXiv 2511.08544). In reading order: large and small views (section 5.1; recipe/methods.py
has their changes), encoder and projector, prediction loss and total loss (section 5.1, algorithm 2), SIGReg (section 4,
algorithm 1; regularizers.py) of each view by itself, along directions that are drawn anew at every step. There is no target
network, no stop-gradient, no predictor and no schedule. The projector is that of the authors' example, linear maps with batch
norm over all views. Pinned by tests/parity/test_lejepa.py. Deviation: the mean patch token, where the authors' ViT has a class
token. Left out: averaged weights for the centre (section 6.1, optional).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from openjepa.data.batch import Batch, Views
from openjepa.engine.precision import full_precision, widen
from openjepa.engine.world import current
from openjepa.methods.contract import Method, Metrics, Rates
from openjepa.methods.pairs import measure_pairs
from openjepa.methods.regularizers import sigreg
from openjepa.nn.heads import make_mlp
from openjepa.nn.vit import VisionTransformer
from openjepa.recipe import methods


class LeJEPA(Method):
    """Encoder and projector; only the encoder is used afterwards."""

    def __init__(self, encoder: VisionTransformer, settings: methods.LeJEPA) -> None:
        super().__init__(encoder, settings)
        self.settings = settings
        hidden = settings.projector_hidden
        self.projector = make_mlp([encoder.embed_dim, hidden, hidden, settings.projector_width])

    def forward(self, batch: Batch, rates: Rates) -> tuple[Float[Tensor, ""], Metrics]:
        """Loss and detached metrics of a batch with some large and some small views of each image."""
        large, small = batch.views["global"], batch.views["local"]
        pooled = torch.cat([self.pool(large), self.pool(small)])
        vectors = widen(self.projector(pooled.flatten(0, 1))).unflatten(0, pooled.shape[:2])
        share = self.settings.trade_off
        with full_precision(vectors.device):
            disagreement = predict_centre(vectors, large.images.shape[1])
            spread = current().size * vectors.shape[1] * sigreg(vectors, self.settings.directions)
            loss = (1 - share) * disagreement + share * spread
        metrics = {"loss": loss.detach(), "prediction_loss": disagreement.detach(), "regularizer": spread.detach()}
        return loss, metrics | measure_pairs(vectors[0].detach(), vectors[1].detach())

    def pool(self, group: Views) -> Float[Tensor, "views images dim"]:
        """The mean patch token of every view of a group."""
        pooled: Tensor = self.context_encoder(group.flat).mean(1).unflatten(0, group.images.shape[:2])
        return pooled.transpose(0, 1)


def predict_centre(vectors: Float[Tensor, "views images dim"], num_large: int) -> Float[Tensor, ""]:
    """Mean squared distance of every view from the mean of its image's large views, which come first; mean over width too."""
    centre = vectors[:num_large].mean(0)
    return (centre - vectors).square().mean()
