"""fp8 layers: rounded as e4m3 and e5m2 with a scale for each tensor, refused where there is no hardware."""

import subprocess
import sys

import pytest
import torch

from openjepa.engine.fp8 import convert_to_fp8, require_fp8
from openjepa.nn.vit import initialise, make_layers, run_layers

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def make(width=48):
    torch.manual_seed(0)
    layers = make_layers(width, 2, 3, 4.0)
    initialise(layers)
    return layers


def rounded(value, dtype):
    """To 8 bits and back, scaled so that the largest entry is the largest number of the kind."""
    scale = torch.finfo(dtype).max / value.abs().max()
    return (value * scale).to(dtype).float() / scale


class Rounded(torch.autograd.Function):
    """x W^T + b by the paper's scheme (arXiv 2209.05433), in float32 on rounded numbers."""

    @staticmethod
    def forward(context, x, weight, bias):
        context.save_for_backward(x, weight)
        return rounded(x, E4M3) @ rounded(weight, E4M3).T + bias

    @staticmethod
    def backward(context, gradient):
        x, weight = context.saved_tensors
        rounded_gradient = rounded(gradient, E5M2)
        return rounded_gradient @ rounded(weight, E4M3), rounded_gradient.T @ rounded(x, E4M3), gradient.sum(0)


def test_a_converted_map_computes_with_rounded_numbers():
    pytest.importorskip("torchao")
    layers = make()
    names = list(layers.state_dict())
    linear = layers[0].mlp.fc1
    weight, bias = linear.weight.detach().clone().requires_grad_(), linear.bias.detach().clone().requires_grad_()
    convert_to_fp8(layers, emulate=True)
    assert list(layers.state_dict()) == names
    x, expected_x = (torch.randn(32, 48, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    expected = Rounded.apply(expected_x, weight, bias)
    output = layers[0].mlp.fc1(x)
    assert float((output - x @ weight.T - bias).detach().abs().max()) > 1e-4  # it is rounded
    # torchao rounds scales to powers of two or not, and sums in another order: agreement is to a step of e4m3, mostly far better.
    assert float((output - expected).detach().norm() / expected.detach().norm()) < 1e-2
    weighing = torch.linspace(0.5, 2, output.numel()).view_as(output)
    for value in (output, expected):
        (value * weighing).sum().backward()
    for ours, theirs in ((x.grad, expected_x.grad), (layers[0].mlp.fc1.weight.grad, weight.grad)):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-2


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_layers_in_fp8_are_the_plain_ones_roughly(checkpointing):
    pytest.importorskip("torchao")
    tokens = torch.randn(2, 16, 48)
    results = []
    for converted in (False, True):
        layers = make()
        if converted:
            convert_to_fp8(layers, emulate=True)
        output = run_layers(layers, tokens, None, checkpointing)
        output.square().mean().backward()
        results.append([output.detach(), *(weight.grad for weight in layers.parameters())])
    for plain, ours in zip(*results, strict=True):
        assert float((plain - ours).norm() / plain.norm()) < 0.2


def test_widths_that_do_not_fit_are_refused():
    pytest.importorskip("torchao")
    with pytest.raises(ValueError, match="multiples of 16, and attn.qkv maps 24 to 72"):
        convert_to_fp8(make(24), emulate=True)


def test_a_cpu_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="device cpu has no fp8 products"):
        require_fp8(torch.device("cpu"))
    command = ["pretrain", "sample:train", "--recipe", "demo", "--out", str(tmp_path / "run")]
    command += ["train.fp8=true", "train.device=cpu", "train.length=2steps"]
    done = subprocess.run([sys.executable, "-m", "openjepa.cli", *command], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "drop train.fp8" in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()
