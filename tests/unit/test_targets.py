"""Targets beyond patch features, and where the regulariser acts, against scikit-learn, hooks on the layers, and laws."""

from contextlib import nullcontext

import pytest
import torch
from sklearn.decomposition import PCA
from torch.nn import functional

from openjepa.masks import Masks
from openjepa.methods import Method
from openjepa.methods import targets as targets_module
from openjepa.nn.encoder import Encoder
from openjepa.recipe.check import build_recipe
from tests.models import call, draw_masks, small_method

TINY = {"data__image_size": 24, "model__width": 16, "model__depth": 3, "method__predictor__depth": 1}


def make(name: str = "ijepa", num_images: int = 32, **settings: object) -> tuple[Method, torch.Tensor, Masks]:
    """A tiny method with these settings of its own, images and masks."""
    method = small_method(name, seed=0, **TINY, **{f"method__{key}": value for key, value in settings.items()})
    images = torch.randn(num_images, 1, 24, 24).cumsum(-1)  # neighbouring pixels go together, as in images
    return method, images, draw_masks(method, num_images)


def cut(images: torch.Tensor, masks: Masks) -> torch.Tensor:
    """Pixels of the target patches, patch by patch."""
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).reshape(len(images), 36, 16)
    return torch.stack([image[idx] for image, idx in zip(patches, masks.target_idx, strict=True)])


def test_pixel_targets_are_the_patches_pixels():
    method, images, masks = make("mae", targets="pixels")
    assert torch.equal(method.make_targets(images, masks), cut(images, masks))
    method, images, masks = make("mae", targets="normalised_pixels")
    targets = method.make_targets(images, masks)
    torch.testing.assert_close(targets.mean(-1), torch.zeros(targets.shape[:-1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.std(-1), torch.ones(targets.shape[:-1]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 100.0], ids=["as normalised", "large"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_pca_targets_are_scikit_learns_whitened_components_in_every_precision(precision, scale):
    """In fp16 sums of squares of large values are infinite, and in bf16 small components are rounding error."""
    method, images, masks = make("mae", targets="pca")
    images = scale * images
    reduced = {"bf16": torch.bfloat16, "fp16": torch.float16}
    with torch.autocast("cpu", dtype=reduced[precision]) if precision in reduced else nullcontext():
        targets = method.make_targets(images, masks)
    rows = images.unfold(2, 4, 4).unfold(3, 4, 4).reshape(-1, 16).double().numpy()
    expected = PCA(4, whiten=True, svd_solver="full").fit(rows).transform(cut(images, masks).reshape(-1, 16).numpy())
    found = targets.reshape(-1, 4).flip(1)  # largest first
    for ours, theirs in zip(found.T, torch.from_numpy(expected).float().T, strict=True):
        sign = torch.sign((ours * theirs).sum())
        torch.testing.assert_close(sign * ours, theirs, atol=1e-3, rtol=1e-3)


def test_a_pca_of_more_patches_than_are_summed_at_once_is_the_same(monkeypatch):
    whole, images, masks = make("mae", targets="pca")
    expected = whole.make_targets(images, masks)
    monkeypatch.setattr(targets_module, "FITTED_ROWS", 100)  # of 32 x 36
    parts, _, _ = make("mae", targets="pca")
    torch.testing.assert_close(parts.make_targets(images, masks), expected, atol=1e-5, rtol=1e-5)


def test_the_pca_is_fitted_once_and_travels_with_the_weights():
    method, images, masks = make("mae", targets="pca")
    before = method.make_targets(images, masks)
    method.make_targets(3 * images + 1, masks)
    assert torch.equal(method.make_targets(images, masks), before)
    for assign in (False, True):  # into weights of its own, or into none, as evaluation loads them
        with torch.device("meta") if assign else nullcontext():
            fresh = small_method("mae", **TINY, method__targets="pca")
        fresh.load_state_dict(method.state_dict(), strict=True, assign=assign)
        fresh.make_targets(3 * images + 1, masks)
        assert torch.equal(fresh.make_targets(images, masks), before)


def test_pooled_targets_are_one_vector_a_block():
    """Each is the mean over the block's real patches, whatever stands in the padding."""
    method, images, masks = make(pool_targets=True)
    plain, _, _ = make()
    pooled, patches = method.make_targets(images, masks), plain.make_targets(images, masks)
    for image in range(4):
        for block in range(masks.target_idx.shape[1]):
            real = masks.target_mask[image, block]
            expected = patches[image, block][real].mean(0)
            torch.testing.assert_close(pooled[image, block], expected.expand_as(pooled[image, block]))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mae", {"targets": "pixels"}),
        ("mae", {"targets": "normalised_pixels"}),
        ("mae", {"targets": "pca"}),
        ("ijepa", {"pool_targets": True}),
        ("ijepa", {}),
    ],
)
def test_predictions_fit_every_kind_of_target(name, settings):
    method, images, masks = make(name, **settings)
    loss, metrics = call(method, images, masks)
    loss.backward()
    assert loss.isfinite() and metrics["explained_variance"] < 1
    assert all(weight.grad is not None for weight in method.predictor.parameters())


@pytest.mark.parametrize("place", ["pooled", "tokens"])
def test_the_regulariser_acts_where_it_is_told_to(place):
    """Scaling the rows it acts on towards one point raises the variance term; padding never counts."""
    method, images, masks = make(regularizer={"name": "vicreg", "weight": 1.0, "acts_on": place})
    context, targets = method.encode_context(images, masks), method.make_targets(images, masks)
    predictions = method.predict(context, masks)
    # By definition, from the rows picked one by one.
    if place == "pooled":
        rows = torch.stack([tokens[mask].mean(0) for tokens, mask in zip(context, masks.context_mask, strict=True)])
    else:
        rows = torch.cat([tokens[mask] for tokens, mask in zip(context, masks.context_mask, strict=True)])
    covariance = torch.cov(rows.T)
    std = (covariance.diagonal() + 1e-4).sqrt()
    term = (1 - std).clamp_min(0).mean() + (covariance - covariance.diagonal().diag()).square().sum() / 16 / 25
    loss, metrics = call(method, images, masks)
    torch.testing.assert_close(metrics["regularizer"], term.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.detach(), method.prediction_loss(predictions, targets, masks).detach() + term.detach())


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"targets": "pixels"}, ["method.targets", "belongs to method.name mae"]),
        ({"targets": "pca", "target_norm": "none"}, ["method.targets", "belongs to method.name mae"]),
        ({"name": "mae", "targets": "features"}, ["method.targets", "features", "pixels"]),
        ({"name": "mae", "targets": "pooled"}, ["method.targets", "pooled", "pixels"]),
        ({"name": "mae", "pool_targets": True}, ["method.pool_targets", "belongs to method.name ijepa"]),
        ({"name": "mae", "target_input": "patches"}, ["method.target_input", "belongs to method.name ijepa"]),
        ({"name": "mae", "momentum": {"start": 0.9}}, ["method.momentum", "belongs to method.name ijepa"]),
        ({"target_norm": "batch"}, ["method.target_norm", "batch", "layer"]),
    ],
)
def test_settings_that_do_not_fit_are_refused(method, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is looked at below)
        build_recipe({"method": method})
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["normalised_pixels", "pca"])
def test_one_value_a_patch_has_no_spread_to_divide_by(kind):
    values = {"data": {"image_size": 8, "channels": 1}, "model": {"patch_size": 1}}
    with pytest.raises(ValueError, match="more than one value a patch"):
        build_recipe(values | {"method": {"name": "mae", "targets": kind}})
    assert build_recipe(values | {"method": {"name": "mae", "targets": "pixels"}})
    assert build_recipe(values)  # features are wider


def test_pooled_features_of_several_layers_are_each_layers_mean_side_by_side():
    vit = make()[0].context_encoder
    outputs: list[torch.Tensor] = []
    for layer in vit.blocks:
        layer.register_forward_hook(lambda _layer, _args, output: outputs.append(output))
    images = torch.rand(3, 1, 24, 24)
    pooled, patches = Encoder(vit, [0.0], [1.0], num_layers=2)(images)
    expected = [functional.layer_norm(output, (16,), eps=1e-6) for output in outputs[-2:]]
    torch.testing.assert_close(pooled, torch.cat([tokens.mean(1) for tokens in expected], 1))
    torch.testing.assert_close(patches.flatten(1, 2), expected[-1])
    with pytest.raises(ValueError, match="features of 4 layers were asked for, the encoder has 3"):
        Encoder(vit, [0.0], [1.0], num_layers=4)
