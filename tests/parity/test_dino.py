"""DINO against its equations in float64, and its loss and centre against an independent one's recorded values."""

import math

import pytest
import torch

from openjepa.data.batch import Batch, Views
from openjepa.methods.dino import Centre, distil, sharpen
from tests.parity.golden import load_golden
from tests.parity.networks import assign, draw, make_double, part, see, softmax

RATES = {"momentum": 0.9, "teacher_temperature": 0.05, "last_layer": 1.0}
TEMPERATURE = 0.1


def pooled_assignment(image, method, prefix):
    """The cosines of an image, seen alone, with every prototype, by the context's or the target's weights."""
    encoder, head = ("target_encoder", "target_head") if prefix == "target" else ("context_encoder", "head")
    return assign(see(image, part(method, encoder)).mean(0), part(method, head))


def write_out(method, first, second, local, centre) -> float:
    """Equation 3, image by image: each of the two large views of the target against every other view."""
    total, terms = 0.0, 0
    for image in range(len(first)):
        views = [first[image], second[image], *local[image]]
        for place in range(2):
            cosines = pooled_assignment(views[place], method, "target")
            wanted = softmax([(cosine - float(middle)) / RATES["teacher_temperature"] for cosine, middle in
                              zip(cosines, centre, strict=True)])  # fmt: skip
            for other, view in enumerate(views):
                if other != place:
                    given = softmax([cosine / TEMPERATURE for cosine in pooled_assignment(view, method, "context")])
                    total -= sum(p * math.log(q) for p, q in zip(wanted, given, strict=True))
                    terms += 1
    return total / terms


def make_batch():
    first, second, local = draw(3, 1, 16, 16, seed=1), draw(3, 1, 16, 16, seed=2), draw(3, 2, 1, 16, 16, seed=3)
    views = {"first": Views(first[:, None]), "second": Views(second[:, None]), "local": Views(local)}
    return first, second, local, Batch(0, views, torch.arange(3))


def test_the_loss_and_the_centre_are_the_papers():
    method = make_double("dino")
    first, second, local, batch = make_batch()
    with torch.no_grad():
        method.centre.mean.copy_(0.1 * draw(24, seed=4))
    centre = method.centre.mean.clone()
    loss = method(batch, RATES)[0].detach()
    assert float(loss) == pytest.approx(write_out(method, first, second, local, centre), rel=1e-9)
    assert torch.equal(method.centre.mean, centre), "the centre moves after the loss"
    outputs = [pooled_assignment(image, method, "target") for image in (*first, *second)]
    method.after_step(RATES | {"momentum": 1.0}, torch.tensor(True))
    for place, (old, new) in enumerate(zip(centre, method.centre.mean, strict=True)):
        mean = sum(output[place] for output in outputs) / len(outputs)
        assert float(new) == pytest.approx(0.9 * float(old) + 0.1 * mean, rel=1e-9)


def test_a_skipped_step_moves_no_centre_and_is_forgotten():
    method, batch = make_double("dino"), make_batch()[-1]
    method(batch, RATES)
    method.after_step(RATES, torch.tensor(False))
    assert not method.centre.mean.any()
    method.after_step(RATES, torch.tensor(True))
    assert not method.centre.mean.any()


def test_two_micro_batches_move_the_centre_as_one_does():
    centres = [Centre(7, 0.9), Centre(7, 0.9)]
    outputs = draw(2, 6, 7).float()
    centres[0].see(outputs)
    centres[1].see(outputs[:, :2])
    centres[1].see(outputs[:, 2:])
    for centre in centres:
        centre.move(torch.tensor(True))
    torch.testing.assert_close(centres[0].mean, centres[1].mean)


@pytest.mark.parametrize("step", ["0", "1"])
def test_loss_gradient_and_centre_are_lightlys(step):
    golden = load_golden("dino")
    context, target = golden[f"{step}.context"].requires_grad_(), golden[f"{step}.target"]
    centre = Centre(16, 0.9)
    centre.mean.copy_(golden[f"{step}.centre_before"])
    loss = distil(sharpen(target, centre.mean, 0.05), context, 0.1)
    loss.backward()
    centre.see(target)
    centre.move(torch.tensor(True))
    torch.testing.assert_close(loss.detach(), golden[f"{step}.loss"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(context.grad, golden[f"{step}.gradient"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(centre.mean, golden[f"{step}.centre_after"], rtol=1e-5, atol=1e-6)


def test_rates_over_a_run():
    """The temperature rises for a tenth of the run, the prototypes are frozen for a hundredth."""
    rates = make_double("dino").schedules(1000)
    temperature, last_layer = rates["teacher_temperature"], rates["last_layer"]
    assert [temperature(place) for place in (0, 50, 100, 999)] == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert [last_layer(place) for place in (0, 9.5, 10, 999)] == [0.0, 0.0, 1.0, 1.0]


def test_frozen_prototypes_get_no_gradient():
    method = make_double("dino")
    method(make_batch()[-1], RATES | {"last_layer": 0.0})[0].backward()
    assert method.head.prototypes.weight.grad is None
    assert method.head.mlp[0].weight.grad is not None
