"""Nobody waits for a GPU in a step: asked of the meta device, which has no answers, and of a GPU where there is one."""

from contextlib import nullcontext

import pytest
import torch

from openjepa.data.loader import Batch
from openjepa.engine.optim import momentum_where
from openjepa.engine.prefetch import Answer, place_ahead
from openjepa.masks import sample_masks
from openjepa.recipe.files import build_recipe
from openjepa.training import trainer as train
from openjepa.training.build import make_trainer

VALUES = {
    "data": {"image_size": 32, "channels": 1, "batch_size": 6},
    "model": {
        "width": 32,
        "depth": 2,
        "heads": 2,
        "patch_size": 4,
        "predictor_width": 16,
        "predictor_depth": 2,
        "predictor_heads": 2,
    },
    "optim": {"clip_grad_norm": 1.0},
}
SMALL = {"sampler": "union", "context_scale": [0.05, 0.15], "target_scale": [0.05, 0.15]}
RECIPES = {
    "paper": {"train": {"accumulation_steps": 2}},
    "regularised": {"method": {"regularizer": "sigreg", "regularizer_weight": 0.1}},
    "batch-normed": {"method": {"target_norm": "batch", "regularizer": "vicreg", "regularizer_weight": 0.1}},
    "seed": {"mask": SMALL, "method": {"target_input": "patches", "predict": "joint", "loss": "mse"}},
    "mae": {"method": {"name": "mae"}, "mask": SMALL | {"sampler": "random"}, "train": {"accumulation_steps": 2}},
    "pca": {"method": {"name": "mae", "targets": "pca", "target_norm": "none"}},
}


def make(name, device="cpu"):
    recipe = build_recipe(VALUES | RECIPES[name] | {"train": RECIPES[name].get("train", {}) | {"device": device}})
    images = torch.randint(0, 256, (6, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    masks = sample_masks(recipe.mask, recipe.grid, 6, seed=0, step=0)
    return make_trainer(recipe, [0.5], [0.25], 100, "fp32"), Batch(0, images, masks, torch.arange(6))


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_asks_its_device_nothing(name, monkeypatch):
    """On meta there are shapes and no numbers: whatever asks for a number, or for a shape that depends on one, fails."""
    trainer, batch = make(name)
    for holder in (torch, train):  # of which meta has none
        monkeypatch.setattr(holder, "autocast", lambda *_given, **_named: nullcontext())
    trainer.device = torch.device("meta")
    trainer.method.to("meta")
    trainer.weights = [weight for weight in trainer.method.parameters() if weight.requires_grad]
    trainer.mean, trainer.std = trainer.mean.to("meta"), trainer.std.to("meta")
    metrics = trainer.accumulate_gradients(batch)
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
    "random, joint": {"mask": EVEN, "method": {"predict": "joint"}},
    "random, per block": {"mask": EVEN, "method": {"predict": "per_block"}},
    "mae": {"mask": EVEN, "method": {"name": "mae"}},
}


@pytest.mark.parametrize("name", [*UNPADDED, "paper"])
def test_attention_gets_a_mask_only_where_something_is_padded(name, monkeypatch):
    """Flash attention takes none."""
    masks = []

    def record(_checkpointing, layer, tokens, mask):
        masks.append(mask)
        return layer(tokens) if mask is None else layer(tokens, attn_mask=mask)

    monkeypatch.setattr("openjepa.nn.encoder.call_layer", record)
    monkeypatch.setitem(RECIPES, name, (RECIPES | UNPADDED)[name])
    trainer, batch = make(name)
    trainer.accumulate_gradients(batch)
    assert masks
    assert any(mask is not None for mask in masks) == (name == "paper")
