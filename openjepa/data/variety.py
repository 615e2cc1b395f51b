"""What in the images themselves keeps anything from being learned: too few, copies of one another, or of one flat colour.

Judged on a sample of training views, so that copies are those that the encoder cannot tell apart. The limits are ours.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Bool, UInt8
from torch import Tensor, unique

FEW_IMAGES = 100  # a tenth of the smallest number that a recipe was tried with, small_1k
FEWEST_IMAGES = 10  # below, a healthy encoder's effective rank is as low as a collapsed one's
MANY_FRAC = 0.5  # of the sample: so many copies or flat images are no accident


class Finding(NamedTuple):
    """What is wrong, in words; hopeless if no run on these images could be called healthy."""

    words: str
    is_hopeless: bool


def check_number(num_images: int, spec: str) -> None:
    """ValueError for a single image: health and regularisers compare images."""
    if num_images < 2:
        raise ValueError(f"{spec} holds 1 image, and learning takes images that differ: 2 at the very least, 1,000 to be useful")


def find_problems(views: UInt8[Tensor, "sample channels height width"], num_images: int) -> list[Finding]:
    """Findings on a sample of a data set's views, worst first; none for images as they should be."""
    sampled = f"{len(views)} sampled images" if len(views) < num_images else f"{len(views)} images"
    is_flat = _flat_mask(views)
    flat, different = int(is_flat.sum()), len(unique(views.flatten(1), dim=0))
    found = []
    if flat == len(views):
        colour = "of one flat colour" if views.any() else "black"
        found.append(Finding(f"all {sampled} are {colour}: there is nothing to predict", True))
    elif different == 1:
        found.append(Finding(f"all {sampled} are identical: there is nothing to tell apart", True))
    elif flat > MANY_FRAC * len(views):
        found.append(Finding(f"{flat} of {sampled} are of one flat colour and teach nothing", False))
    elif len(views) - different > MANY_FRAC * len(views):
        found.append(Finding(f"{sampled} show only {different} different pictures", False))
    if num_images < FEW_IMAGES:
        found.append(
            Finding(
                f"only {num_images} images: features will not carry over to new ones, and effective rank, which cannot exceed "
                f"{min(num_images, len(views))} here, says little; no recipe was tried with fewer than 1,000",
                num_images < FEWEST_IMAGES,
            )
        )
    return found


def _flat_mask(views: UInt8[Tensor, "sample channels height width"]) -> Bool[Tensor, " sample"]:
    """True where every pixel has the first one's colour."""
    return (views == views[:, :, :1, :1]).flatten(1).all(1)
