"""What stands between an encoder and a loss on whole views: multi-layer perceptrons with batch norm, and DINO's prototypes.

Source: the projectors and predictors of BYOL (Grill et al. 2020, arXiv 2006.07733, section 3.3) and MoCo v3 (Chen et al.
2021, arXiv 2104.02057, section 3): linear map, batch norm, ReLU. Batch norm always uses the statistics of the batch at hand,
in the target's copy too, and keeps no running ones: nothing reads them, and a skipped step or a resumed run would have to
restore them. A linear map before batch norm has no bias, which the norm would take away again. DINO's head is that of Caron
et al. 2021 (arXiv 2104.14294, section 3.1, "Network architecture", and appendix C).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from openjepa.engine.precision import full_precision, widen
from openjepa.engine.world import current
from openjepa.nn.vit import initialise


def make_mlp(widths: Sequence[int], norm_last: bool = False) -> nn.Sequential:
    """Linear maps from width to width, with batch norm and ReLU between them.

    norm_last: batch norm without weights behind the last map too, which then has no bias.
    """
    *hidden, last = pairwise(widths)
    parts: list[nn.Module] = []
    for before, after in hidden:
        parts += [nn.Linear(before, after, bias=False), BatchNorm(after, track_running_stats=False), nn.ReLU()]
    parts.append(nn.Linear(*last, bias=not norm_last))
    if norm_last:
        parts.append(BatchNorm(last[1], affine=False, track_running_stats=False))
    mlp = nn.Sequential(*parts)
    initialise(mlp)
    return mlp


class BatchNorm(nn.BatchNorm1d):
    """Batch norm over the rows of all processes, on any device. torch's SyncBatchNorm needs GPUs."""

    def forward(self, rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        """Rows less their mean, over their standard deviation; then the weights."""
        world = current()
        if world.size == 1:
            return super().forward(rows)
        with full_precision(rows.device):
            exact, num_rows = widen(rows), world.size * len(rows)
            centred = exact - world.add_up(exact.sum(0)) / num_rows
            variance = world.add_up(centred.square().sum(0)) / num_rows
            normed = centred * (variance + self.eps).rsqrt()
            return (normed if self.weight is None else torch.addcmul(self.bias, normed, self.weight)).to(rows.dtype)


class PrototypeHead(nn.Module):
    """Cosines between a vector, after three linear maps with GELU between them, and prototypes.

    The prototypes are a last linear map whose rows have norm 1, whatever the optimizer does to their lengths.
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, num_prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.prototypes = nn.Linear(bottleneck, num_prototypes, bias=False)
        initialise(self)

    def forward(self, vectors: Float[Tensor, "*places dim"], frozen: bool = False) -> Float[Tensor, "*places prototypes"]:
        """The cosines in full precision. frozen: the prototypes get no gradient, and so do not move."""
        hidden = self.mlp(vectors)
        prototypes = self.prototypes.weight.detach() if frozen else self.prototypes.weight
        with full_precision(hidden.device):
            unit = functional.normalize(widen(hidden), dim=-1)
            cosines: Tensor = unit @ functional.normalize(prototypes, dim=-1).T
        return cosines
