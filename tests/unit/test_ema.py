"""The momentum update: the formula on either device, and few operations where each one starts a kernel."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from openjepa.nn.ema import update_target


class OnGpu(torch.Tensor):
    """A number on the CPU that says it lies on a GPU."""

    is_cuda = True


def make(depth, seed):
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(7, 7) for _ in range(depth)))


def on_gpu(momentum):
    return torch.tensor(momentum, dtype=torch.float64).as_subclass(OnGpu)


def update(momentum, depth=5):
    target, context = make(depth, 0), make(depth, 1)
    before = [weight.double() for weight in target.parameters()]
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        update_target(target, context, momentum)
    operations = Counter(event.name for event in profiler.events() if event.name.startswith("aten::"))
    return before, list(context.parameters()), list(target.parameters()), operations


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.996, 0.99999])
@pytest.mark.parametrize("place", [float, on_gpu])
def test_both_ways_are_the_formula_to_rounding(place, momentum):
    before, context, after, _ = update(place(momentum))
    for old, new, found in zip(before, context, after, strict=True):
        expected = momentum * old + (1 - momentum) * new.double()
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2**-23)  # weights are below 1


@pytest.mark.parametrize("place", [float, on_gpu])
def test_momentum_one_changes_no_bit(place):
    before, _, after, _ = update(place(1.0))
    assert all(torch.equal(old, found.double()) for old, found in zip(before, after, strict=True))


def test_on_a_gpu_the_number_of_operations_does_not_grow_with_the_weights():
    few, many = (update(on_gpu(0.99), depth)[3] for depth in (1, 50))
    assert few == many
    assert many.total() <= 20, many
    assert update(0.99, 50)[3].total() >= 200  # the test counts: weight by weight it is two for each of a hundred
