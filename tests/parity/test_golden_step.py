"""Both recipes compute the step they should, through the trainer: the release's own, and the equations' in float64.

Tolerances are relative to the largest entry of each tensor: 1e-5 forward and for weights, 1e-4 for gradients, and 4e-3 for what a
step changes in a weight. The last tests say where the differences come from; `python -m benchmarks.fidelity` prints them all.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from openjepa.engine.optim import set_rates
from openjepa.recipe.edit import with_changes
from tests import models
from tests.parity import make_golden
from tests.parity.agreement import (
    FORWARD,
    Golden,
    compare,
    compare_forward,
    compare_gradients,
    compare_release_with_equations,
    compare_step,
    load_own,
    load_release,
)
from tests.parity.equations import positions

ULP = 2.0**-23  # float32's spacing at 1, relative


@pytest.fixture(scope="module")
def release(shared: Path) -> Golden:
    return load_release(shared)[0]


@pytest.fixture(params=["release", "paper", "brief"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return request.getfixturevalue("release") if request.param == "release" else load_own(request.param)


def test_forward_pass_agrees(golden: Golden):
    rows = compare_forward(golden)
    assert len(rows) == (6 if golden.name == "release" else 5)
    for row in rows:
        row.check()


def test_every_gradient_agrees(golden: Golden):
    compare_gradients(golden).check()


def test_every_weight_after_an_optimizer_step_and_a_momentum_update_agrees(golden: Golden):
    for row in compare_step(golden):
        row.check()


@pytest.mark.parametrize("name", ["paper", "brief"])
def test_a_batch_in_parts_is_the_same_step(name: str):
    """One image at a time, each part padded to its own longest row, counts by its number of real target tokens."""
    golden = load_own(name)
    parts = replace(golden, recipe=with_changes(golden.recipe, {"train.accumulation_steps": 4}))
    assert [len(batch.image_idx) for batch in parts.make_batches()] == [1] * 4
    compare_gradients(parts).check()
    for row in compare_step(parts):
        row.check()


def test_fixed_positions_are_the_releases(release: Golden):
    fresh = models.small_method(
        data__image_size=96, model__width=48, model__patch_size=16, model__heads=4,
        method__predictor__width=24, method__predictor__heads=4,
    )  # fmt: skip
    compare(
        "encoder positions", 1e-6, {"pos_embed": (fresh.context_encoder.pos_embed, release.tensors["context_encoder.pos_embed"])}
    ).check()
    compare(
        "predictor positions", 1e-6, {"pos_embed": (fresh.predictor.pos_embed, release.tensors["predictor.pos_embed"])}
    ).check()


@pytest.mark.parametrize("grid", [(4, 7), (7, 4), (1, 3)])
def test_fixed_positions_are_the_formulas(grid: tuple[int, int]):
    method = models.small_method(
        data__image_size=(4 * grid[0], 4 * grid[1]), model__width=24, model__heads=1,
        method__predictor__width=8, method__predictor__heads=1,
    )  # fmt: skip
    for table, width in ((method.context_encoder.pos_embed[0], 24), (method.predictor.pos_embed[0], 8)):
        torch.testing.assert_close(table.double(), positions(grid, width), atol=ULP, rtol=0)


def test_the_recorded_step_is_what_the_equations_give():
    """The file is made by make_golden.py and by nothing else; float64 rounded once may differ in the last digit elsewhere."""
    recorded, made = load_file(make_golden.FILE), make_golden.make()
    assert recorded.keys() == made.keys()
    for name, value in made.items():
        assert recorded[name].dtype == value.dtype, name
        torch.testing.assert_close(recorded[name], value, atol=1e-9, rtol=4 * ULP, msg=name)
    assert make_golden.FILE.stat().st_size < 300_000


def test_the_recorded_masks_are_as_odd_as_they_should_be():
    """Unequal lengths, overlapping targets for the paper and none for the brief, the clip at work: or none would be tested."""
    for name in ("paper", "brief"):
        golden = load_own(name)
        assert (
            len(set(golden.masks.context_lengths.tolist())) > 1 and len(set(golden.masks.target_lengths.flatten().tolist())) > 1
        )
        blocks = [
            [set(row[:length].tolist()) for row, length in zip(*pair, strict=True)]
            for pair in zip(golden.masks.target_idx, golden.masks.target_lengths, strict=True)
        ]
        overlap = any(sum(map(len, image)) > len(set.union(*image)) for image in blocks)
        assert overlap == (name == "paper")
        if name == "brief":
            gradients = [value.flatten() for key, value in golden.tensors.items() if key.startswith("gradient.")]
            assert float(torch.cat(gradients).norm()) > 2 * golden.recipe.optim.clip_grad_norm


# Where the differences come from


def test_the_release_itself_agrees_with_the_equations(release: Golden):
    """So the equations are the release's, and its distance from exact arithmetic is as large as ours from it."""
    rows = compare_release_with_equations(release)
    assert sum(row.compared for row in rows) == 5 + 71 + 73 - 2 + 41 - 1  # without the fixed positions
    for row in rows:
        row.check()


def step_from(golden: Golden, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights after the trainer's optimizer and momentum update, from given gradients."""
    trainer = golden.make_trainer()
    for name, weight in trainer.method.named_parameters():
        weight.grad = gradients.get(name)
    rates = trainer.schedules.at(0)
    set_rates(trainer.optimizer, rates["lr"], 0, trainer.schedules.total_steps)
    trainer.optimizer.step()
    trainer.method.after_step(rates, torch.tensor(True))
    return trainer.method.state_dict()


def test_the_releases_gradients_give_the_releases_weights(release: Golden):
    """Optimizer and momentum update add nothing: from its gradients our weights are its weights, to a unit in the last place.

    (The target encoder's differ by that one: the release rounds a product that we fuse, and averages its fixed positions, too.)
    """
    gradients = {name.removeprefix("gradient."): value for name, value in release.tensors.items() if name.startswith("gradient.")}
    after = step_from(release, gradients)
    pairs = {name: (after[name], release.tensors[f"after.{name}"]) for name in after}
    compare("weights", ULP, pairs).check()
    assert sum(torch.equal(ours, theirs) for name, (ours, theirs) in pairs.items() if not name.startswith("target")) >= 70


def test_what_remains_after_a_step_is_adamws_epsilon(release: Golden):
    """AdamW's first step is lr x g / (|g| + eps), which is as steep as 1 / eps at 0: there the rounding of a gradient shows.

    The weights differ by lr x the difference of that fraction and by nothing else: to within the two roundings of a weight.
    """
    trainer = release.make_trainer()
    with release.given_images():
        for batch in release.make_batches():
            trainer.accumulate_gradients(batch, trainer.schedules.at(0))
    ours = {name: weight.grad for name, weight in trainer.method.named_parameters() if weight.grad is not None}
    after, lr, eps = step_from(release, ours), trainer.schedules.at(0)["lr"], release.recipe.optim.eps
    amplified = 0
    for name, gradient in ours.items():
        steps = [g.double() / (g.double().abs() + eps) for g in (gradient, release.tensors[f"gradient.{name}"])]
        expected = -lr * (steps[0] - steps[1])
        theirs = release.tensors[f"after.{name}"].double()
        unexplained = (after[name].double() - theirs - expected).abs().max() / theirs.abs().max()
        assert float(unexplained) <= 2 * ULP, name
        amplified += int((expected.abs() > 4 * ULP * theirs.abs().max()).sum())
    assert amplified > 0  # or there was nothing to explain


def test_a_coarser_recipe_is_noticed():
    """Each switch of the recipe shows in the loss: the comparison would not pass with another one."""
    golden = load_own("brief")
    for switch, value in (("target_input", "image"), ("target_norm", "layer"), ("predict", "per_block"), ("loss", "smooth_l1")):
        rows = compare_forward(replace(golden, recipe=with_changes(golden.recipe, {f"method.{switch}": value})))
        assert max(row.difference for row in rows) > 100 * FORWARD, switch
