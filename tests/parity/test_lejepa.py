"""LeJEPA against its equations in float64, SIGReg against the integral in closed form and against an independent one's values."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from openjepa.data.batch import Batch, Views
from openjepa.methods.lejepa import predict_centre
from openjepa.methods.regularizers import measure_normality, sigreg
from tests.models import RATES
from tests.parity.golden import load_golden
from tests.parity.networks import draw, make_double, mlp, part, see

SHARE, DIRECTIONS, SEED = 0.3, 7, 11


def epps_pulley(samples: list[float]) -> float:
    """N times the integral of |phi_N(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) over -5 to 5, by 17 points of the trapezoid rule."""
    step, total = 10 / 16, 0.0
    for place in range(17):
        t = -5 + place * step
        normal = math.exp(-t * t / 2)
        real = sum(math.cos(t * x) for x in samples) / len(samples)
        imaginary = sum(math.sin(t * x) for x in samples) / len(samples)
        value = ((real - normal) ** 2 + imaginary**2) * normal
        total += value * step * (0.5 if place in (0, 16) else 1.0)
    return len(samples) * total


def integrate(samples: list[float]) -> float:
    """The same integral over the whole line, from those of Gaussians and cosines, over N."""
    pairs = sum(math.exp(-((x - y) ** 2) / 2) for x in samples for y in samples) / len(samples) ** 2
    singles = sum(math.exp(-x * x / 4) for x in samples) / len(samples)
    return math.sqrt(2 * math.pi) * pairs - 2 * math.sqrt(math.pi) * singles + math.sqrt(2 * math.pi / 3)


def write_out(method, large, small) -> float:
    """Section 5.1: every view of every image against the mean of its large ones, and each view's vectors against N(0, I)."""
    num_images, views = len(large), [*large.unbind(1), *small.unbind(1)]
    rows = torch.stack([see(image, part(method, "context_encoder")).mean(0) for view in views for image in view])
    vectors = mlp(rows, part(method, "projector"), False).unflatten(0, (len(views), num_images))
    torch.manual_seed(SEED)
    directions = [column / math.sqrt(float((column * column).sum())) for column in torch.randn(8, DIRECTIONS).double().T]
    disagreement, spread = 0.0, 0.0
    for image in range(num_images):
        centre = sum(vectors[view][image] for view in range(large.shape[1])) / large.shape[1]
        for view in range(len(views)):
            disagreement += float((vectors[view][image] - centre).square().sum()) / 8 / len(views) / num_images
    for view in range(len(views)):
        for direction in directions:
            samples = [float((vector * direction).sum()) for vector in vectors[view]]
            spread += epps_pulley(samples) / DIRECTIONS / len(views)
    return (1 - SHARE) * disagreement + SHARE * spread


def test_the_loss_is_the_papers():
    method = make_double("lejepa", method__trade_off=SHARE, method__directions=DIRECTIONS)
    large, small = draw(4, 2, 1, 16, 16, seed=1), draw(4, 3, 1, 16, 16, seed=2)
    batch = Batch(0, {"global": Views(large), "local": Views(small)}, torch.arange(4))
    torch.manual_seed(SEED)
    loss = method(batch, RATES)[0].detach()
    assert float(loss) == pytest.approx(write_out(method, large, small), rel=1e-9)


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=12))
def test_the_quadrature_is_the_whole_integral(samples):
    """Of samples within two standard deviations. Half of the end points and the points beyond are left out: at most 2.6e-6."""
    found = measure_normality(torch.tensor(samples, dtype=torch.float64)[:, None])
    assert float(found) == pytest.approx(integrate(samples), abs=3e-6)


def test_what_is_normal_is_rated_best():
    """Midpoints of equal shares of N(0, 1) against the same moved, narrowed, widened, and two points of the same moments."""
    shares = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    normal = torch.special.ndtri(shares)
    others = [normal + 0.5, 0.3 * normal, 3 * normal, normal.sign(), torch.zeros_like(normal)]
    found = measure_normality(torch.stack([normal, *others], 1))
    assert float(found[0]) < 1e-4 < 0.01 < float(found[1:].min())


def test_a_step_draws_its_directions_from_its_seed():
    features = draw(16, 5)
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(float(sigreg(features, 3)))
    assert values[0] == values[1] != values[2]


def test_both_terms_are_stable_pretrainings():
    """It integrates over -3 to 3, twice as finely, and takes its views together: its terms, not its sum."""
    golden = load_golden("lejepa")
    vectors = golden["vectors"].requires_grad_()
    disagreement = predict_centre(vectors, 2)
    rows = vectors.flatten(0, 1)
    spread = (len(rows) * measure_normality(rows @ golden["directions"], limit=3.0, num_points=33)).mean()
    for term, name in ((disagreement, "disagreement"), (spread, "spread")):
        (gradient,) = torch.autograd.grad(term, vectors, retain_graph=True)
        torch.testing.assert_close(term.detach(), golden[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, golden[f"{name}_gradient"], rtol=1e-5, atol=1e-6)
