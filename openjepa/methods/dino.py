"""DINO: agree with a target network on which prototypes a view belongs to, across large and small crops.

Source: Caron et al. 2021 (arXiv 2104.14294). In reading order: the head (nn/heads.py), cross-entropy between the target's
sharpened and centred assignments of the two large views and the trained ones of all other views (section 3.1, equations 1 to
3), the target's temperature and the frozen last layer at the start (section 3.2 and appendix), momentum (momentum.py), the
centre (equation 4), which moves after the loss. Pinned by tests/parity/test_dino.py. Deviations: mean pooling, where the
paper has a class token; prototypes have norm 1, as the authors' command for ViT-B has them. Left out: batch norm in the
head, which a ViT has not.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from openjepa.data.batch import Batch
from openjepa.engine.precision import full_precision
from openjepa.engine.schedule import ramp
from openjepa.engine.world import current
from openjepa.methods.contract import Metrics, Rates, Schedule
from openjepa.methods.momentum import MomentumMethod, copy_as_target, encode_views
from openjepa.nn.heads import PrototypeHead
from openjepa.nn.vit import VisionTransformer
from openjepa.recipe import methods

Cosines = Float[Tensor, "views images prototypes"]


class Centre(nn.Module):
    """The moving average of the target's outputs, which is taken from them (equation 4)."""

    mean: Tensor

    def __init__(self, width: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(width))
        self.seen: list[tuple[Tensor, int]] = []  # sums and numbers of outputs of this step's micro-batches

    @torch.no_grad()
    def see(self, outputs: Float[Tensor, "*places width"]) -> None:
        """Remember outputs, and those of the other processes, until the step is over."""
        rows, world = outputs.flatten(0, -2), current()
        self.seen.append((world.add_up(rows.sum(0)), world.size * len(rows)))

    @torch.no_grad()
    def move(self, finite: Bool[Tensor, ""]) -> None:
        """Towards the mean of what was seen in this step, if the step was finite."""
        if self.seen:
            mean = sum((total for total, _ in self.seen), torch.zeros_like(self.mean)) / sum(count for _, count in self.seen)
            self.mean.copy_(torch.where(finite, self.momentum * self.mean + (1 - self.momentum) * mean, self.mean))
        self.seen = []


class DINO(MomentumMethod):
    """Encoder and head; target encoder, target head and centre."""

    settings: methods.DINO

    def __init__(self, encoder: VisionTransformer, settings: methods.DINO) -> None:
        super().__init__(encoder, settings)
        head = settings.projector
        self.head = PrototypeHead(encoder.embed_dim, head.hidden, head.bottleneck, head.prototypes)
        self.target_head = copy_as_target(self.head)
        self.centre = Centre(head.prototypes, settings.centre_momentum)

    def followers(self) -> list[tuple[nn.Module, nn.Module]]:
        """The target head follows as well."""
        return [*super().followers(), (self.target_head, self.head)]

    def schedules(self, total_steps: int) -> dict[str, Schedule]:
        """momentum; teacher_temperature; last_layer, 0 while the prototypes are frozen and 1 from then on."""
        warm, frozen_steps = self.settings.teacher_temperature, self.settings.frozen_frac * total_steps
        return super().schedules(total_steps) | {
            "teacher_temperature": lambda place: ramp(place, warm.warmup_frac * total_steps, warm.start, warm.end),
            "last_layer": lambda place: float(place >= frozen_steps),
        }

    def forward(self, batch: Batch, rates: Rates) -> tuple[Float[Tensor, ""], Metrics]:
        """Loss and detached metrics of a batch with two large views and some small ones of each image."""
        large = [batch.views[name].flat for name in ("first", "second")]
        frozen = rates["last_layer"] == 0
        with torch.no_grad():
            target = self.target_head(torch.stack(encode_views(self.target_encoder, large)))
        context = self.head(torch.stack(encode_views(self.context_encoder, large)), frozen)
        context = torch.cat([context, self.assign_small(batch, frozen)])
        with full_precision(target.device):
            wanted = sharpen(target, self.centre.mean, rates["teacher_temperature"])
            loss = distil(wanted, context, self.settings.temperature)
        self.centre.see(target)
        metrics = {"loss": loss.detach()} | measure_assignments(wanted, loss) | {"centre_norm": self.centre.mean.norm()}
        return loss, metrics

    def assign_small(self, batch: Batch, frozen: bool) -> Cosines:
        """The cosines of the small views, which the target never sees."""
        small = batch.views["local"]
        pooled = self.context_encoder(small.flat).mean(1)
        cosines: Tensor = self.head(pooled.unflatten(0, small.images.shape[:2]).transpose(0, 1), frozen)
        return cosines

    def after_step(self, rates: Rates, finite: Bool[Tensor, ""]) -> None:
        """What follows the weights, and the centre."""
        super().after_step(rates, finite)
        self.centre.move(finite)


@torch.no_grad()
def sharpen(
    cosines: Float[Tensor, "*places prototypes"], centre: Float[Tensor, " prototypes"], temperature: float
) -> Float[Tensor, "*places prototypes"]:
    """The target's assignments: centred, over the temperature, and a softmax."""
    return ((cosines - centre) / temperature).softmax(-1)


def distil(wanted: Cosines, context: Float[Tensor, "more images prototypes"], temperature: float) -> Float[Tensor, ""]:
    """Mean cross-entropy over images and over pairs of a target's view and another view (equation 3).

    The first views of `context` are those of `wanted`, in the same order.
    """
    logs = (context / temperature).log_softmax(-1)
    pairs = -torch.einsum("tip,cip->tc", wanted, logs) / wanted.shape[1]
    same = torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)
    return pairs.masked_fill(same, 0).sum() / (pairs.numel() - len(wanted))


@torch.no_grad()
def measure_assignments(wanted: Float[Tensor, "*places prototypes"], loss: Float[Tensor, ""]) -> Metrics:
    """Entropies as shares of the largest: of a view's own assignment, and of the batch's mean one; and what of the loss is left.

    teacher_entropy 1: every view is assigned to all prototypes alike, as where sharpening is missing. usage_entropy 0: every
    view, to the same one, as where centring is. assignment_kl: the loss, a cross-entropy, without the target's entropy; 0 in
    either collapse (section 5.3, "Avoiding collapse").
    """
    rows, most, world = wanted.flatten(0, -2), math.log(wanted.shape[-1]), current()
    own = torch.special.entr(rows).sum(-1).mean()
    return {
        "teacher_entropy": own / most,
        "usage_entropy": torch.special.entr(world.add_up(rows.mean(0)) / world.size).sum() / most,
        "assignment_kl": loss.detach() - own,
    }
