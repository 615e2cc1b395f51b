"""data2vec 2.0 against its equations in float64, one image and one mask at a time."""

import math

import pytest
import torch

from openjepa.data.batch import Batch, Views
from openjepa.masks import sample_masks
from openjepa.recipe.views import Mask
from tests.models import RATES
from tests.parity.equations import Setup, attention, encode, layer_norm, linear, norm
from tests.parity.networks import HEADS, PATCH, draw, make_double, part

GRID, EPS, GROUPS, KERNEL = (4, 4), 1e-5, 4, 3
SETUP = Setup(GRID, PATCH, HEADS, 1, True, True, True, True, True)
MASK = Mask(sampler="inverse_block", per_view=3, num_contexts=2, context_scale=(0.2, 0.3), target_scale=(0.4, 0.8))


def run_layers(image, weights):
    """The output of every layer on all patches of an image, without the last norm."""
    kept = weights | {"norm.weight": torch.ones(16), "norm.bias": torch.zeros(16)}
    first = {key: value for key, value in kept.items() if not key.startswith("blocks.")}
    tokens, outputs = None, []
    for layer in range(2):
        name = f"blocks.{layer}"
        if tokens is None:
            tokens = embed(image, first)
        tokens = tokens + attention(norm(tokens, weights, f"{name}.norm1"), weights, f"{name}.attn", HEADS)
        hidden = linear(norm(tokens, weights, f"{name}.norm2"), weights, f"{name}.mlp.fc1")
        tokens = tokens + linear(hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2, weights, f"{name}.mlp.fc2")
        outputs.append(tokens)
    return outputs


def embed(image, weights):
    kernel, tokens = weights["patch_embed.proj.weight"], []
    for patch in range(16):
        top, left = PATCH * (patch // 4), PATCH * (patch % 4)
        pixels = image[:, top : top + PATCH, left : left + PATCH]
        tokens.append((kernel * pixels).sum((1, 2, 3)) + weights["patch_embed.proj.bias"] + weights["pos_embed"][0, patch])
    return torch.stack(tokens)


def make_targets(image, weights):
    """Section 3.1: each layer's channels normalised over the patches, the mean of layers, normalised over the width."""
    total = torch.zeros(16, 16, dtype=torch.float64)
    for tokens in run_layers(image, weights):
        centred = tokens - tokens.mean(0)
        total += centred / (centred.square().mean(0) + EPS).sqrt() / 2
    return layer_norm(total, EPS)


def decode(tokens, visible, weights):
    """Grouped convolutions written as sums over a patch's neighbours; hidden patches are 0 without noise."""
    grid = torch.zeros(4, 4, 16, dtype=torch.float64)
    for token, patch in zip(tokens, visible, strict=True):
        grid[patch // 4, patch % 4] = token
    for layer in range(2):
        kernel, bias = weights[f"layers.{layer}.weight"], weights[f"layers.{layer}.bias"]
        size = 16 // GROUPS
        out = bias.expand(4, 4, 16).clone()
        for row in range(4):
            for column in range(4):
                for down in range(-1, 2):
                    for across in range(-1, 2):
                        if 0 <= row + down < 4 and 0 <= column + across < 4:
                            near = grid[row + down, column + across]
                            for channel in range(16):
                                group = channel // size
                                taps = kernel[channel, :, down + 1, across + 1]
                                out[row, column, channel] += (taps * near[group * size : (group + 1) * size]).sum()
        normed = layer_norm(out, EPS)
        grid = grid + normed * (1 + torch.erf(normed / math.sqrt(2))) / 2
    return linear(grid.view(16, 16), weights, "output_proj")


def test_the_loss_is_the_papers():
    method = make_double(
        "data2vec", model__depth=2, method__averaged_layers=2, method__noise=0.0, method__decoder__width=16,
        method__decoder__depth=2,
    )  # fmt: skip
    images, masks = draw(2, 1, 16, 16, seed=1), sample_masks(MASK, GRID, 6, seed=0, step=0)
    assert len(set(masks.context_lengths.tolist())) > 1
    loss, metrics = method(Batch(0, {"main": Views(images[:, None], masks)}, torch.arange(2)), RATES)
    errors, goals = [], []
    context, target, decoder = (part(method, name) for name in ("context_encoder", "target_encoder", "decoder"))
    for number in range(6):
        image = images[number // 3]
        visible = masks.context_idx[number, : masks.context_lengths[number]].tolist()
        hidden = masks.target_idx[number, 0, : masks.target_lengths[number, 0]].tolist()
        assert sorted(visible + hidden) == list(range(16))
        predictions = decode(encode(image, visible, context, SETUP), visible, decoder)
        wanted = make_targets(image, target)
        errors += [(predictions[patch] - wanted[patch]).square().mean() for patch in hidden]
        goals += [wanted[patch] for patch in hidden]
    assert float(loss.detach()) == pytest.approx(float(sum(errors) / len(errors)), rel=1e-9)
    goals = torch.stack(goals)
    explained = 1 - float(sum(errors) / len(errors)) / float((goals - goals.mean(0)).square().mean())
    assert float(metrics["explained_variance"]) == pytest.approx(explained, rel=1e-6)


def test_noise_is_what_the_decoder_finds_at_hidden_patches():
    """With noise, another draw is another prediction; without, the same."""
    decoder = make_double("data2vec").decoder
    tokens, visible = draw(1, 2, 16), torch.tensor([[0, 5]])
    found = {noise: [decoder(tokens, visible, noise) for _ in range(2)] for noise in (0.0, 0.5)}
    assert torch.equal(*found[0.0]) and not torch.equal(*found[0.5])


def test_padding_learns_nothing():
    """Contexts of unequal length together give the gradients that they give one by one, where nothing is padded."""
    method = make_double("data2vec", method__noise=0.0)
    images, masks = draw(2, 1, 16, 16, seed=1), sample_masks(MASK, GRID, 6, seed=0, step=0)
    method(Batch(0, {"main": Views(images[:, None], masks)}, torch.arange(2)), RATES)[0].backward()
    together = {name: weight.grad.clone() for name, weight in method.named_parameters() if weight.grad is not None}
    method.zero_grad()
    for number in range(6):
        alone = Views(images[number // 3][None, None], masks.take(number, number + 1))
        share = int(masks.target_lengths[number].sum()) / int(masks.target_lengths.sum())
        (share * method(Batch(0, {"main": alone}, torch.arange(1)), RATES)[0]).backward()
    for name, gradient in together.items():
        torch.testing.assert_close(method.get_parameter(name).grad, gradient, rtol=1e-9, atol=1e-12)
