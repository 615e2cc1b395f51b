"""How well the vectors of two views of the same images tell these images apart: found pairs, alignment and uniformity.

Source: Wang and Isola 2020 (arXiv 2005.10242, section 4.1: alignment with alpha 2, uniformity with t 2). They are measured here,
never trained on. A collapsed projector is aligned perfectly and uniform not at all.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from openjepa.engine.precision import full_precision, widen
from openjepa.engine.world import current

SHARPNESS = 2.0  # t of the uniformity


@torch.no_grad()
def measure_pairs(queries: Float[Tensor, "images dim"], keys: Float[Tensor, "images dim"]) -> dict[str, Float[Tensor, ""]]:
    """pairs_found: how often an image's own key is the most similar to its query of all keys, by cosine.

    alignment: mean squared distance of an image's query and key on the unit sphere; 0 are the same, 2 are orthogonal.
    uniformity: log of the mean of exp(-2 squared distance) between the keys of different images; 0 where all images have one
    key, -4 where keys are spread over a sphere of many dimensions. At least two images. The others are those of all processes.
    """
    world = current()
    with full_precision(queries.device):
        first, second = (functional.normalize(widen(vectors), dim=1) for vectors in (queries, keys))
        every = world.gather(second)
        numbers = torch.arange(len(every), device=first.device)
        own = world.own(numbers)[:, None]
        squares = (2 - 2 * second @ every.T).clamp_min(0).masked_fill(own == numbers, torch.inf)
        near = world.add_up(torch.exp(-SHARPNESS * squares).sum()) / (len(every) * (len(every) - 1))
        return {
            "pairs_found": ((first @ every.T).argmax(1, keepdim=True) == own).float().mean(),
            "alignment": (first - second).square().sum(1).mean(),
            "uniformity": near.log(),
        }
