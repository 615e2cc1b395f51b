"""MoCo v3: tell an image's other view, seen by a target network, from the other images of the batch.

Source: Chen, Xie and He 2021 (arXiv 2104.02057). In reading order: the patch projection stays as it was drawn (section 4.2),
heads with batch norm behind every map (section 3 and appendix), the loss of queries and keys with its factor 2 tau,
symmetrised (section 3, equation 1 and algorithm 1), momentum (momentum.py). There is no queue: the batch has the keys.
Pinned by tests/parity/test_mocov3.py. Deviations: the mean patch token, where the paper has a class token; batch norm keeps
no running statistics (nn/heads.py).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from openjepa.data.batch import Batch
from openjepa.engine.precision import full_precision, widen
from openjepa.engine.world import current
from openjepa.methods.contract import Metrics, Rates
from openjepa.methods.momentum import MomentumMethod, copy_as_target, encode_views
from openjepa.methods.pairs import measure_pairs
from openjepa.nn.heads import make_mlp
from openjepa.nn.vit import VisionTransformer
from openjepa.recipe import methods


class MoCoV3(MomentumMethod):
    """Encoder, projector, predictor; target encoder and target projector."""

    def __init__(self, encoder: VisionTransformer, settings: methods.MoCoV3) -> None:
        encoder.patch_embed.requires_grad_(not settings.freeze_patches)
        super().__init__(encoder, settings)
        self.temperature = settings.temperature
        hidden, width = settings.projector_hidden, settings.projector_width
        self.projector = make_mlp([encoder.embed_dim, hidden, hidden, width], norm_last=True)
        self.target_projector = copy_as_target(self.projector)
        self.predictor = make_mlp([width, hidden, width], norm_last=True)

    def followers(self) -> list[tuple[nn.Module, nn.Module]]:
        """The target projector follows as well; the predictor has no target."""
        return [*super().followers(), (self.target_projector, self.projector)]

    def forward(self, batch: Batch, rates: Rates) -> tuple[Float[Tensor, ""], Metrics]:
        """Loss and detached metrics of a batch with a first and a second view of each image."""
        views = [batch.views[name].flat for name in ("first", "second")]
        queries = [widen(self.predictor(self.projector(pooled))) for pooled in encode_views(self.context_encoder, views)]
        with torch.no_grad():
            keys = [widen(self.target_projector(pooled)) for pooled in encode_views(self.target_encoder, views)]
        with full_precision(views[0].device):
            loss = contrast(queries[0], keys[1], self.temperature) + contrast(queries[1], keys[0], self.temperature)
        return loss, {"loss": loss.detach()} | measure_pairs(queries[0].detach(), keys[1])


def contrast(queries: Float[Tensor, "images dim"], keys: Float[Tensor, "images dim"], temperature: float) -> Float[Tensor, ""]:
    """2 tau times the cross-entropy of cosines over tau, in which the key of the same image is right (equation 1).

    The keys are those of all processes.
    """
    every = current().gather(functional.normalize(keys, dim=1))
    logits = functional.normalize(queries, dim=1) @ every.T / temperature
    own = current().own(torch.arange(len(every), device=queries.device))
    return 2 * temperature * functional.cross_entropy(logits, own)
