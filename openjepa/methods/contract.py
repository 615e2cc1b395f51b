"""The contract of a method: what training, health and evaluation may ask of it, whatever the paper."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from jaxtyping import Bool, Float
from torch import Tensor, nn

from openjepa.data.batch import Batch
from openjepa.engine.optim import WeightGroup
from openjepa.nn.vit import VisionTransformer
from openjepa.recipe.methods import MethodSection

Metrics = dict[str, Tensor]
Rates = Mapping[str, float]
Schedule = Callable[[float], float]


class Method(nn.Module, ABC):
    """Called on (batch, rates) it returns (loss, metrics). tests/contract/test_methods.py holds every method to this.

    `context_encoder` is the encoder that is trained. It is drawn before the method's own weights, so that the untrained one
    is a function of the seed alone. Made from the encoder, the method's section of a recipe, and, where the section
    NEEDS_LABELS or NEEDS_OBJECTS, the number of classes.
    """

    context_encoder: VisionTransformer

    def __init__(self, encoder: VisionTransformer, settings: MethodSection) -> None:
        super().__init__()
        self.context_encoder = encoder

    @abstractmethod
    def forward(self, batch: Batch, rates: Rates) -> tuple[Float[Tensor, ""], Metrics]:
        """Loss and detached metrics of a batch of normalised images.

        rates: the step's values of `schedules`. Metrics: loss, and what the method can measure; a method that predicts
        reports explained_variance, by which the verdict judges it.
        """

    def schedules(self, total_steps: int) -> dict[str, Schedule]:
        """The method's own rates by name, each a function of the place in a run of total_steps; logged under these names."""
        return {}

    def after_step(self, rates: Rates, finite: Bool[Tensor, ""]) -> None:
        """After every optimizer step: what follows the weights, as a target encoder does. Nothing may change unless `finite`."""

    def encoders(self) -> dict[str, VisionTransformer]:
        """The encoders that can be used afterwards, by name: context, and target where there is one."""
        return {"context": self.context_encoder}

    def weight_groups(self) -> list[WeightGroup]:
        """All trained weights, as the optimizer is to treat them: the encoder layer by layer, and the rest."""
        encoder = self.context_encoder.weight_groups()
        known = {id(weight) for group in encoder for weight in group.weights}
        others = [weight for weight in self.parameters() if weight.requires_grad and id(weight) not in known]
        return [*encoder, WeightGroup(others)] if others else encoder
