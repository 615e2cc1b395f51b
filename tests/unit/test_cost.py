"""FLOPs in closed form against PyTorch's counter, which watches the products that a step really does."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from openjepa.masks import sample_masks
from openjepa.methods import IJEPA
from openjepa.methods.cost import count_flops
from openjepa.methods.make import make_method
from openjepa.recipe.files import load_recipe
from openjepa.recipe.sections import Mask, Method, Model

MODEL = {"width": 64, "depth": 3, "heads": 4, "patch_size": 4, "predictor_width": 32, "predictor_depth": 2, "predictor_heads": 4}
UNION = Mask(sampler="union", num_contexts=3, context_scale=(0.1, 0.2), num_targets=2, target_scale=(0.1, 0.15))


@pytest.mark.parametrize("positions", ["own", "projected"])
@pytest.mark.parametrize("predict", ["joint", "per_block"])
@pytest.mark.parametrize("target_input", ["image", "patches"])
def test_the_count_is_what_one_image_takes(target_input, predict, positions):
    """One image and blocks of one length, so that nothing is padded. The counter also sees patches that are embedded and not
    kept, and no image needs a gradient: that much is taken off, in closed form."""
    torch.manual_seed(0)
    method = IJEPA(
        (40, 48), 2, Model(**MODEL, predictor_positions=positions), UNION, Method(target_input=target_input, predict=predict)
    )
    masks = next(
        drawn
        for drawn in (sample_masks(UNION, (10, 12), 1, seed=0, step=step) for step in range(1000))
        if len(set(drawn.target_lengths.flatten().tolist())) == 1
    )
    images = torch.randn(1, 2, 40, 48)
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", dtype=torch.bfloat16):
        method(images, masks)[0].backward()
    flops = count_flops(method, masks)
    context, targets = int(masks.context_lengths.sum()), int(masks.target_lengths.sum())
    embed = 2 * (2 * 4 * 4) * 64
    not_kept = 2 * (120 - context) + (120 - targets if target_input == "patches" else 0)
    assert sum(flops.values()) == counter.get_total_flops() - not_kept * embed


def test_mae_with_a_regulariser_pays_for_one_encoder_and_a_decoder():
    """The recipe that auto starts from on a CPU; the regulariser's products count nothing, as losses do."""
    recipe = load_recipe("small_10k")
    method = make_method(recipe)
    masks = sample_masks(recipe.mask, recipe.grid, 1, seed=0, step=0)
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", dtype=torch.bfloat16):
        predictions = method.predict(method.encode_context(torch.randn(1, 3, 64, 64), masks), masks)
        predictions.sum().backward()
    flops = count_flops(method, masks)
    not_kept = 2 * (64 - int(masks.context_lengths.sum())) * 2 * (3 * 8 * 8) * 192
    assert set(flops) == {"context", "predictor"}
    assert sum(flops.values()) == counter.get_total_flops() - not_kept


def test_parts_grow_as_they_should():
    """Twice the images cost twice as much; a target costs the predictor alone, where the whole image is encoded anyway."""
    method = IJEPA((40, 48), 2, Model(**MODEL), UNION, Method(target_input="image", predict="joint"))
    masks = sample_masks(UNION, (10, 12), 2, seed=0, step=0)
    both, halves = count_flops(method, masks), [count_flops(method, half) for half in masks.split(2)]
    assert all(value == pytest.approx(sum(half[part] for half in halves)) for part, value in both.items())
    assert set(both) == {"context", "target", "predictor"}
