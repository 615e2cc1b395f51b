"""Groups of views: how many views of an image a method sees, how each is cut and coloured, and which patches are hidden.

A method names its groups (recipe/methods.py): I-JEPA and MAE take one, `main`, with a mask; SimCLR takes `main` with two
views and no mask. A group of its own `size` (the small crops of DINO) costs a line in the recipe.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from openjepa.recipe.base import NotNegative, Probability, Range, Section, check_range


class Mask(Section):
    sampler: str = "multiblock"
    """multiblock (the paper's), union (the brief's), random, block, or inverse_block (data2vec 2.0's)."""
    per_view: int = Field(default=1, ge=1)
    """Masks of each view, for a method that takes several."""
    num_contexts: int = Field(default=1, ge=1)
    """Context rectangles per image (multiblock always draws one)."""
    context_scale: Range = (0.85, 1.0)
    """Area of a context rectangle as a share of the patches, smallest and largest."""
    context_aspect: Range = (1.0, 1.0)
    """Width / height of a context rectangle, smallest and largest."""
    num_targets: int = Field(default=4, ge=1)
    """Target rectangles per image."""
    target_scale: Range = (0.15, 0.2)
    """Area of a target rectangle as a share of the patches, smallest and largest."""
    target_aspect: Range = (0.75, 1.5)
    """Width / height of a target rectangle, smallest and largest."""
    fidelity: Literal["unbiased", "released"] = "unbiased"
    """released: the reference release's biased multiblock draws, to test parity."""

    @model_validator(mode="after")
    def _has_ranges(self) -> Mask:
        for key in ("context_scale", "target_scale"):
            check_range(key, getattr(self, key), most=1.0)
        for key in ("context_aspect", "target_aspect"):
            check_range(key, getattr(self, key))
        return self


class ViewGroup(Section):
    count: int = Field(default=1, ge=1)
    """Views of each image."""
    size: int | tuple[int, int] | None = None
    """Side of a view in pixels, or height and width; null takes data.image_size."""
    crop_scale: Range | None = (0.3, 1.0)
    """Share of the image that a random crop keeps, smallest and largest; null: resize and centre crop."""
    rand_augment: int = Field(default=0, ge=0)
    """Operations of RandAugment (1909.13719) on a view of 1 or 3 channels; 0 is none."""
    rand_magnitude: float = Field(default=9.0, ge=0, le=10)
    """How strong they are, 0 to 10, plus a normal deviate of 0.5."""
    flip: Probability = 0.5
    """How often a view is mirrored left to right."""
    colour: Probability = 0.0
    """How often brightness, contrast, saturation and hue change, by up to `jitter`."""
    jitter: tuple[NotNegative, NotNegative, NotNegative, NotNegative] = (0.4, 0.4, 0.4, 0.1)
    """Largest change of brightness, contrast, saturation (factors 1 +- value) and hue (share of a turn)."""
    grey: Probability = 0.0
    """How often a view loses its colour."""
    blur: Probability = 0.0
    """How often a view is blurred, by a Gaussian of 0.1 to 2 px."""
    solarize: Probability = 0.0
    """How often the bright half of the grey levels is inverted."""
    mask: Mask | None = None
    """Which patches are context and which are targets; null hides none."""

    @model_validator(mode="after")
    def _has_ranges(self) -> ViewGroup:
        if self.crop_scale is not None:
            check_range("crop_scale", self.crop_scale, most=1.0)
        return self


def to_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels."""
    return (size, size) if isinstance(size, int) else size
