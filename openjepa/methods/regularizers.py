"""Anti-collapse terms on a batch of feature vectors; each is one function and one table row.

VICReg's variance and covariance terms: Bardes et al. 2022 (arXiv 2105.04906, equations 1 to 4).
SIGReg, sketched isotropic Gaussian regularisation: Balestriero and LeCun 2025 (arXiv 2511.08544): features projected on
random directions should each look standard normal by the Epps-Pulley test. Left out: VICReg's invariance term, which
the prediction loss replaces. Neither is part of the brief or paper recipes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from openjepa.engine.world import current
from openjepa.masks import Masks

Regularizer = Callable[[Tensor], Tensor]


def vicreg(features: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Mean hinge on each dimension's standard deviation below 1, plus squared covariances off the diagonal over dim / 25.

    The factor 1/25 is the ratio of VICReg's covariance and variance weights (section 4.2).
    """
    add_up = current().add_up  # over the processes of the run
    num_rows = add_up(torch.full((), float(len(features)), device=features.device))
    centred = features - add_up(features.sum(0)) / num_rows
    std = (add_up(centred.square().sum(0)) / (num_rows - 1) + 1e-4).sqrt()
    covariance = add_up(centred.T @ centred) / (num_rows - 1)
    off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
    return functional.relu(1 - std).mean() + off_diagonal / features.shape[1] / 25


def sigreg(features: Float[Tensor, "*views batch dim"], num_directions: int = 256) -> Float[Tensor, ""]:
    """Mean Epps-Pulley statistic over random directions, per image: 0 if every projection is standard normal.

    Of several sets of features, each by itself, the mean; all are projected on the same directions. These come from torch's
    generator, which the trainer seeds from the step.
    """
    directions = torch.randn(features.shape[-1], num_directions, device=features.device).to(features)
    return measure_normality(features @ functional.normalize(directions, dim=0)).mean()


def measure_normality(
    samples: Float[Tensor, "*views batch directions"], limit: float = 5.0, num_points: int = 17
) -> Float[Tensor, "*views directions"]:
    """Epps-Pulley statistic of samples along the second last axis against N(0, 1), over their number.

    Integrates |empirical - normal characteristic function|^2 under a normal window over [-limit, limit] by the trapezoid rule
    (2511.08544, section 4.2.3 and algorithm 1).
    """
    points = torch.linspace(-limit, limit, num_points, device=samples.device).to(samples)
    normal = torch.exp(-points.square() / 2)
    angles = samples.unsqueeze(-1) * points  # (..., batch, directions, points)
    add_up = current().add_up  # over the processes of the run
    num_rows = add_up(torch.full((), float(samples.shape[-2]), device=samples.device))
    real, imaginary = add_up(angles.cos().sum(-3)) / num_rows, add_up(angles.sin().sum(-3)) / num_rows
    error = (real - normal).square() + imaginary.square()
    return torch.trapezoid(error * normal, points, dim=-1)


def regularize(
    name: str,
    place: str,
    context: Float[Tensor, "batch context dim"],
    masks: Masks,
) -> Float[Tensor, ""]:
    """The term of that name on pooled context features (one row an image), or on all real context tokens."""
    rows = mean_tokens(context, masks.context_mask) if place == "pooled" else masks.pick_context(context)
    return REGULARIZERS[name](rows)


def mean_tokens(tokens: Float[Tensor, "batch tokens dim"], mask: Bool[Tensor, "batch tokens"]) -> Float[Tensor, "batch dim"]:
    """Mean over each image's real tokens."""
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1)


REGULARIZERS: dict[str, Regularizer] = {"vicreg": vicreg, "sigreg": sigreg}
