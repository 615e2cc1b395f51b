"""Unpadded layers against timm's own layers on padded sequences: the same outputs and gradients at every real token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openjepa.nn import vit as vit_module
from openjepa.nn.unpadded import run_unpadded
from openjepa.nn.vit import initialise, make_layers
from tests.models import call, draw_masks, small_method

WIDTH = 24


def make(depth: int, seed: int = 0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    layers = make_layers(WIDTH, depth, 3, 4.0)
    initialise(layers)
    for weight in layers.parameters():
        weight.data += 0.2 * torch.randn_like(weight)  # no bias is 0, no norm is the identity
    return layers.double()


def run_plain(layers, tokens, mask, first):
    for layer in layers:
        tokens = layer(tokens, None if mask is None else mask[:, None, None, :])
    return tokens[:, first:]


def answer(function, layers, tokens, mask, first):
    """Real tokens of the answer, and the gradients of a sum over them that weighs every number differently."""
    tokens = tokens.clone().requires_grad_()
    output = function(layers, tokens, mask, first)
    real = output if mask is None else output[mask[:, first:]]
    weights = torch.linspace(0.5, 2, real.numel(), dtype=real.dtype).view_as(real)
    return real.detach(), torch.autograd.grad((real.sin() * weights).sum(), [tokens, *layers.parameters()])


@settings(deadline=None, max_examples=30)
@given(
    depth=st.integers(1, 3), first=st.integers(0, 3), places=st.integers(4, 9), seed=st.integers(0, 1000),
    padded=st.booleans(), scattered=st.booleans(), checkpointing=st.sampled_from(["none", "selective", "full"]),
)  # fmt: skip
def test_layers_without_padding_are_the_plain_ones(depth, first, places, seed, padded, scattered, checkpointing):
    layers, generator = make(depth, seed), torch.Generator().manual_seed(seed)
    tokens = torch.randn(4, places, WIDTH, generator=generator, dtype=torch.float64)
    mask = None
    if padded:
        lengths = torch.randint(1, places + 1, (4, 1), generator=generator)
        mask = torch.arange(places) < lengths
        if scattered:
            mask = mask[:, torch.randperm(places, generator=generator)]
        mask[:, first] = True  # of every sequence something is asked for

    def unpadded(*arguments):
        return run_unpadded(*arguments, checkpointing=checkpointing)

    (plain, plain_gradients), (ours, gradients) = (
        answer(function, layers, tokens, mask, first) for function in (run_plain, unpadded)
    )
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)
    for ours_gradient, plain_gradient in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(ours_gradient, plain_gradient, rtol=1e-8, atol=1e-10)


def test_padding_comes_out_as_zeros_and_takes_no_gradient():
    layers, tokens = make(2), torch.randn(3, 6, WIDTH, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(6) < torch.tensor([[6], [2], [4]])
    output = run_unpadded(layers, tokens, mask)
    assert bool((output[~mask] == 0).all())
    output.square().sum().backward()
    assert bool((tokens.grad[~mask] == 0).all()) and bool((tokens.grad[mask] != 0).all())


@pytest.mark.parametrize("predict", ["joint", "per_block"])
def test_a_cpu_leaves_padding_out_in_reduced_precision_alone(monkeypatch, predict):
    """In bf16 the step agrees with the plain layers in bf16; in float32 the unpadded ones are never called."""
    calls = []
    monkeypatch.setattr(vit_module, "run_unpadded", lambda *given, **named: calls.append(1) or run_unpadded(*given, **named))
    method = small_method(seed=0, method__predict=predict)
    images, masks = torch.randn(5, 1, 32, 32), draw_masks(method, 5, seed=3)
    exact = call(method, images, masks)[0].detach()
    assert not calls
    with torch.autocast("cpu", dtype=torch.bfloat16):
        unpadded = call(method, images, masks)[0].detach()
        assert len(calls) == 3  # target encoder, context encoder, predictor
        monkeypatch.setattr(vit_module.torch, "is_autocast_enabled", lambda _: False)
        plain = call(method, images, masks)[0].detach()
        assert len(calls) == 3
    assert float(unpadded) == pytest.approx(float(plain), rel=3e-3)
    assert float(unpadded) == pytest.approx(float(exact), rel=1e-2)
