"""MoCo v3 against its equation in float64, and its loss against an independent one's recorded values."""

import math

import pytest
import torch

from openjepa.data.batch import Batch, Views
from openjepa.methods.mocov3 import contrast
from tests.models import RATES
from tests.parity.golden import load_golden
from tests.parity.networks import draw, make_double, mlp, part, pool, softmax, unit

TEMPERATURE = 0.3


def write_out(method, first, second) -> float:
    """Equation 1 for every query, times 2 tau as algorithm 1 has it, the two directions added up."""
    online, projector, predictor = (part(method, name) for name in ("context_encoder", "projector", "predictor"))
    followed, target = part(method, "target_encoder"), part(method, "target_projector")
    total = 0.0
    for view, other in ((first, second), (second, first)):
        queries = mlp(mlp(pool(view, online), projector, True), predictor, True)
        keys = mlp(pool(other, followed), target, True)
        for place, query in enumerate(queries):
            scores = [float((unit(query) * unit(key)).sum()) / TEMPERATURE for key in keys]
            total -= 2 * TEMPERATURE * math.log(softmax(scores)[place])
    return total / len(first)


def test_the_loss_is_the_papers():
    method = make_double("mocov3", method__temperature=TEMPERATURE)
    first, second = draw(5, 1, 16, 16, seed=1), draw(5, 1, 16, 16, seed=2)
    batch = Batch(0, {"first": Views(first[:, None]), "second": Views(second[:, None])}, torch.arange(5))
    loss = method(batch, RATES)[0].detach()
    assert float(loss) == pytest.approx(write_out(method, first, second), rel=1e-9)


def test_another_librarys_loss_lacks_the_factor_alone():
    golden = load_golden("mocov3")
    queries, temperature = golden["queries"].requires_grad_(), float(golden["temperature"])
    loss = contrast(queries, golden["keys"], temperature)
    loss.backward()
    torch.testing.assert_close(loss.detach(), 2 * temperature * golden["info_nce"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(queries.grad, 2 * temperature * golden["info_nce_gradient"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_patch_projection_stays_as_it_was_drawn(frozen):
    method = make_double("mocov3", method__freeze_patches=frozen)
    trained = {id(weight) for group in method.weight_groups() for weight in group.weights}
    assert all((id(weight) in trained) != frozen for weight in method.context_encoder.patch_embed.parameters())
