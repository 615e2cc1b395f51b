"""Every row of METHODS keeps one contract: padding reaches no loss, gradients reach every weight, a state goes round."""

import typing

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from openjepa.masks import sample_masks
from openjepa.methods import METHODS, Method
from openjepa.nn.encoder import VisionTransformer, make_layers
from openjepa.recipe import files, sections

SHAPE = sections.Model(width=32, depth=2, heads=2, patch_size=4, predictor_width=16, predictor_depth=2, predictor_heads=2)
SIZE, CHANNELS = (32, 40), 2
UNEQUAL = sections.Mask(sampler="union", num_contexts=3, context_scale=(0.05, 0.15), num_targets=2, target_scale=(0.05, 0.15))
NUM_IMAGES = 6
METRICS = {  # a run, its health and its report read these
    "loss", "prediction_loss", "explained_variance", "explained_content", "content_frac", "context_tokens", "target_tokens"
}  # fmt: skip
SETTINGS = [
    {}, {"target_norm": "none"}, {"target_norm": "batch"}, {"target_input": "patches"}, {"target_layers": 2},
    {"targets": "pooled"}, {"targets": "pca", "target_norm": "none"},
    *({"regularizer": term, "regularizer_weight": 0.5, "regularizer_on": place} for term in ("vicreg", "sigreg")
      for place in ("pooled", "tokens", "predictions")),
]  # fmt: skip

pytestmark = pytest.mark.parametrize("name", METHODS)


def make(name, seed=0, checkpointing="none", **settings) -> Method:
    torch.manual_seed(seed)
    return METHODS[name](SIZE, CHANNELS, SHAPE, UNEQUAL, sections.Method(name=name, **settings), checkpointing)


def draw(method, num_images=NUM_IMAGES):
    images = torch.randn(num_images, CHANNELS, *SIZE, generator=torch.Generator().manual_seed(1))
    masks = sample_masks(UNEQUAL, method.context_encoder.grid, num_images, seed=1, step=2)
    assert len(set(masks.context_lengths.tolist())) > 1  # else there would be nothing to pad
    return images, masks


def values(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_recipe_can_name_it(name):
    assert set(METHODS) == set(typing.get_args(sections.Method.model_fields["name"].annotation))
    assert files.build_recipe({"method": {"name": name}}).method.name == name


def test_loss_and_metrics(name):
    method = make(name)
    images, masks = draw(method)
    loss, metrics = method(images, masks)
    assert loss.requires_grad
    assert metrics.keys() >= METRICS
    assert all(value.ndim == 0 and bool(value.isfinite()) and not value.requires_grad for value in metrics.values())
    assert metrics["loss"] == loss
    assert float(metrics["explained_variance"]) < 1
    assert float(metrics["content_frac"]) >= 0
    assert float(metrics["context_tokens"]) == pytest.approx(float(masks.context_mask.sum()) / NUM_IMAGES)
    assert float(metrics["target_tokens"]) == pytest.approx(float(masks.target_mask.sum()) / NUM_IMAGES)


def test_without_masks_they_come_from_torchs_generator(name):
    method = make(name)
    images, _ = draw(method)
    losses = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        losses.append(float(method(images)[0].detach()))
    assert losses[0] == losses[1] != losses[2]


def test_gradients_reach_every_trainable_weight_and_no_other(name):
    method = make(name)
    method(*draw(method))[0].backward()
    for weight_name, weight in method.named_parameters():
        reached = weight.grad is not None and bool(weight.grad.abs().sum() > 0)
        assert reached == weight.requires_grad, weight_name
        if weight.requires_grad:  # engine/optim.py and weights/load.py go by these names
            assert weight_name.startswith(("context_encoder.", "predictor.")), weight_name


@pytest.mark.parametrize("regularizer", ["vicreg", "sigreg"])
def test_a_regulariser_acts(name, regularizer):
    plain, regularised = make(name), make(name, regularizer=regularizer, regularizer_weight=0.5)
    images, masks = draw(plain)
    loss = plain(images, masks)[0]
    torch.manual_seed(0)
    total, metrics = regularised(images, masks)
    torch.testing.assert_close(total, loss + 0.5 * metrics["regularizer"])
    torch.testing.assert_close(metrics["prediction_loss"], loss)
    assert float(metrics["regularizer"]) > 0


def test_activation_checkpointing_keeps_less_and_changes_no_gradient(name):
    """In float32 with timm's layers, in bf16 with the unpadded ones; selective keeps products and drops the rest."""
    for reduced in (False, True):
        kept, gradients = zip(
            *(keep_for_backward(make(name, checkpointing=level), reduced) for level in ("none", "selective", "full")), strict=True
        )
        assert kept[1] < 0.7 * kept[0]
        assert kept[2] < 0.4 * kept[0]  # encoder and predictor both
        assert kept[2] < 0.7 * kept[1]
        for level in (1, 2):
            for first, second in zip(gradients[0], gradients[level], strict=True):
                torch.testing.assert_close(first, second)


class Storages(TorchDispatchMode):
    """Every piece of memory that an operation gave."""

    def __init__(self):
        super().__init__()
        self.sizes = {}

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        given = operation(*arguments, **(named or {}))
        for value in tree_leaves(given):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                self.sizes[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return given

    def alive(self):
        return sum(size for reference, size in self.sizes.values() if not reference.expired())


def keep_for_backward(method, reduced):
    """How many bytes are alive between the forward and the backward pass, and the gradients."""
    images, masks = draw(method)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=reduced), Storages() as storages:
        loss, _ = method(images, masks)
    kept = storages.alive()
    loss.backward()
    return kept, [weight.grad for weight in method.parameters() if weight.requires_grad]


def test_every_weight_is_initialised(name, monkeypatch):
    """Weights filled with NaN before initialisation would stay NaN if it forgot one."""

    def poison(self):
        with torch.no_grad():
            for weight in self.parameters(recurse=False):
                weight.fill_(float("nan"))

    for layer in (torch.nn.Linear, torch.nn.LayerNorm, torch.nn.Conv2d):
        monkeypatch.setattr(layer, "reset_parameters", poison)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: empty(*shape, **options).fill_(float("nan")))
    assert any(bool(weight.isnan().all()) for weight in make_layers(8, 1, 2, 4.0).parameters())  # the poison works
    assert all(bool(weight.isfinite().all()) for weight in make(name).state_dict().values())


def test_the_encoder_draws_its_weights_first(name):
    """The untrained encoder that a run is compared with is made from the run's seed alone."""
    torch.manual_seed(3)
    untrained = VisionTransformer(SIZE, SHAPE.patch_size, CHANNELS, SHAPE.encoder_shape)
    assert_same(values(make(name, seed=3).context_encoder), values(untrained))


@pytest.mark.parametrize("predict", ["joint", "per_block"])
@pytest.mark.parametrize("loss", ["mse", "smooth_l1"])
def test_a_batch_is_the_mean_over_target_tokens_of_its_images_alone(name, predict, loss):
    """Alone, an image's context has no padding."""
    method = make(name, predict=predict, loss=loss)
    images, masks = draw(method)
    with torch.no_grad():
        for weight in method.parameters():  # fresh weights attend to everything alike, and would hardly show padding
            weight.mul_(8 if weight.requires_grad and weight.ndim > 1 else 1)
        whole = method(images, masks)[0]
        alone = [
            (method(images[i : i + 1], part)[0], int(part.target_lengths.sum())) for i, part in enumerate(masks.split(NUM_IMAGES))
        ]
    expected = sum(float(value) * tokens for value, tokens in alone) / sum(tokens for _, tokens in alone)
    assert float(whole) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_accumulation_is_refused_exactly_where_parts_are_not_the_batch(name, settings):
    """The loss of a batch is the mean of its parts', by their real target tokens, or no recipe asks for parts."""
    values = {"method": {"name": name} | settings, "data": {"batch_size": NUM_IMAGES}}
    try:
        files.build_recipe(values)
    except ValueError:
        return  # a setting of another method
    whole, parts = make(name, **settings), make(name, **settings)
    images, masks = draw(whole)
    with torch.no_grad():
        torch.manual_seed(1)
        expected = float(whole(images, masks)[0])
        torch.manual_seed(1)
        losses = [float(parts(*part)[0]) for part in zip(images.split(2), masks.split(3), strict=True)]
    tokens = [int(part.target_lengths.sum()) for part in masks.split(3)]
    found = sum(loss * count for loss, count in zip(losses, tokens, strict=True)) / sum(tokens)
    if found == pytest.approx(expected, rel=1e-5):
        assert files.build_recipe(values | {"train": {"accumulation_steps": 3}})
    else:
        with pytest.raises(ValueError, match="train.accumulation_steps 3") as caught:
            files.build_recipe(values | {"train": {"accumulation_steps": 3}})
        key = next(key for key in ("targets", "regularizer", "target_norm") if key in settings)
        assert f"method.{key} {settings[key]}" in str(caught.value)
        assert "train.accumulation_steps 1" in str(caught.value) and "train.activation_checkpointing" in str(caught.value)


def test_update_target_moves_the_target_encoder_alone(name):
    method = make(name)
    with torch.no_grad():
        for weight in method.context_encoder.parameters():
            weight.add_(1.0) if weight.requires_grad else None
    before = values(method)
    method.update_target(1.0)
    assert_same(values(method), before)
    method.update_target(0.0)
    moved = {key for key, value in values(method).items() if not torch.equal(value, before[key])}
    assert all(key.startswith("target_encoder.") for key in moved)
    if "target" in method.encoders():
        assert moved
        assert_same(values(method.encoders()["target"]), values(method.context_encoder))


def test_state_goes_round(name):
    first, second = make(name, seed=1), make(name, seed=2)
    images, masks = draw(first)
    assert not torch.equal(first(images, masks)[0], second(images, masks)[0])
    second.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(first(images, masks)[0], second(images, masks)[0])


def test_encoders_can_be_used_afterwards(name):
    method = make(name)
    encoders = method.encoders()
    assert encoders["context"] is method.context_encoder
    assert set(encoders) <= {"context", "target"}
    for part, vit in encoders.items():
        assert getattr(method, f"{part}_encoder") is vit  # the name under which checkpoints have it
        assert vit(torch.randn(2, CHANNELS, *SIZE)).shape == (2, 80, 32)


def test_it_learns_one_batch(name):
    method = make(name)
    noise, masks = draw(method)
    images = torch.nn.functional.avg_pool2d(noise, 9, 1, 4) * 9  # smooth, so that a patch tells of its neighbours
    optimizer = torch.optim.AdamW([weight for weight in method.parameters() if weight.requires_grad], lr=1e-2)
    losses = []
    for _ in range(100):
        loss, metrics = method(images, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.update_target(1.0)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert float(metrics["explained_variance"]) > 0.1
