"""Position tables at other sizes: against timm, Pillow and the sine itself, and by what a trained encoder makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from torch.nn import functional

from openjepa.data.batch import one_view
from openjepa.data.sample import load_sample
from openjepa.masks import sample_masks
from openjepa.nn import vit as vit_module
from openjepa.nn.encoder import Encoder
from openjepa.nn.positions import resize_positions, sine_cosine_positions
from openjepa.nn.vit import VisionTransformer
from openjepa.recipe.edit import with_changes
from openjepa.recipe.files import load_recipe
from openjepa.training.build import make_trainer

RESIZES = [((14, 14), (28, 28)), ((14, 14), (9, 9)), ((8, 6), (16, 12)), ((6, 10), (7, 7)), ((7, 7), (5, 14)), ((3, 5), (3, 8))]


@pytest.mark.parametrize(("old", "new"), RESIZES)
def test_resizing_is_timms(old, new):
    table = sine_cosine_positions(old, 64) + 0.1 * torch.randn(old[0] * old[1], 64)
    expected = resample_abs_pos_embed(table[None], list(new), list(old), num_prefix_tokens=0)[0]
    torch.testing.assert_close(resize_positions(table, old, new), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("old", "new"), RESIZES)
def test_resizing_is_pillows_bicubic(old, new):
    """Pillow's own code; its kernel widens when it shrinks, which is what antialiased means."""
    table = sine_cosine_positions(old, 8)
    resized = resize_positions(table, old, new)
    for channel in range(8):
        image = Image.fromarray(table[:, channel].reshape(old).numpy())
        expected = np.asarray(image.resize((new[1], new[0]), Image.Resampling.BICUBIC))
        np.testing.assert_allclose(resized[:, channel].reshape(new), expected, atol=2e-6)


def test_the_same_grid_is_the_same_tensor():
    table = sine_cosine_positions((8, 6), 64)
    assert resize_positions(table, (8, 6), (8, 6)) is table


@pytest.mark.parametrize("new", [(28, 28), (21, 42), (17, 15)])
def test_a_larger_table_is_the_sine_between_the_patches(new):
    """A new patch's centre lies at (i + 0.5) x old / new - 0.5 of the old grid, and the table is the formula at that fraction.

    Except at the edges, where interpolation must guess; the fastest wave, one radian a patch, is off by most.
    """
    old, width = (14, 14), 64
    resized = resize_positions(sine_cosine_positions(old, width), old, new).reshape(*new, width)
    expected = torch.empty(*new, width)
    frequencies = 10_000.0 ** -(torch.arange(width // 4) / (width // 4))
    for axis, start in ((1, 0), (0, width // 2)):  # columns first
        place = ((torch.arange(new[axis]) + 0.5) * old[axis] / new[axis] - 0.5)[:, None] * frequencies
        waves = torch.cat([place.sin(), place.cos()], dim=1)
        expected[..., start : start + width // 2] = waves if axis == 1 else waves[:, None]
    inner = tuple(slice(2 * side // 14 + 1, -(2 * side // 14 + 1)) for side in new)
    assert float((resized - expected)[inner].abs().max()) < 0.04


def test_an_encoder_at_another_size_is_timms_with_dynamic_sizes():
    """The whole encoder, square and not, against timm's own path to other image sizes."""
    torch.manual_seed(0)
    ours = VisionTransformer((32, 32), 4, 3, (48, 2, 3, 4.0)).eval()
    theirs = timm.create_model(
        "vit_base_patch16_gap_224", img_size=32, patch_size=4, embed_dim=48, depth=2, num_heads=3, num_classes=0, fc_norm=False,
        qkv_bias=True, dynamic_img_size=True,
    ).eval()  # fmt: skip
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for size in ((32, 32), (48, 48), (24, 40)):
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(ours(images), theirs.forward_features(images), atol=1e-5, rtol=1e-5)


NUM_IMAGES, STEPS = 200, 120


@pytest.fixture(scope="module")
def trained() -> Encoder:
    """A small encoder after 120 steps on 28 x 28 images: enough to explain a fifth of the targets' variance."""
    union = {"sampler": "union", "num_contexts": 4, "context_scale": [0.15, 0.2], "context_aspect": [0.75, 1.5]}
    recipe = with_changes(
        load_recipe("demo"),
        {
            "views.main.mask": union | {"num_targets": 2, "target_scale": [0.1, 0.15]},
            "model.width": 48, "model.depth": 3, "method.predictor.width": 24, "method.predictor.depth": 1,
            "method.regularizer.acts_on": "pooled", "method.momentum.start": 0.996,
            "optim.lr": 3e-3, "optim.warmup_frac": 1.5 / 80, "train.device": "cpu",
        },
    )  # fmt: skip
    images = torch.from_numpy(load_sample("train")[0].copy())[:, None]
    trainer = make_trainer(recipe, [0.29], [0.35], STEPS, "fp32")
    for step in range(STEPS):
        idx = torch.randint(0, len(images), (64,), generator=torch.Generator().manual_seed(step))
        masks = sample_masks(recipe.mask, recipe.grid, 64, seed=0, step=step)
        record = trainer.step([one_view(images[idx], masks, step=step)])
    assert float(record.metrics["explained_variance"]) > 0.2
    return Encoder(trainer.method.context_encoder, [0.29], [0.35]).eval()


def compare_sizes(encoder: Encoder, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Images at 28 x 28 against the same at another size, by cosine after the mean is taken off: of an image with itself, with
    others; how often it finds itself among 200; how often a patch finds its place among 49.
    """
    images = torch.from_numpy(load_sample("test")[0][:NUM_IMAGES].copy())[:, None].float() / 255
    with torch.no_grad():
        here = encoder(images)
        there = encoder(functional.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(0, 1))
    cosines = normalise(here.pooled, here.pooled) @ normalise(there.pooled, here.pooled).T
    patches = here.patches.flatten(1, 2)
    moved = functional.adaptive_avg_pool2d(there.patches.permute(0, 3, 1, 2), 7).permute(0, 2, 3, 1).flatten(1, 2)
    places = normalise(patches, patches) @ normalise(moved, moved).transpose(1, 2)
    own = cosines.diag()
    return (
        float(own.mean()),
        float((cosines.sum() - own.sum()) / (NUM_IMAGES * (NUM_IMAGES - 1))),
        float((cosines.argmax(0) == torch.arange(NUM_IMAGES)).float().mean()),
        float((places.argmax(2) == torch.arange(49)).float().mean()),
    )


def normalise(vectors: Tensor, reference: Tensor) -> Tensor:
    return functional.normalize(vectors - reference.flatten(0, -2).mean(0), dim=-1)


@pytest.mark.parametrize("size", [(56, 56), (40, 40), (28, 56), (56, 28), (20, 20)])
def test_a_trained_encoder_keeps_its_features_at_another_size(trained, size, monkeypatch):
    """An enlarged, stretched or shrunken image is nearer to itself than to others; with a table made afresh it is not."""
    same, other, found, placed = compare_sizes(trained, size)
    assert same > 0.95
    assert abs(other) < 0.1
    assert found > 0.25  # 1 in 200 by chance
    assert placed > 0.6  # 1 in 49
    monkeypatch.setattr(vit_module, "resize_positions", lambda table, old, new: sine_cosine_positions(new, table.shape[1]))
    same, _, found, placed = compare_sizes(trained, size)
    assert same < 0.8
    assert found < 0.1
    assert placed < 0.4
