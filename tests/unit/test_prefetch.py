"""Nobody waits for a GPU in a step: asked of the meta device, which has no answers, and of a GPU where there is one."""

from contextlib import nullcontext

import pytest
import torch

from openjepa.data.batch import Batch, Views
from openjepa.engine.optim import momentum_where
from openjepa.engine.prefetch import Answer, place_ahead
from openjepa.masks import sample_masks
from openjepa.training import trainer as train
from openjepa.training.build import list_groups, make_trainer
from tests.models import RATES, small_recipe

SMALL = {"sampler": "union", "context_scale": [0.05, 0.15], "target_scale": [0.05, 0.15]}
RECIPES = {
    "paper": {"train__accumulation_steps": 2},
    "sigreg": {"method__regularizer": {"name": "sigreg", "weight": 0.1}},
    "vicreg": {"method__regularizer": {"name": "vicreg", "weight": 0.1, "acts_on": "pooled"}},
    "seed": {
        "views__main__mask": SMALL, "method__target_input": "patches", "method__target_norm": "none", "method__predict": "joint",
        "method__loss": "mse",
    },
    "pooled": {"method__pool_targets": True},
    "mae": {"method": "mae", "views__main__mask": SMALL | {"sampler": "random"}, "train__accumulation_steps": 2},
    "pca": {"method": "mae", "method__targets": "pca"},
    "simclr": {"method": "simclr"},
    "lejepa": {"method": "lejepa"},
    "supervised": {"method": "supervised", "method__drop_path": 0.2},
}  # fmt: skip


def make(name, device="cpu"):
    recipe = small_recipe(**RECIPES[name], data__batch_size=6, optim__clip_grad_norm=1.0, train__device=device)
    generator = torch.Generator().manual_seed(0)
    groups = {}
    for group, views, size, grid in list_groups(recipe):
        images = torch.randint(0, 256, (6, views.count, 1, *size), dtype=torch.uint8, generator=generator)
        masks = None if views.mask is None else sample_masks(views.mask, grid, 6, seed=0, step=0)
        groups[group] = Views(images, masks)
    return make_trainer(recipe, [0.5], [0.25], 100, "fp32", 5), Batch(0, groups, torch.arange(6), torch.arange(6) % 5)


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_asks_its_device_nothing(name, monkeypatch):
    """On meta there are shapes and no numbers: whatever asks for a number, or for a shape that depends on one, fails."""
    trainer, batch = make(name)
    monkeypatch.setattr(train, "autocast", lambda *_: nullcontext())  # of which meta has none
    trainer.device = torch.device("meta")
    trainer.method.to("meta")
    trainer.weights = [weight for weight in trainer.method.parameters() if weight.requires_grad]
    trainer.mean, trainer.std = trainer.mean.to("meta"), trainer.std.to("meta")
    metrics = trainer.accumulate_gradients(batch, RATES)
    finite = torch.isfinite(metrics["loss"])  # and the gradients' norm, which PyTorch does not have for meta
    assert finite.is_meta and momentum_where(finite, 0.99).is_meta
    assert all(weight.grad.is_meta for weight in trainer.weights)
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(finite)  # the test works


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", RECIPES)
def test_a_gpu_is_not_waited_for(name):
    trainer, batch = make(name, "cuda")
    for step in range(2):  # the first one starts libraries
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            trainer.step([batch])
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_placed_ahead_are_the_same_ones():
    device = torch.device("cuda")
    items = [torch.full((1000, 1000), float(number)).pin_memory() for number in range(20)]
    placed = place_ahead(items, lambda item: item.to(device, non_blocking=True), device)
    sums = [(value @ value).sum() for value in placed]
    assert [float(value) for value in sums] == [1e9 * number**2 for number in range(20)]


def test_a_cpu_places_each_item_when_it_is_asked_for():
    seen = []
    placed = place_ahead(range(3), lambda item: seen.append(item) or 10 * item, torch.device("cpu"))
    assert next(placed) == 0
    assert seen == [0]
    assert list(placed) == [10, 20]


@pytest.mark.parametrize("truths", [[True, False], [False, False], [True]])
def test_an_answer_is_what_was_asked(truths):
    assert Answer(torch.tensor(truths)).read() == truths


EVEN = {"sampler": "random"}  # as many context patches in every image, and as many targets
UNPADDED = {
    "random, joint": {"views__main__mask": EVEN, "method__predict": "joint"},
    "random, per block": {"views__main__mask": EVEN, "method__predict": "per_block"},
    "mae": {"method": "mae", "views__main__mask": EVEN},
}


@pytest.mark.parametrize("name", [*UNPADDED, "paper"])
def test_attention_gets_a_mask_only_where_something_is_padded(name, monkeypatch):
    """Flash attention takes none."""
    masks = []

    def record(_checkpointing, layer, tokens, mask):
        masks.append(mask)
        return layer(tokens) if mask is None else layer(tokens, attn_mask=mask)

    monkeypatch.setattr("openjepa.nn.vit.call_layer", record)
    monkeypatch.setitem(RECIPES, name, (RECIPES | UNPADDED)[name])
    trainer, batch = make(name)
    trainer.accumulate_gradients(batch, RATES)
    assert masks
    assert any(mask is not None for mask in masks) == (name == "paper")
