"""The contract of a method: what training, health and evaluation may ask of it, whatever the paper."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float, Float64
from torch import Tensor, nn

from openjepa.masks import Masks
from openjepa.nn.encoder import VisionTransformer

Metrics = dict[str, Tensor]


class Method(nn.Module, ABC):
    """Called on (images, masks) it returns (loss, metrics). tests/contract/test_methods.py holds every method to this.

    `context_encoder` is the encoder that is trained and draws its weights first, so that the untrained one is a function of the
    seed alone. `predictor` holds all other trainable weights. The optimizer and checkpoints know the parts by these names.
    """

    context_encoder: VisionTransformer
    predictor: nn.Module

    @abstractmethod
    def forward(
        self, images: Float[Tensor, "batch channels height width"], masks: Masks | None = None
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """Loss and detached metrics of normalised images; without masks, fresh ones are drawn from torch's generator.

        Metrics: loss, prediction_loss, explained_variance, explained_content, content_frac, context_tokens, target_tokens,
        and what else the method has. The loss of a batch is the sum of its parts', each by its share of target tokens, but for
        what config.OF_WHOLE_BATCH lists.
        """

    @abstractmethod
    def update_target(self, momentum: float | Float64[Tensor, ""]) -> None:
        """After every optimizer step: move the target encoder, if there is one. Momentum 1 leaves it as it is."""

    @abstractmethod
    def encoders(self) -> dict[str, VisionTransformer]:
        """The encoders that can be used afterwards, by name: context, and target where there is one."""
