"""What a recipe describes, built: its method with fresh weights, or its encoder alone."""

from __future__ import annotations

from openjepa.methods import METHODS, Method
from openjepa.nn.encoder import VisionTransformer
from openjepa.recipe.sections import Recipe


def make_method(recipe: Recipe) -> Method:
    """The recipe's method with fresh weights from torch's generator."""
    return METHODS[recipe.method.name](
        recipe.data.size, recipe.data.channels, recipe.model, recipe.mask, recipe.method, recipe.train.activation_checkpointing
    )


def make_encoder(recipe: Recipe) -> VisionTransformer:
    """The recipe's encoder alone, with fresh weights from torch's generator."""
    data, model = recipe.data, recipe.model
    return VisionTransformer(
        data.size, model.patch_size, data.channels, model.encoder_shape, residual_rescale=model.residual_rescale
    )
