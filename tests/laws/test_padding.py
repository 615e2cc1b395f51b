"""Padding changes no result: an image alone and the same image in a batch of unequal contexts give the same numbers."""

from functools import partial

import pytest
import torch
from torch.nn import functional

from openjepa.masks import Masks, sample_masks
from openjepa.nn import vit
from openjepa.nn.recompute import call_layer
from openjepa.recipe.views import Mask
from tests.models import call, small_method

UNION = Mask(sampler="union", num_contexts=3, context_scale=(0.05, 0.15), num_targets=2, target_scale=(0.05, 0.15))


def one(masks: Masks, image: int) -> Masks:
    """One image's masks without padding along the context; padded targets stay within the image's longest block."""
    return masks.split(len(masks.context_idx))[image]


@pytest.mark.parametrize("explicit_tokens", [0, 10_000], ids=["fused attention", "explicit attention"])
@pytest.mark.parametrize("mask", [UNION, Mask()], ids=["union", "multiblock"])
@pytest.mark.parametrize("predict", ["joint", "per_block"])
@pytest.mark.parametrize("target_input", ["image", "patches"])
def test_an_image_alone_equals_it_in_a_batch(monkeypatch, mask, predict, target_input, explicit_tokens):
    monkeypatch.setattr(vit, "EXPLICIT_ATTENTION_TOKENS", explicit_tokens)
    method = small_method(
        "ijepa", seed=0, data__image_size=(32, 40), method__predict=predict, method__target_input=target_input
    )  # fmt: skip
    images = torch.randn(6, 1, 32, 40)
    masks = sample_masks(mask, method.grid, 6, seed=1, step=2)
    assert len(set(masks.context_lengths.tolist())) > 1  # else there would be nothing to pad
    with torch.no_grad():
        context, targets = method.encode_context(images, masks), method.make_targets(images, masks)
        predictions = method.predict(context, masks)
        for image in range(6):
            alone = one(masks, image)
            context_alone = method.encode_context(images[image : image + 1], alone)
            length, blocks = int(alone.context_lengths[0]), alone.target_idx.shape[2]
            assert context_alone.shape[1] == length
            real = alone.target_mask[0]
            torch.testing.assert_close(context[image, :length], context_alone[0], rtol=1e-4, atol=1e-5)
            targets_alone = method.make_targets(images[image : image + 1], alone)
            torch.testing.assert_close(targets[image, :, :blocks][real], targets_alone[0][real], rtol=1e-4, atol=1e-5)
            predictions_alone = method.predict(context_alone, alone)
            torch.testing.assert_close(predictions[image, :, :blocks][real], predictions_alone[0][real], rtol=1e-4, atol=1e-5)


def attend_by_adding(attention, tokens, attn_mask=None, **_):
    """timm's explicit attention up to 1.0.25: whatever the mask is, it is added to the scores."""
    width = tokens.shape[-1]
    query, key, value = attention.qkv(tokens).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-2, -1) * attention.scale
    attended = (scores if attn_mask is None else scores + attn_mask).softmax(-1) @ value
    return attention.proj(attended.transpose(1, 2).reshape(*tokens.shape[:2], width))


def attend_fused(attention, tokens, attn_mask=None, **_):
    """timm's fused attention: PyTorch reads the mask, and takes part in no addition of ours."""
    query, key, value = attention.qkv(tokens).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
    return attention.proj(attended.transpose(1, 2).reshape(tokens.shape))


@pytest.mark.parametrize("attend", [attend_by_adding, attend_fused])
@pytest.mark.parametrize("reduced", [False, True], ids=["fp32", "bf16"])
def test_padding_takes_no_part_in_any_versions_attention(monkeypatch, attend, reduced):
    """Real tokens come out the same whatever stands in padding, and as they do without it."""
    torch.manual_seed(0)
    layers = vit.make_layers(32, 2, 2, 4.0)
    layers.compiled_call = call_layer  # so that a CPU in reduced precision takes the padded path as well
    for layer in layers:
        monkeypatch.setattr(layer.attn, "forward", partial(attend, layer.attn))
    mask = torch.arange(7) < torch.tensor([[7], [3], [5]])
    tokens = torch.randn(3, 7, 32)
    other = torch.where(mask[..., None], tokens, 50 * torch.randn(3, 7, 32))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=reduced):
        first, second = (vit.run_layers(layers, given, mask) for given in (tokens, other))
        alone = [vit.run_layers(layers, tokens[[row], : int(mask[row].sum())], None)[0] for row in range(3)]
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if reduced else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(first[mask], second[mask], rtol=0, atol=0)
    torch.testing.assert_close(first[mask], torch.cat(alone), **tolerance)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "ijepa", "method__target_input": "image"},
        {"method": "ijepa", "method__target_input": "patches"},
        {"method": "ijepa", "method__regularizer": {"name": "vicreg", "weight": 0.3, "acts_on": "tokens"}},
        {"method": "mae", "method__regularizer": {"name": "vicreg", "weight": 0.3, "acts_on": "pooled"}},
    ],
)
@pytest.mark.parametrize("mask", [UNION, Mask()], ids=["union", "multiblock"])
def test_what_lies_in_padding_reaches_neither_loss_nor_gradients(mask, changes):
    """Moving the padded indices elsewhere changes nothing."""
    method = small_method(**changes, seed=0)
    images = torch.randn(5, 1, 32, 32)
    masks = sample_masks(mask, method.grid, 5, seed=3, step=0)
    assert not bool(masks.context_mask.all())
    moved = Masks(
        torch.where(masks.context_mask, masks.context_idx, torch.full_like(masks.context_idx, 17)),
        masks.context_lengths,
        torch.where(masks.target_mask, masks.target_idx, torch.full_like(masks.target_idx, 3)),
        masks.target_lengths,
    )
    results = []
    for choice in (masks, moved):
        method.zero_grad()
        loss, _ = call(method, images, choice)
        loss.backward()
        results.append([loss.detach(), *(weight.grad.clone() for weight in method.parameters() if weight.requires_grad)])
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)
