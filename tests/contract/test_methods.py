"""Every method keeps one contract: padding reaches no loss, gradients reach every weight, a state goes round."""

import inspect
from importlib import import_module

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from openjepa.data.batch import Batch, BatchObjects, Views
from openjepa.masks import sample_masks
from openjepa.methods import Method
from openjepa.nn.vit import VisionTransformer, make_layers
from openjepa.recipe.check import build_recipe
from openjepa.recipe.edit import nest
from openjepa.recipe.methods import SECTIONS, Masked
from tests.models import RATES, SMALL_SECTIONS, draw_objects, small_method, small_recipe

SIZE, CHANNELS = (32, 40), 2
SHAPE = {"data__image_size": SIZE, "data__channels": CHANNELS}
UNEQUAL = {  # masks of many lengths
    "sampler": "union", "num_contexts": 3, "context_scale": (0.05, 0.15), "num_targets": 2, "target_scale": (0.05, 0.15)
}  # fmt: skip
NUM_IMAGES, NUM_CLASSES = 6, 5
REGULARIZERS = [
    {"name": term, "weight": 0.5, "acts_on": place} for term in ("vicreg", "sigreg") for place in ("pooled", "tokens")
]
SETTINGS = [
    {}, {"target_norm": "none"}, {"target_input": "patches"}, {"pool_targets": True}, {"targets": "pixels"}, {"targets": "pca"},
    {"temperature": 0.5}, {"label_smoothing": 0.0}, *({"regularizer": regularizer} for regularizer in REGULARIZERS),
]  # fmt: skip
MASKED = [name for name, section in SECTIONS.items() if issubclass(section, Masked)]
FOLLOWERS = ("target_encoder.", "target_projector.", "target_head.")  # what may follow the weights

every_method = pytest.mark.parametrize("name", SECTIONS)
masked_methods = pytest.mark.parametrize("name", MASKED)


def change(name, **settings):
    masks = {f"views__main__mask__{key}": value for key, value in UNEQUAL.items()} if name in MASKED else {}
    masks |= {"views__main__mask__target_scale": (0.4, 0.8)} if name == "data2vec" else {}
    return SHAPE | masks | {f"method__{key}": value for key, value in settings.items()}


def make(name, seed=0, checkpointing="none", **settings) -> Method:
    return small_method(name, seed, train__activation_checkpointing=checkpointing, **change(name, **settings))


def draw(name, num_images=NUM_IMAGES) -> Batch:
    """A batch of a method's own groups of views, with labels, which most methods leave alone."""
    recipe = small_recipe(name, **change(name))
    noise = torch.Generator().manual_seed(1)
    common = torch.randn(num_images, CHANNELS, *SIZE, generator=noise)  # what the views of an image share
    groups = {}
    for group_name, group in recipe.views.items():
        size = recipe.size_of(group)
        images = torch.nn.functional.interpolate(common, size)[:, None].expand(-1, group.count, -1, -1, -1)
        images = images + 0.3 * torch.randn(images.shape, generator=noise)
        masks = None
        if group.mask is not None:
            masks = sample_masks(group.mask, recipe.grid, num_images * group.count * group.mask.per_view, seed=1, step=2)
            assert len(set(masks.context_lengths.tolist())) > 1  # else there would be nothing to pad
        groups[group_name] = Views(images, masks)
    objects = draw_objects(num_images, SIZE) if SECTIONS[name].NEEDS_OBJECTS else None
    return Batch(2, groups, torch.arange(num_images), torch.arange(num_images) % NUM_CLASSES, objects=objects)


def take(batch, start, stop) -> Batch:
    """Some images of a batch, as a micro-batch has them."""
    groups = {}
    for name, views in batch.views.items():
        masks = views.masks
        if masks is not None:
            count = len(masks.context_idx) // len(views.images)
            masks = masks.take(start * count, stop * count)
        groups[name] = Views(views.images[start:stop], masks)
    objects = None
    if batch.objects is not None:
        objects = BatchObjects.gather(batch.objects.split()[start:stop], batch.objects.sizes[start:stop], SIZE)
    return Batch(batch.step, groups, batch.image_idx[start:stop], batch.labels[start:stop], objects=objects)


def call(method, batch):
    """The loss, with what the method draws as in every other call: the trainer seeds it by the step."""
    torch.manual_seed(1)
    return method(batch, RATES)[0]


def weigh(batch) -> int:
    """What a batch counts by beside others: its real target tokens, or its images."""
    masks = [views.masks for views in batch.views.values() if views.masks is not None]
    return int(masks[0].target_lengths.sum()) if masks else len(batch.image_idx)


def values(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@every_method
def test_a_recipe_can_name_it_and_finds_its_file(name):
    assert build_recipe({"method": {"name": name}}).method.name == name
    module = import_module(f"openjepa.methods.{name}")
    assert inspect.getdoc(module), "a method's file says which paper it is"
    assert type(make(name)).__module__ == module.__name__


@every_method
def test_loss_and_metrics(name):
    loss, metrics = make(name)(draw(name), RATES)
    assert loss.requires_grad
    assert all(value.ndim == 0 and bool(value.isfinite()) and not value.requires_grad for value in metrics.values())
    assert metrics["loss"] == loss


@masked_methods
def test_a_masked_method_says_how_much_it_explains(name):
    batch = draw(name)
    masks = batch.views["main"].masks
    _, metrics = make(name)(batch, RATES)
    assert float(metrics["explained_variance"]) < 1
    assert float(metrics["content_frac"]) >= 0
    assert float(metrics["context_tokens"]) == pytest.approx(float(masks.context_mask.sum()) / NUM_IMAGES)
    assert float(metrics["target_tokens"]) == pytest.approx(float(masks.target_mask.sum()) / NUM_IMAGES)


@every_method
def test_gradients_reach_every_trainable_weight_and_no_other(name):
    method = make(name)
    method(draw(name), RATES)[0].backward()
    for weight_name, weight in method.named_parameters():
        reached = weight.grad is not None and bool(weight.grad.abs().sum() > 0)
        assert reached == weight.requires_grad, weight_name


@every_method
def test_weight_groups_hold_every_trained_weight_once(name):
    method = make(name)
    groups = method.weight_groups()
    grouped = [weight for group in groups for weight in group.weights]
    trained = [weight for weight in method.parameters() if weight.requires_grad]
    assert len(grouped) == len({id(weight) for weight in grouped}) == len(trained)
    assert {id(weight) for weight in grouped} == {id(weight) for weight in trained}
    of_encoder = {id(weight) for group in groups if group.layers_above is not None for weight in group.weights}
    assert of_encoder == {id(weight) for weight in method.context_encoder.parameters() if weight.requires_grad}


@every_method
def test_rates_are_the_methods_own(name):
    """Each rate is a number at every place of a run, by which the method can be called and followed up."""
    method = make(name)
    for place in (0, 4.5, 9):
        rates = {key: schedule(place) for key, schedule in method.schedules(10).items()}
        assert all(isinstance(rate, float) for rate in rates.values())
        method(draw(name), rates)
        method.after_step(rates, torch.tensor(True))


@masked_methods
@pytest.mark.parametrize("regularizer", ["vicreg", "sigreg"])
def test_a_regulariser_acts(name, regularizer):
    plain, regularised = make(name), make(name, regularizer={"name": regularizer, "weight": 0.5, "acts_on": "pooled"})
    batch = draw(name)
    loss = plain(batch, RATES)[0]
    torch.manual_seed(0)
    total, metrics = regularised(batch, RATES)
    torch.testing.assert_close(total, loss + 0.5 * metrics["regularizer"])
    torch.testing.assert_close(metrics["prediction_loss"], loss)
    assert float(metrics["regularizer"]) > 0


@pytest.mark.parametrize("name", [name for name in SECTIONS if not SECTIONS[name].NEEDS_OBJECTS])  # torchvision's heads keep all
def test_activation_checkpointing_keeps_less_and_changes_no_gradient(name):
    """In float32 with timm's layers, in bf16 with the unpadded ones; selective keeps products and drops the rest."""
    for reduced in (False, True):
        levels = [make(name, checkpointing=level) for level in ("none", "selective", "full")]
        kept, gradients = zip(*(keep_for_backward(name, method, reduced) for method in levels), strict=True)
        assert kept[1] < 0.7 * kept[0]
        assert kept[2] < 0.4 * kept[0]  # encoder, and predictor where there is one
        assert kept[2] < 0.7 * kept[1]
        # Two passes of the encoder share a weight's cast where nothing is checkpointed, and add their gradients up in bf16.
        rounding = {"rtol": 0.02, "atol": 1e-3} if reduced and "local" in SECTIONS[name].VIEWS else {}
        for level in (1, 2):
            for first, second in zip(gradients[0], gradients[level], strict=True):
                torch.testing.assert_close(first, second, **rounding)


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


def keep_for_backward(name, method, reduced):
    """How many bytes are alive between the forward and the backward pass, and the gradients."""
    batch = draw(name)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=reduced), Storages() as storages:
        loss = call(method, batch)
    kept = storages.alive()
    loss.backward()
    return kept, [weight.grad for weight in method.parameters() if weight.requires_grad]


@every_method
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


@every_method
def test_the_encoder_draws_its_weights_first(name):
    """The untrained encoder that a run is compared with is made from the run's seed alone."""
    recipe = small_recipe(name, **change(name))
    torch.manual_seed(3)
    untrained = VisionTransformer(SIZE, recipe.model.patch_size, CHANNELS, recipe.model.encoder_shape)
    assert_same(values(make(name, seed=3).context_encoder), values(untrained))


@masked_methods
@pytest.mark.parametrize("predict", ["joint", "per_block"])
@pytest.mark.parametrize("loss", ["mse", "smooth_l1"])
def test_a_batch_is_the_mean_over_target_tokens_of_its_images_alone(name, predict, loss):
    """Alone, an image's context has no padding."""
    method, batch = make(name, predict=predict, loss=loss), draw(name)
    with torch.no_grad():
        for weight in method.parameters():  # fresh weights attend to everything alike, and would hardly show padding
            weight.mul_(8 if weight.requires_grad and weight.ndim > 1 else 1)
        whole = method(batch, RATES)[0]
        alone = [(method(part, RATES)[0], weigh(part)) for part in (take(batch, i, i + 1) for i in range(NUM_IMAGES))]
    expected = sum(float(value) * tokens for value, tokens in alone) / sum(tokens for _, tokens in alone)
    assert float(whole) == pytest.approx(expected, rel=1e-5)


@every_method
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_accumulation_is_refused_exactly_where_parts_are_not_the_batch(name, settings):
    """The loss of a batch is the mean of its parts', each by what it counts, or no recipe asks for parts."""
    if settings.keys() - SECTIONS[name].model_fields.keys():
        return  # a setting of another method
    asked = nest({"method.name": name, "data.batch_size": NUM_IMAGES} | SMALL_SECTIONS.get(name, {}))
    asked["method"] |= settings
    method, batch = make(name, **settings), draw(name)
    parts = [take(batch, start, start + 2) for start in range(0, NUM_IMAGES, 2)]
    with torch.no_grad():
        expected = float(call(method, batch))
        if settings.get("targets") == "pca":
            method = make(name, **settings)  # whose components are not fitted yet
        torch.manual_seed(1)
        losses = [(float(method(part, RATES)[0]), weigh(part)) for part in parts]
    found = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
    if found == pytest.approx(expected, rel=1e-5):
        assert build_recipe(asked | {"train": {"accumulation_steps": 3}})
    else:
        with pytest.raises(ValueError, match="train.accumulation_steps 3") as caught:
            build_recipe(asked | {"train": {"accumulation_steps": 3}})
        told = [str(value["name"] if isinstance(value, dict) else value) for value in (settings or {"name": name}).values()]
        assert told[0] in str(caught.value) or name in str(caught.value)
        assert "train.accumulation_steps 1" in str(caught.value) and "train.activation_checkpointing" in str(caught.value)


@every_method
def test_what_follows_the_weights_is_the_target_encoder_alone(name):
    method = make(name)
    with torch.no_grad():
        for weight in method.context_encoder.parameters():
            weight.add_(1.0) if weight.requires_grad else None
    before = values(method)
    method.after_step({"momentum": 1.0}, torch.tensor(True))
    assert_same(values(method), before)
    method.after_step({"momentum": 0.0}, torch.tensor(False))  # a step that was skipped
    assert_same(values(method), before)
    method.after_step({"momentum": 0.0}, torch.tensor(True))
    moved = {key for key, value in values(method).items() if not torch.equal(value, before[key])}
    assert all(key.startswith(FOLLOWERS) for key in moved)
    if "target" in method.encoders():
        assert moved
        assert_same(values(method.encoders()["target"]), values(method.context_encoder))


@every_method
def test_state_goes_round(name):
    first, second = make(name, seed=1), make(name, seed=2)
    batch = draw(name)
    assert not torch.equal(call(first, batch), call(second, batch))
    second.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(call(first, batch), call(second, batch))


@every_method
def test_encoders_can_be_used_afterwards(name):
    method = make(name)
    encoders = method.encoders()
    assert encoders["context"] is method.context_encoder
    assert set(encoders) <= {"context", "target"}
    for part, vit in encoders.items():
        assert getattr(method, f"{part}_encoder") is vit  # the name under which checkpoints have it
        assert vit(torch.randn(2, CHANNELS, *SIZE)).shape == (2, 80, 32)


@every_method
def test_it_learns_one_batch(name):
    method, batch = make(name), draw(name)
    # Smooth images, so that a patch tells of its neighbours.
    batch = batch.map_images(lambda noise: torch.nn.functional.avg_pool2d(noise, 9, 1, 4) * 9)
    optimizer = torch.optim.AdamW([weight for weight in method.parameters() if weight.requires_grad], lr=1e-2)
    losses, rates = [], RATES | {"teacher_temperature": 0.01}  # with sharp targets a cross-entropy can come near 0
    for _ in range(100):
        loss, metrics = method(batch, rates)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()  # and nothing follows the weights: targets stay
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    if "explained_variance" in metrics:
        assert float(metrics["explained_variance"]) > 0.1
