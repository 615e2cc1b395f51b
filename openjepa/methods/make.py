"""What a recipe describes, built: its method with fresh weights, or its encoder alone."""

from __future__ import annotations

from importlib import import_module

from openjepa.methods import Method
from openjepa.nn.vit import VisionTransformer
from openjepa.recipe.sections import Recipe


def make_method(recipe: Recipe, num_classes: int | None = None) -> Method:
    """The recipe's method with fresh weights from torch's generator: the encoder's first, then its own.

    It is the class of the section's name in the file of the method's name. num_classes: of the training images' labels or
    objects, for a method that needs them.
    """
    section = recipe.method
    kind = getattr(import_module(f"openjepa.methods.{section.name}"), type(section).__name__)
    encoder = make_encoder(recipe)
    has_classes = section.NEEDS_LABELS or section.NEEDS_OBJECTS
    method: Method = kind(encoder, section, num_classes) if has_classes else kind(encoder, section)
    return method


def make_encoder(recipe: Recipe) -> VisionTransformer:
    """The recipe's encoder alone, with fresh weights from torch's generator."""
    data, model = recipe.data, recipe.model
    return VisionTransformer(
        data.size, model.patch_size, data.channels, model.encoder_shape,
        checkpointing=recipe.train.activation_checkpointing, drop_path=getattr(recipe.method, "drop_path", 0.0),
    )  # fmt: skip
