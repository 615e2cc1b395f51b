"""What the predictor believes, against brute force; and the law that a perfect predictor gets an image's own patches back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openjepa.data.sources import ArraySource
from openjepa.engine import neighbours
from openjepa.engine.checkpoint import write_checkpoint
from openjepa.engine.neighbours import find_neighbours
from openjepa.masks import Masks, every_patch, sample_masks
from openjepa.methods.ijepa import IJEPA
from openjepa.methods.mae import MAE
from openjepa.methods.make import make_method
from openjepa.recipe.sections import Recipe
from openjepa.report import reconstructions as beliefs
from openjepa.report.pictures import UNSEEN, draw_patches
from openjepa.report.reconstructions import encode_pool, fill_patches, show_beliefs
from openjepa.weights.load import TrainedMethod, load_method
from tests.models import small_recipe


def make_recipe(method: str = "ijepa", **changes: object) -> Recipe:
    smaller = {"data__image_size": 24, "model__width": 16, "method__predictor__width": 8, "method__predictor__depth": 1}
    return small_recipe(method, **smaller, **changes)


def make_trained(recipe: Recipe) -> TrainedMethod:
    torch.manual_seed(0)
    return TrainedMethod(make_method(recipe).eval(), recipe, [0.4], [0.3])


def make_source(count: int = 12, seed: int = 0) -> ArraySource:
    images = np.random.default_rng(seed).integers(0, 256, (count, 24, 24), dtype=np.uint8)
    return ArraySource("noise", 1, images, None, [])


def first_images(source: ArraySource, count: int) -> Tensor:
    return torch.from_numpy(source.images[:count, None].copy())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(2, 9), st.integers(0, 2**31))
def test_the_nearest_is_brute_forces(num_queries: int, num_pool: int, dim: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    queries, pool = generator.normal(size=(num_queries, dim)), generator.normal(size=(num_pool, dim))
    found = find_neighbours(torch.from_numpy(queries).float(), torch.from_numpy(pool).float(), 1).idx
    for query, (place,) in zip(queries, found.tolist(), strict=True):
        cosines = [query @ row / np.linalg.norm(query) / np.linalg.norm(row) for row in pool]
        assert cosines[place] >= max(cosines) - 1e-5


def test_parts_of_the_search_give_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, pool = torch.randn(50, 6), torch.randn(40, 6)
    whole = find_neighbours(queries, pool, 1).idx
    monkeypatch.setattr(neighbours, "MOST_SIMILARITIES", 40 * 3)
    assert find_neighbours(queries, pool, 1).idx.tolist() == whole.tolist()


@pytest.mark.parametrize("target_norm", ["none", "layer"])
@pytest.mark.parametrize("sampler", ["multiblock", "union"])
def test_a_perfect_predictor_gets_its_own_patches_back(target_norm: str, sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions equal to the targets, and the images themselves in the pool: the pictures are the images."""
    mask = {"sampler": sampler}
    mask |= {"context_scale": (0.15, 0.2), "target_scale": (0.1, 0.15)} if sampler == "union" else {}
    trained = make_trained(make_recipe(views__main__mask=mask, method__target_norm=target_norm))
    source = make_source()
    images = first_images(source, 4)
    monkeypatch.setattr(IJEPA, "predict", lambda self, _, masks: self.make_targets(beliefs._normalise(trained, images), masks))
    found = show_beliefs(trained, images, source, np.arange(12))
    assert np.array_equal(found.filled, found.images)
    others = show_beliefs(trained, images, source, np.arange(4, 12))  # only other images' patches are left
    hidden = others.target_mask.repeat(4, axis=1).repeat(4, axis=2)
    assert np.array_equal(others.filled[~hidden], others.images[~hidden])
    assert not np.array_equal(others.filled, others.images)
    assert not others.is_drawn


@pytest.mark.parametrize("target_input", ["image", "patches"])
def test_the_pool_holds_targets_and_the_pixels_they_are_of(target_input: str) -> None:
    norm = "none" if target_input == "patches" else "layer"
    trained = make_trained(make_recipe(method__target_input=target_input, method__target_norm=norm))
    source = make_source()
    tokens, patches = encode_pool(trained, source, np.arange(12))
    assert len(tokens) == len(patches)
    real = {
        source.images[image, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].tobytes()
        for image in range(12) for row in range(6) for column in range(6)
    }  # fmt: skip
    assert all(patch.numpy().tobytes() in real for patch in patches)
    assert len(tokens) == (12 * 36 if target_input == "image" else len(tokens))
    if target_input == "image":  # the plain way: encode, normalise, in order
        pixels = beliefs._normalise(trained, first_images(source, 12))
        with torch.no_grad():
            plain = trained.method.encoders()["target"](pixels).flatten(0, 1)
        plain = (plain - plain.mean(1, keepdim=True)) / (plain.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        assert torch.allclose(tokens, plain, atol=1e-4)


def test_filling_is_a_loop_over_patches() -> None:
    recipe = make_recipe()
    images = torch.randint(0, 256, (3, 2, 24, 24), dtype=torch.uint8)
    masks = sample_masks(recipe.mask, recipe.grid, 3, seed=1, step=0)
    patches = torch.randint(0, 256, (int(masks.target_mask.sum()), 2 * 16), dtype=torch.uint8)
    expected, number = images.clone(), 0
    for image in range(3):
        for block in range(masks.target_idx.shape[1]):
            for place in masks.target_idx[image, block, : masks.target_lengths[image, block]].tolist():
                row, column = divmod(place, 6)
                expected[image, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = patches[number].view(2, 4, 4)
                number += 1
    assert torch.equal(fill_patches(images, masks, patches, 4), expected)


@pytest.mark.parametrize("targets", ["pixels", "normalised_pixels", "pca"])
def test_a_predictor_of_pixels_that_is_right_draws_the_image(targets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels themselves; for principal components, of which no pixels are made, the patches that have them."""
    mask = {"sampler": "random", "context_scale": (0.25, 0.25), "target_scale": (0.75, 0.75)}
    trained = make_trained(make_recipe("mae", views__main__mask=mask, method__targets=targets, method__predict="joint"))
    images = first_images(make_source(), 3)
    pixels = beliefs._normalise(trained, images)
    monkeypatch.setattr(MAE, "predict", lambda self, _, masks: self.make_targets(pixels, masks))
    found = show_beliefs(trained, images, make_source(), np.arange(12))
    assert found.is_drawn == (targets != "pca")
    assert np.abs(found.filled.astype(int) - found.images).max() <= 1
    assert (found.context_mask ^ found.target_mask).all()


def test_a_method_is_loaded_whole_or_refused(tmp_path: Path) -> None:
    trained = make_trained(make_recipe())
    tensors = {f"method.{name}": value for name, value in trained.method.state_dict().items()}
    info = {"recipe": trained.recipe.model_dump(mode="json"), "mean": [0.4], "std": [0.3]}
    write_checkpoint(tmp_path / "whole.safetensors", tensors, info)
    loaded = load_method(tmp_path / "whole.safetensors").method
    assert all(torch.equal(value, trained.method.state_dict()[name]) for name, value in loaded.state_dict().items())
    for part in ("predictor", "target_encoder"):
        left = {name: value for name, value in tensors.items() if not name.startswith(f"method.{part}")}
        write_checkpoint(tmp_path / "part.safetensors", left, info)
        with pytest.raises(ValueError, match=f"holds no {part.replace('_', ' ')}"):
            load_method(tmp_path / "part.safetensors")


def test_hidden_patches_are_grey_and_shown_ones_as_they_are() -> None:
    image = np.random.default_rng(0).integers(0, 100, (24, 24, 1), dtype=np.uint8)
    shown = np.zeros((6, 6), dtype=bool)
    shown[2, 3] = True
    picture = draw_patches(image, shown, np.zeros_like(shown))
    times = len(picture) // 24
    small = picture[::times, ::times]
    assert np.array_equal(small[8:12, 12:16, 0], image[8:12, 12:16, 0])
    hidden = ~shown.repeat(4, axis=0).repeat(4, axis=1)
    assert (small[hidden][:, :3] == UNSEEN).all()
    outlined = draw_patches(image, np.ones_like(shown), shown)
    inside = shown.repeat(4 * times, axis=0).repeat(4 * times, axis=1)
    different = (outlined[..., :3] != draw_patches(image, np.ones_like(shown), np.zeros_like(shown))[..., :3]).any(axis=2)
    assert different.any() and not different[~inside].any()


def test_masks_of_all_patches() -> None:
    every = every_patch(2, 9)
    assert isinstance(every, Masks) and every.target_mask.all() and every.target_idx[1, 0].tolist() == list(range(9))
