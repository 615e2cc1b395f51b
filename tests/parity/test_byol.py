"""BYOL against its equations in float64, and its loss against an independent one's recorded values."""

import pytest
import torch

from openjepa.data.batch import Batch, Views
from openjepa.methods.byol import regress
from tests.models import RATES
from tests.parity.golden import load_golden
from tests.parity.networks import draw, make_double, mlp, part, pool, unit


def write_out(method, first, second) -> float:
    """Equation 2 and its twin with the views exchanged, one image at a time: |q bar - z bar|^2 of unit vectors."""
    online, projector, predictor = (part(method, name) for name in ("context_encoder", "projector", "predictor"))
    followed, target = part(method, "target_encoder"), part(method, "target_projector")
    total = 0.0
    for view, other in ((first, second), (second, first)):
        predictions = mlp(mlp(pool(view, online), projector, False), predictor, False)
        targets = mlp(pool(other, followed), target, False)
        for prediction, goal in zip(predictions, targets, strict=True):
            total += float((unit(prediction) - unit(goal)).square().sum())
    return total / len(first)


def test_the_loss_is_the_papers():
    method = make_double("byol")
    first, second = draw(5, 1, 16, 16, seed=1), draw(5, 1, 16, 16, seed=2)
    batch = Batch(0, {"first": Views(first[:, None]), "second": Views(second[:, None])}, torch.arange(5))
    loss = method(batch, RATES)[0].detach()
    assert float(loss) == pytest.approx(write_out(method, first, second), rel=1e-9)


def test_lightlys_loss_is_half_of_ours_less_one_up_to_its_sign():
    """2 - 2 cos against -cos: the gradients differ by 2, and so by nothing to Adam."""
    golden = load_golden("byol")
    predictions = golden["predictions"].requires_grad_()
    loss = regress(predictions, golden["targets"])
    loss.backward()
    torch.testing.assert_close(loss.detach(), 2 + 2 * golden["negative_cosine"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(predictions.grad, 2 * golden["negative_cosine_gradient"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss.detach(), golden["loss"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(predictions.grad, golden["gradient"], rtol=1e-5, atol=1e-6)
