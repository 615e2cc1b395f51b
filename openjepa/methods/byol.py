"""BYOL: predict a target network's projection of one view from the other view, with no negatives.

Source: Grill et al. 2020 (arXiv 2006.07733). In reading order: encoder f, projector g, predictor q and their targets
(section 3.1 and 3.3; a hidden layer with batch norm), the loss 2 - 2 cos, symmetrised (equation 2), momentum (momentum.py;
equation 1). The two views are drawn differently (appendix B; recipe/methods.py). Pinned by tests/parity/test_byol.py.
Deviations: f is a ViT with mean pooling, not a ResNet; AdamW as for all methods here, not LARS; batch norm keeps no running
statistics (nn/heads.py).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from openjepa.data.batch import Batch
from openjepa.engine.precision import full_precision, widen
from openjepa.methods.contract import Metrics, Rates
from openjepa.methods.momentum import MomentumMethod, copy_as_target, encode_views
from openjepa.methods.pairs import measure_pairs
from openjepa.nn.heads import make_mlp
from openjepa.nn.vit import VisionTransformer
from openjepa.recipe import methods


class BYOL(MomentumMethod):
    """Encoder, projector, predictor; target encoder and target projector."""

    def __init__(self, encoder: VisionTransformer, settings: methods.BYOL) -> None:
        super().__init__(encoder, settings)
        hidden, width = settings.projector_hidden, settings.projector_width
        self.projector = make_mlp([encoder.embed_dim, hidden, width])
        self.target_projector = copy_as_target(self.projector)
        self.predictor = make_mlp([width, hidden, width])

    def followers(self) -> list[tuple[nn.Module, nn.Module]]:
        """The target projector follows as well; the predictor has no target."""
        return [*super().followers(), (self.target_projector, self.projector)]

    def forward(self, batch: Batch, rates: Rates) -> tuple[Float[Tensor, ""], Metrics]:
        """Loss and detached metrics of a batch with a first and a second view of each image."""
        views = [batch.views[name].flat for name in ("first", "second")]
        predictions = [widen(self.predictor(self.projector(pooled))) for pooled in encode_views(self.context_encoder, views)]
        with torch.no_grad():
            targets = [widen(self.target_projector(pooled)) for pooled in encode_views(self.target_encoder, views)]
        with full_precision(views[0].device):
            loss = regress(predictions[0], targets[1]) + regress(predictions[1], targets[0])
        return loss, {"loss": loss.detach()} | measure_pairs(predictions[0].detach(), targets[1])


def regress(predictions: Float[Tensor, "images dim"], targets: Float[Tensor, "images dim"]) -> Float[Tensor, ""]:
    """Mean squared distance of unit vectors, 2 - 2 cos (equation 2): 0 to 4."""
    return 2 - 2 * functional.cosine_similarity(predictions, targets, dim=1).mean()
