"""FLOPs in closed form against PyTorch's counter, which watches the products that a step really does."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from openjepa.data.batch import Batch, Views
from openjepa.masks import Masks, sample_masks
from openjepa.methods.make import make_method
from openjepa.recipe.edit import with_changes
from openjepa.recipe.files import load_recipe
from openjepa.recipe.methods import SECTIONS, Masked
from openjepa.recipe.views import Mask
from openjepa.training import cost
from openjepa.training.cost import count_flops, count_parts
from tests.models import RATES, call, small_method, small_recipe

SHAPE = {"data__image_size": (40, 48), "data__channels": 2, "model__width": 64, "model__heads": 4}  # 10 x 12 patches
UNION = {"sampler": "union", "num_contexts": 3, "context_scale": (0.1, 0.2), "num_targets": 2, "target_scale": (0.1, 0.15)}


def draw_even(mask: Mask, grid: tuple[int, int]) -> Masks:
    """Of one image, with blocks of one length, so that nothing is padded."""
    drawn = (sample_masks(mask, grid, 1, seed=0, step=step) for step in range(1000))
    return next(masks for masks in drawn if len(set(masks.target_lengths.flatten().tolist())) == 1)


@pytest.mark.parametrize("positions", ["own", "projected"])
@pytest.mark.parametrize("predict", ["joint", "per_block"])
@pytest.mark.parametrize("target_input", ["image", "patches"])
def test_the_count_is_what_one_image_takes(target_input, predict, positions):
    """The counter also sees patches that are embedded and not kept: that much is taken off, in closed form."""
    own = {"method__target_input": target_input, "method__predict": predict, "method__predictor__positions": positions}
    method = small_method(seed=0, **SHAPE, **own)
    masks = draw_even(Mask(**UNION), (10, 12))
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", dtype=torch.bfloat16):
        call(method, torch.randn(1, 2, 40, 48), masks)[0].backward()
    flops = count_parts(method, masks)
    context, targets = int(masks.context_lengths.sum()), int(masks.target_lengths.sum())
    not_kept = 2 * (120 - context) + (120 - targets if target_input == "patches" else 0)
    assert sum(flops.values()) == counter.get_total_flops() - not_kept * 2 * (2 * 4 * 4) * 64
    assert set(flops) == {"context", "target", "predictor"}


def test_mae_with_a_regulariser_pays_for_one_encoder_and_a_decoder():
    """The recipe that auto starts from on a CPU; the regulariser's products count nothing, as losses do."""
    recipe = load_recipe("small_10k")
    method = make_method(recipe)
    masks = sample_masks(recipe.mask, recipe.grid, 1, seed=0, step=0)
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", dtype=torch.bfloat16):
        predictions = method.predict(method.encode_context(torch.randn(1, 3, 64, 64), masks), masks)
        predictions.sum().backward()
    flops = count_parts(method, masks)
    not_kept = 2 * (64 - int(masks.context_lengths.sum())) * 2 * (3 * 8 * 8) * 192
    assert set(flops) == {"context", "predictor"}
    assert sum(flops.values()) == counter.get_total_flops() - not_kept


def test_parts_grow_as_they_should():
    """Twice the images cost twice as much; a target costs the predictor alone, where the whole image is encoded anyway."""
    method = small_method(**SHAPE, method__predict="joint")
    masks = sample_masks(Mask(**UNION), (10, 12), 2, seed=0, step=0)
    both, halves = count_parts(method, masks), [count_parts(method, half) for half in masks.split(2)]
    assert all(value == pytest.approx(sum(half[part] for half in halves)) for part, value in both.items())


@pytest.mark.parametrize("target_input", ["image", "patches"])
def test_a_run_is_counted_by_the_mean_over_its_masks(monkeypatch, target_input):
    """Image by image: each alone has no padding but within its blocks."""
    monkeypatch.setattr(cost, "COUNTED_IMAGES", 5)
    recipe = small_recipe(**SHAPE, views__main__mask=UNION, method__target_input=target_input)
    method = make_method(recipe)
    drawn = sample_masks(recipe.mask, recipe.grid, 5, seed=recipe.train.seed, step=0)
    alone = [sum(count_parts(method, masks).values()) for masks in drawn.split(5)]
    assert count_flops(method, recipe) == pytest.approx(sum(alone) / 5)


def test_what_saves_memory_or_keeps_from_collapse_counts_nothing():
    plain = small_recipe("mae", **SHAPE)
    base = count_flops(make_method(plain), plain)
    for changes in (
        {"train.activation_checkpointing": "full"},
        {"method.regularizer": {"name": "sigreg", "weight": 0.3, "acts_on": "tokens"}},
    ):
        recipe = with_changes(plain, changes)
        assert count_flops(make_method(recipe), recipe) == base


@pytest.mark.parametrize(("name", "num_views"), [("supervised", 1), ("simclr", 2)])
def test_every_view_counts(name, num_views):
    """A classifier sees one view of an image, SimCLR two; the comparison of its views is the loss's, and counts nothing."""
    recipe = small_recipe(name, **SHAPE)
    method = make_method(recipe, num_classes=7)
    batch = Batch(0, {"main": Views(torch.randn(1, num_views, 2, 40, 48))}, torch.zeros(1, dtype=torch.int64), torch.tensor([3]))
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", dtype=torch.bfloat16):
        method(batch, {})[0].backward()
    compared = (3 * 2 * num_views**2 + 2 * 2) * 128 if name == "simclr" else 0  # by the loss, and by what is measured of pairs
    assert count_flops(method, recipe) == pytest.approx(counter.get_total_flops() - compared, rel=1e-12)


@pytest.mark.parametrize(
    "name", [name for name, section in SECTIONS.items() if not (issubclass(section, Masked) or section.NEEDS_OBJECTS)]
)
def test_targets_heads_and_small_views_count(name):
    """What a loss multiplies counts nothing. No groups: the counter takes gradients of grouped convolutions for whole ones."""
    groups = {"method__decoder__groups": 1} if name == "data2vec" else {}
    recipe = small_recipe(name, data__image_size=32, model__patch_size=4, **groups)
    method, views = make_method(recipe, num_classes=5), {}
    for group_name, group in recipe.views.items():
        images = torch.randn(4, group.count, 1, *recipe.size_of(group))
        rows = 4 * group.count * (group.mask.per_view if group.mask else 1)
        masks = None if group.mask is None else sample_masks(group.mask, recipe.grid, rows, seed=0, step=0)
        views[group_name] = Views(images, masks)
    with FlopCounterMode(display=False) as counter:
        method(Batch(0, views, torch.arange(4), torch.arange(4)), RATES)[0].backward()
    done = counter.get_total_flops() / 4
    if name == "data2vec":  # the encoder embeds hidden patches too, in each of 3 passes and their gradients, though nobody asks
        done -= 3 * 2 * (2 * 4**2 * 32) * float(views["main"].masks.target_lengths.float().mean())
    assert count_flops(method, recipe) == pytest.approx(done, rel=0.02)
