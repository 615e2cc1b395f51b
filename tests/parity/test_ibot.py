"""iBOT against its equations in float64, and its loss on hidden patches against an independent one's recorded values."""

import math

import pytest
import torch

from openjepa.data.batch import Batch, Views
from openjepa.masks import sample_masks
from openjepa.methods.dino import Centre, sharpen
from openjepa.methods.ibot import distil_hidden
from openjepa.recipe.methods import HIDDEN
from tests.parity.equations import positions, transformer
from tests.parity.golden import load_golden
from tests.parity.networks import HEADS, PATCH, assign, draw, make_double, part, see, softmax

RATES = {"momentum": 0.9, "teacher_temperature": 0.05, "last_layer": 1.0}
TEMPERATURE, GRID = 0.1, (4, 4)


def see_with_masks(image, hidden, method):
    """Tokens of an image whose hidden patches are the mask token and their position."""
    weights = part(method, "context_encoder")
    kernel = weights["patch_embed.proj.weight"]
    table = positions(GRID, len(kernel))
    tokens = []
    for patch in range(GRID[0] * GRID[1]):
        top, left = PATCH * (patch // GRID[1]), PATCH * (patch % GRID[1])
        pixels = (kernel * image[:, top : top + PATCH, left : left + PATCH]).sum((1, 2, 3)) + weights["patch_embed.proj.bias"]
        tokens.append((method.mask_token.detach()[0, 0] if patch in hidden else pixels) + table[patch])
    return transformer(torch.stack(tokens), weights, HEADS)


def cross(wanted, given, centre):
    wanted = softmax(
        [(cosine - float(middle)) / RATES["teacher_temperature"] for cosine, middle in zip(wanted, centre, strict=True)]
    )
    given = softmax([cosine / TEMPERATURE for cosine in given])
    return -sum(p * math.log(q) for p, q in zip(wanted, given, strict=True))


def write_out(method, large, local, hidden) -> float:
    """Both losses, image by image. large and hidden: for each of the two views, its images and their hidden patches."""
    target, target_head, head = (part(method, name) for name in ("target_encoder", "target_head", "head"))
    centre, patch_centre = method.centre.mean, method.patch_centre.mean
    views_loss, views_terms, patch_loss, num_images = 0.0, 0, 0.0, len(local)
    for image in range(num_images):
        seen = [see(views[image], target) for views in large]
        guessed = [see_with_masks(views[image], hidden[place][image], method) for place, views in enumerate(large)]
        others = [tokens.mean(0) for tokens in guessed]
        others += [see(view, part(method, "context_encoder")).mean(0) for view in local[image]]
        for place in range(2):
            wanted = assign(seen[place].mean(0), target_head)
            for other, vector in enumerate(others):
                if other != place:
                    views_loss += cross(wanted, assign(vector, head), centre)
                    views_terms += 1
            patches = hidden[place][image]
            losses = [
                cross(assign(seen[place][patch], target_head), assign(guessed[place][patch], head), patch_centre)
                for patch in patches
            ]
            patch_loss += sum(losses) / len(losses)
    return views_loss / views_terms + 0.7 * patch_loss / (2 * num_images)


def test_the_loss_is_the_papers():
    """Every view is masked, with unequal numbers of hidden patches."""
    method = make_double("ibot", method__masked_frac=1.0, method__patch_weight=0.7)
    with torch.no_grad():
        method.centre.mean.copy_(0.1 * draw(24, seed=4))
        method.patch_centre.mean.copy_(0.1 * draw(24, seed=5))
    large, local = [draw(3, 1, 16, 16, seed=seed) for seed in (1, 2)], draw(3, 2, 1, 16, 16, seed=3)
    masks = [sample_masks(HIDDEN, GRID, 3, seed=0, step=step) for step in (0, 1)]
    hidden = [[set(row[0, : int(length)].tolist()) for row, length in zip(mask.target_idx, mask.target_lengths, strict=True)]
              for mask in masks]  # fmt: skip
    assert len({len(patches) for view in hidden for patches in view}) > 1
    views = {name: Views(images[:, None], mask) for name, images, mask in zip(("first", "second"), large, masks, strict=True)}
    batch = Batch(0, views | {"local": Views(local)}, torch.arange(3))
    loss = method(batch, RATES)[0].detach()
    assert float(loss) == pytest.approx(write_out(method, large, local, hidden), rel=1e-9)


def test_how_often_a_view_is_masked():
    """Never: no patch loss. Half the time: about half of it."""
    local = draw(40, 2, 1, 16, 16, seed=3)
    views = {name: Views(draw(40, 1, 1, 16, 16, seed=seed), sample_masks(HIDDEN, GRID, 40, seed=0, step=seed))
             for seed, name in enumerate(("first", "second"))}  # fmt: skip
    batch = Batch(0, views | {"local": Views(local)}, torch.arange(40))
    found = []
    for frac in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        found.append(float(make_double("ibot", method__masked_frac=frac)(batch, RATES)[1]["patch_loss"]))
    assert found[0] == 0
    assert 0.35 < found[1] / found[2] < 0.65


@pytest.mark.parametrize("step", ["0", "1"])
def test_loss_gradient_and_centre_on_patches_are_lightlys(step):
    """Theirs moves the centre by the hidden patches alone, as DINOv2 does; the paper's by all of them."""
    golden = load_golden("ibot")
    context, target, hidden = golden[f"{step}.context"].requires_grad_(), golden[f"{step}.target"], golden["hidden"].flatten(1)
    centre = Centre(16, 0.9)
    centre.mean.copy_(golden[f"{step}.centre_before"])
    loss = distil_hidden(sharpen(target, centre.mean, 0.05), context, hidden, 0.1)
    loss.backward()
    centre.see(target[hidden])
    centre.move(torch.tensor(True))
    torch.testing.assert_close(loss.detach(), golden[f"{step}.loss"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(context.grad, golden[f"{step}.gradient"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(centre.mean, golden[f"{step}.centre_after_of_hidden"], rtol=1e-5, atol=1e-6)
