"""Targets, predictions, loss and gradients against the equations, for every kind of mask, target and path through the layers.

The golden steps pin two recipes in float32. Here is what lies between them: each sampler, targets that overlap or
differ in length, both inputs and all norms of targets, both ways to predict, float32 and bfloat16, on padded
sequences and on real tokens alone. Differences are of a whole quantity: the length of the error over the length of
what is right.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from openjepa.masks import Masks, sample_masks
from openjepa.methods.ijepa import IJEPA
from openjepa.nn import predictor as predictor_module
from openjepa.nn import vit as vit_module
from openjepa.nn.recompute import call_layer
from openjepa.nn.unpadded import run_unpadded
from openjepa.recipe.views import Mask
from tests import models
from tests.parity.equations import Setup, forward

GRID, PATCH, CHANNELS, NUM_IMAGES = (4, 5), 2, 1, 3
PARTS = ("context_encoder", "predictor", "target_encoder")
TOLERANCES = {"fp32": 2e-5, "bf16": 6e-2}
SAMPLERS = {
    "multiblock": Mask(target_scale=(0.2, 0.3)),
    "union": Mask(sampler="union", num_contexts=3, context_scale=(0.05, 0.2), num_targets=3, target_scale=(0.05, 0.2)),
    "random": Mask(sampler="random", context_scale=(0.2, 0.5), target_scale=(0.2, 0.5)),
    "block": Mask(sampler="block", context_scale=(0.1, 0.4), context_aspect=(0.5, 2), target_scale=(0.05, 0.3)),
}
TARGETS = list(itertools.product(("image", "patches"), ("none", "layer")))


def draw(kind: str) -> Masks:
    """Masks of a sampler, or by hand: blocks that overlap, differ in length and repeat one another."""
    if kind != "by hand":
        return sample_masks(SAMPLERS[kind], GRID, NUM_IMAGES, seed=4, step=0)
    blocks = [[[3, 9, 10], [10, 3]], [[19], [19]], [[0, 1, 2, 6], [1, 2, 7, 8]]]
    contexts = [[15, 16], [0, 1, 2, 3, 4], [18]]

    def pad(rows: list[list[int]]) -> Tensor:
        longest = max(map(len, rows))
        return torch.tensor([row + row[:1] * (longest - len(row)) for row in rows])

    lengths = torch.tensor([[len(block) for block in image] for image in blocks])
    flat = pad([block for image in blocks for block in image])
    return Masks(pad(contexts), torch.tensor([*map(len, contexts)]), flat.unflatten(0, (3, 2)), lengths)


def list_patches(masks: Masks) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Contexts and target blocks without their padding."""
    contexts = [row[:n].tolist() for row, n in zip(masks.context_idx, masks.context_lengths, strict=True)]
    targets = [
        [block[:n].tolist() for block, n in zip(image, lengths, strict=True)]
        for image, lengths in zip(masks.target_idx, masks.target_lengths, strict=True)
    ]
    return contexts, targets


def make(predict: str, target_input: str, target_norm: str) -> IJEPA:
    """A method whose two encoders differ and whose attention is far from uniform, which would hide a mistake."""
    method = models.small_method(
        seed=0, data__image_size=(GRID[0] * PATCH, GRID[1] * PATCH), data__channels=CHANNELS, model__patch_size=PATCH,
        model__width=16, method__predictor__width=12, method__predict=predict, method__target_input=target_input,
        method__target_norm=target_norm, method__loss="mse",
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in method.named_parameters():
            if not name.endswith("pos_embed"):
                weight.mul_(8 if weight.ndim > 1 else 1).add_(0.05 * torch.randn_like(weight))
    return method


def right(method: IJEPA, images: Tensor, masks: Masks, setup: Setup) -> dict[str, Tensor]:
    """By the equations, in float64."""
    weights = {
        part: {
            name: value.double().requires_grad_(part != "target_encoder")
            for name, value in method.get_submodule(part).state_dict().items()
            if not name.endswith("pos_embed")
        }
        for part in PARTS
    }
    outputs = forward(images.double(), *list_patches(masks), weights, setup)
    trained = [value for part in PARTS[:2] for value in weights[part].values()]
    outputs.loss.backward()
    gradients = torch.cat([weight.grad.flatten() for weight in trained])
    return {
        "targets": outputs.targets, "predictions": outputs.predictions, "loss": outputs.loss[None], "gradients": gradients
    }  # fmt: skip


def ours(method: IJEPA, images: Tensor, masks: Masks, reduced: bool) -> dict[str, Tensor]:
    """What the forward pass compares, its loss, and the gradients in the order of `right`."""
    method.zero_grad()
    found: dict[str, Tensor] = {}
    compare = type(method).prediction_loss

    def record(predictions: Tensor, targets: Tensor, masks: Masks) -> Tensor:
        found.update(targets=targets[masks.target_mask], predictions=predictions[masks.target_mask])
        return compare(method, predictions, targets, masks)

    method.prediction_loss = record
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=reduced):
        loss, _ = models.call(method, images, masks)
    loss.backward()
    weights = dict(method.named_parameters())
    names = [name for part in PARTS[:2] for name in weights if name.startswith(part) and weights[name].requires_grad]
    return found | {"loss": loss[None], "gradients": torch.cat([weights[name].grad.flatten() for name in names])}


def take_path(path: str, method: IJEPA, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 a CPU takes padded sequences and in bfloat16 real tokens alone; here both take either."""
    if path == "padded":
        for part in PARTS:  # what torch.compile puts there, uncompiled
            method.get_submodule(part).blocks.compiled_call = call_layer
        return

    def run(layers, tokens, token_mask, checkpointing="none", first=0):
        return run_unpadded(layers, tokens, token_mask, first, checkpointing)

    for module in (vit_module, predictor_module):
        monkeypatch.setattr(module, "run_layers", run)


@pytest.mark.parametrize(("target_input", "target_norm"), TARGETS)
@pytest.mark.parametrize("predict", ["joint", "per_block"])
@pytest.mark.parametrize("kind", [*SAMPLERS, "by hand"])
def test_every_path_computes_the_equations(kind, predict, target_input, target_norm, monkeypatch):
    masks, method = draw(kind), make(predict, target_input, target_norm)
    images = torch.randn(NUM_IMAGES, CHANNELS, *(PATCH * side for side in GRID))
    setup = Setup(
        GRID, PATCH, 2, 2, whole_image_targets=target_input == "image", normed_targets=target_norm == "layer",
        per_block=predict == "per_block", own_positions=True, smooth_l1=False,
    )  # fmt: skip
    expected = right(method, images, masks, setup)
    for path, precision in itertools.product(("padded", "unpadded"), TOLERANCES):
        with monkeypatch.context() as patch:
            take_path(path, method, patch)
            found = ours(method, images, masks, reduced=precision == "bf16")
        for name, value in expected.items():
            assert found[name].shape == value.shape, (name, path)
            error = float((found[name].detach().double() - value.detach()).norm() / value.detach().norm())
            assert error < TOLERANCES[precision], (name, path, precision, error)


def test_the_masks_are_as_odd_as_they_should_be():
    """Every one is padded somewhere; some overlap, some differ in length, and one does both."""
    overlaps, unequal = set(), set()
    for kind in (*SAMPLERS, "by hand"):
        masks = draw(kind)
        contexts, targets = list_patches(masks)
        assert len({*map(len, contexts)}) > 1, kind
        unequal |= {kind} if len({len(block) for image in targets for block in image}) > 1 else set()
        overlaps |= {kind} if any(sum(map(len, image)) > len(set().union(*image)) for image in targets) else set()
    assert overlaps == {"multiblock", "by hand"}
    assert unequal == {"union", "random", "block", "by hand"}
