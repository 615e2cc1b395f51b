"""What the methods share that compare views with a target encoder which follows the trained one.

Source: Grill et al. 2020 (arXiv 2006.07733, section 3.1). A target encoder, and the heads behind it, are moving averages of
their trained twins. They get no gradients, and stochastic depth is off in the target encoder. I-JEPA has its own in its file.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from openjepa.engine.optim import momentum_where
from openjepa.engine.schedule import target_momentum
from openjepa.methods.contract import Method, Rates, Schedule
from openjepa.nn.ema import update_target
from openjepa.nn.vit import VisionTransformer
from openjepa.recipe import methods

Part = TypeVar("Part", bound=nn.Module)


class MomentumMethod(Method):
    """A context encoder and a target encoder; `followers` names what else follows."""

    settings: methods.Followed
    seen_by_target: ClassVar[frozenset[str]] = frozenset({"first", "second"})
    """The groups of views that go through the target encoder."""

    def __init__(self, encoder: VisionTransformer, settings: methods.Followed) -> None:
        super().__init__(encoder, settings)
        self.settings = settings
        self.target_encoder = copy_as_target(encoder)

    def followers(self) -> list[tuple[nn.Module, nn.Module]]:
        """Pairs of a target and what it follows."""
        return [(self.target_encoder, self.context_encoder)]

    def train(self, mode: bool = True) -> MomentumMethod:
        """The target encoder stays in evaluation mode, which skips no layers."""
        super().train(mode)
        self.target_encoder.eval()
        return self

    def schedules(self, total_steps: int) -> dict[str, Schedule]:
        """momentum: how much of the targets stays in a step."""
        momentum = self.settings.momentum
        return {
            "momentum": partial(
                target_momentum, total_steps=total_steps, schedule=momentum.schedule, start=momentum.start, end=momentum.end
            )
        }

    def after_step(self, rates: Rates, finite: Bool[Tensor, ""]) -> None:
        """Target weights <- momentum * target + (1 - momentum) * what it follows."""
        for target, followed in self.followers():
            update_target(target, followed, momentum_where(finite, rates["momentum"]))

    def encoders(self) -> dict[str, VisionTransformer]:
        """The encoders that can be used afterwards, by name."""
        return {"context": self.context_encoder, "target": self.target_encoder}


def copy_as_target(part: Part) -> Part:
    """A copy that gets no gradients."""
    target = copy.deepcopy(part)
    target.requires_grad_(False)
    return target


def encode_views(
    encoder: VisionTransformer, views: Sequence[Float[Tensor, "images channels height width"]]
) -> list[Float[Tensor, "images dim"]]:
    """The mean patch token of every view, views of one size in one pass."""
    pooled: Tensor = encoder(torch.cat(list(views))).mean(1)
    return list(pooled.chunk(len(views)))
