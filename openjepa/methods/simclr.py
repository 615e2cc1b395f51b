"""SimCLR: two views of an image should be alike, and unlike the views of every other image of the batch.

Source: Chen et al. 2020 (arXiv 2002.05709). In reading order: views (section 2.1; recipe/methods.py has their colour
changes), encoder f and projector g (section 2.1: a hidden layer with ReLU), NT-Xent loss (equation 1). Deviations: f is
a ViT with mean pooling, not a ResNet; g has no batch norm, which the paper's code has and its text does not mention; AdamW as
for all methods here, not LARS. Pinned by tests/parity/test_simclr.py.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from openjepa.data.batch import MAIN, Batch
from openjepa.engine.precision import full_precision, widen
from openjepa.engine.world import current
from openjepa.methods.contract import Method, Metrics, Rates
from openjepa.methods.pairs import measure_pairs
from openjepa.nn.vit import VisionTransformer, initialise
from openjepa.recipe import methods


class SimCLR(Method):
    """Encoder and projector; only the encoder is used afterwards."""

    def __init__(self, encoder: VisionTransformer, settings: methods.SimCLR) -> None:
        super().__init__(encoder, settings)
        self.settings = settings
        self.projector = nn.Sequential(
            nn.Linear(encoder.embed_dim, settings.projector_hidden), nn.ReLU(),
            nn.Linear(settings.projector_hidden, settings.projector_width),
        )  # fmt: skip
        initialise(self.projector)

    def forward(self, batch: Batch, rates: Rates) -> tuple[Float[Tensor, ""], Metrics]:
        """Loss and detached metrics of a batch whose images have two views each."""
        views = batch.views[MAIN].flat
        vectors = self.projector(self.context_encoder(views).mean(1))
        with full_precision(views.device):
            loss = contrast(widen(vectors), self.settings.temperature)
        return loss, {"loss": loss.detach()} | measure_pairs(vectors[::2].detach(), vectors[1::2].detach())


def contrast(vectors: Float[Tensor, "views dim"], temperature: float) -> Float[Tensor, ""]:
    """NT-Xent of vectors of which 2k and 2k + 1 belong together.

    Equation 1: cross-entropy over cosines divided by the temperature, in which a view is never compared with itself. The others
    are those of all processes.
    """
    unit = functional.normalize(vectors, dim=1)
    every = current().gather(unit)
    own_idx = current().own(torch.arange(len(every), device=unit.device))
    logits = (unit @ every.T / temperature).scatter(1, own_idx[:, None], -torch.inf)
    return functional.cross_entropy(logits, own_idx ^ 1)
