"""SimCLR against equation 1 in float64, from the pixels on, one pair of views at a time."""

import math

import pytest
import torch

from openjepa.data.batch import Batch, Views
from tests.models import RATES
from tests.parity.networks import draw, make_double, part, see, softmax, unit

TEMPERATURE = 0.3


def project(image, method) -> torch.Tensor:
    """The vector of a view seen alone: mean token, linear map, ReLU, linear map."""
    weights = part(method, "projector")
    hidden = weights["0.weight"] @ see(image, part(method, "context_encoder")).mean(0) + weights["0.bias"]
    return unit(weights["2.weight"] @ hidden.clamp_min(0) + weights["2.bias"])


def write_out(method, images) -> float:
    """Mean over all views of -log of the share that the view's partner has among all others."""
    vectors = [project(view, method) for pair in images for view in pair]
    total = 0.0
    for place, vector in enumerate(vectors):
        others = [other for other in range(len(vectors)) if other != place]
        shares = softmax([float((vector * vectors[other]).sum()) / TEMPERATURE for other in others])
        partner = place + 1 if place % 2 == 0 else place - 1
        total -= math.log(shares[others.index(partner)])
    return total / len(vectors)


def test_the_loss_is_the_papers():
    method = make_double("simclr", method__temperature=TEMPERATURE, method__projector_hidden=16, method__projector_width=8)
    images = draw(5, 2, 1, 16, 16, seed=1)
    loss = method(Batch(0, {"main": Views(images)}, torch.arange(5)), RATES)[0].detach()
    assert float(loss) == pytest.approx(write_out(method, images), rel=1e-9)
