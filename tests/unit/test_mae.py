"""MAE's parts against plain loops and convolution: what is hidden, what the targets are, what the encoder sees."""

import numpy as np
import pytest
import torch

from openjepa.data.batch import one_view
from openjepa.masks import sample_masks
from openjepa.nn.vit import VisionTransformer
from openjepa.recipe.edit import changed_keys
from openjepa.recipe.files import load_recipe
from openjepa.recipe.views import Mask
from openjepa.training.build import make_trainer
from tests.models import call, draw_masks, small_method, small_recipe

HALF = Mask(sampler="random", context_scale=(0.25, 0.5), target_scale=(0.25, 0.5))


@pytest.mark.parametrize("recipe", ["mae_demo", "mae_small", "mae_vit_base_16"])
def test_the_recipes_hide_all_but_a_quarter_on_every_grid(recipe):
    settings = load_recipe(recipe).mask
    for height, width in [(7, 7), (14, 14), *((side, other) for side in range(2, 12) for other in range(2, 12))]:
        masks = sample_masks(settings, (height, width), 3, seed=0, step=0)
        num_patches = height * width
        assert bool(masks.context_mask.all()) and bool(masks.target_mask.all())  # nothing is padded
        assert abs(masks.context_idx.shape[1] - num_patches / 4) <= 0.5
        for context, target in zip(masks.context_idx, masks.target_idx[:, 0], strict=True):
            assert sorted([*context.tolist(), *target.tolist()]) == list(range(num_patches))


def test_the_demo_yardstick_differs_from_the_demo_in_the_method_alone():
    demo, mae = load_recipe("demo"), load_recipe("mae_demo")
    sections = {key.partition(".")[0] for key in changed_keys(demo, mae)} - {"name", "description"}
    assert sections <= {"method", "optim", "train"}
    assert set(changed_keys(demo, mae)) & {"train.length", "train.seed", "train.precision", "optim.warmup_frac"} == set()


@pytest.mark.parametrize("kind", ["normalised_pixels", "pixels"])
def test_targets_are_the_hidden_patches_pixels(kind):
    method = small_method("mae", data__image_size=(24, 32), data__channels=3, method__targets=kind)
    masks = draw_masks(method, 4, mask=HALF)
    images = torch.randn(4, 3, 24, 32)
    targets = method.make_targets(images, masks)
    for image, indices, found, length in zip(images, masks.target_idx, targets, masks.target_lengths, strict=True):
        for idx, pixels in zip(indices[0][:length].tolist(), found[0], strict=False):
            top, left = 4 * (idx // 8), 4 * (idx % 8)
            patch = image[:, top : top + 4, left : left + 4].numpy().astype(np.float64)
            expected = patch if kind == "pixels" else (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
            np.testing.assert_allclose(pixels.numpy(), expected.ravel(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "losses", "norms"),
    [
        ("normalised_pixels", [1.143151044845581, 1.1335996389389038, 1.124436378479004],
         [0.295686274766922, 0.2594796121120453, 0.24757303297519684]),
        ("pixels", [2.061825752258301, 2.011565923690796, 1.976135015487671],
         [0.45361214876174927, 0.40627336502075195, 0.4010979235172272]),
    ],
)  # fmt: skip
def test_version_0_1s_pixels_of_ijepa_are_these_steps(kind, losses, norms):
    """Losses and gradient norms of three steps that commit c501f71 took with method.name ijepa and method.targets pixels.

    On the machine they were recorded on they are equal to the last bit.
    """
    recipe = small_recipe(
        "mae",
        data__image_size=24, data__channels=2, data__batch_size=6, model__width=24,
        views__main__mask={"sampler": "random", "context_scale": [0.25, 0.4], "target_scale": [0.5, 0.6]},
        method__targets=kind, method__predict="joint", method__loss="mse",
        method__predictor__width=12, method__predictor__depth=1,
        method__regularizer={"name": "vicreg", "weight": 0.3, "acts_on": "tokens"},
        optim__lr=1.25e-3, optim__warmup_frac=0, optim__clip_grad_norm=1.0, train__device="cpu",
    )  # fmt: skip
    trainer = make_trainer(recipe, [0.5, 0.4], [0.25, 0.2], 100, "fp32")
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        generator = torch.Generator().manual_seed(step)
        images = torch.randint(0, 256, (6, 2, 24, 24), dtype=torch.uint8, generator=generator)
        masks = sample_masks(recipe.mask, recipe.grid, 6, seed=0, step=step)
        record = trainer.step([one_view(images, masks, step=step)])
        assert float(record.metrics["loss"]) == pytest.approx(loss, rel=1e-6)
        assert float(record.grad_norm) == pytest.approx(norm, rel=1e-5)


def test_patches_are_projected_as_by_the_convolution_that_the_weights_are_named_for():
    vit = VisionTransformer((24, 32), 4, 3, (32, 1, 2, 4.0))
    images = torch.randn(2, 3, 24, 32)
    with torch.no_grad():
        expected = vit.patch_embed.proj(images).flatten(2).transpose(1, 2) + vit.pos_embed
        torch.testing.assert_close(vit.embed(images), expected)


def test_hidden_pixels_reach_targets_alone_and_visible_ones_predictions_alone():
    method = small_method("mae")
    masks = draw_masks(method, 1, mask=HALF)
    images = torch.randn(1, 1, 32, 32)
    for kind, same_predictions in (("target", True), ("context", False)):
        idx = int((masks.target_idx if kind == "target" else masks.context_idx).flatten()[0])
        changed = images.clone()
        changed[..., 4 * (idx // 8), 4 * (idx % 8)] += 3
        with torch.no_grad():
            predictions = [method.predict(method.encode_context(each, masks), masks) for each in (images, changed)]
        targets = [method.make_targets(each, masks) for each in (images, changed)]
        assert torch.equal(*predictions) == same_predictions
        assert torch.equal(*targets) != same_predictions


def test_constant_patches_are_zero_targets_and_no_nan():
    method = small_method("mae")
    masks = draw_masks(method, 2, mask=HALF)
    images = torch.full((2, 1, 32, 32), 0.3)
    assert float(method.make_targets(images, masks).abs().max()) < 1e-3
    loss, metrics = call(method, images, masks)
    loss.backward()
    assert all(bool(weight.grad.isfinite().all()) for weight in method.parameters() if weight.requires_grad)
    assert bool(metrics["explained_variance"].isfinite())
