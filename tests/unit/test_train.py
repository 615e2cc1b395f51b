"""The training step: accumulation, precision, checkpointing, and steps that are not finite."""

import pytest
import torch

from openjepa.build import make_schedules, make_trainer, plan_steps
from openjepa.config import build_recipe, load_recipe
from openjepa.data.loader import Batch
from openjepa.engine.precision import choose_precision, pick_device
from openjepa.masks import sample_masks

VALUES = {
    "data": {"image_size": 32, "channels": 1, "batch_size": 12},
    "model": {
        "width": 32,
        "depth": 2,
        "heads": 2,
        "patch_size": 4,
        "predictor_width": 16,
        "predictor_depth": 2,
        "predictor_heads": 2,
    },
    "mask": {
        "sampler": "union",
        "num_contexts": 3,
        "context_scale": [0.05, 0.15],
        "num_targets": 2,
        "target_scale": [0.05, 0.15],
    },
}


def make(precision="fp32", **train):
    values = VALUES | {"train": train} | {"optim": {"clip_grad_norm": 1.0, "warmup_epochs": 0}}
    return make_trainer(build_recipe(values), [0.5], [0.25], 100, precision)


def make_batch(step=0, seed=0):
    images = torch.randint(0, 256, (12, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed + step))
    masks = sample_masks(build_recipe(VALUES).mask, (8, 8), 12, seed=seed, step=step)
    return Batch(step, images, masks, torch.arange(12), [])


def gradients(trainer, batch):
    metrics = trainer.accumulate_gradients(batch)
    return metrics, [weight.grad.clone() for weight in trainer.weights]


@pytest.mark.parametrize("parts", [2, 3, 12])
def test_accumulated_parts_are_the_large_batch(parts):
    whole, in_parts = gradients(make(), make_batch()), gradients(make(accumulation_steps=parts), make_batch())
    torch.testing.assert_close(whole[0]["loss"], in_parts[0]["loss"], rtol=1e-5, atol=0)
    for first, second in zip(whole[1], in_parts[1], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-7)


def test_activation_checkpointing_changes_no_gradient():
    plain, checkpointed = gradients(make(), make_batch()), gradients(make(activation_checkpointing=True), make_batch())
    for first, second in zip(plain[1], checkpointed[1], strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains_to_about_the_same_loss(precision):
    losses = {}
    for name in ("fp32", precision):
        trainer = make(name)
        losses[name] = [float(trainer.step(make_batch(step)).metrics["loss"]) for step in range(6)]
        assert all(weight.dtype == torch.float32 for weight in trainer.weights)
    for exact, reduced in zip(losses["fp32"], losses[precision], strict=True):
        assert reduced == pytest.approx(exact, rel=0.03)


def test_a_step_that_is_not_finite_is_skipped_before_the_optimizer_sees_it():
    trainer = make()
    trainer.step(make_batch(0))
    before = [value.clone() for value in trainer.method.state_dict().values()]
    state = {key: value.clone() for key, value in trainer.optimizer.state[trainer.weights[0]].items()}
    good_mean, trainer.mean = trainer.mean, trainer.mean * float("nan")
    record = trainer.step(make_batch(1))
    assert record.skipped_in_a_row == record.num_skipped == 1
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.method.state_dict().values(), strict=True))
    assert all(torch.equal(value, trainer.optimizer.state[trainer.weights[0]][key]) for key, value in state.items())
    trainer.mean = good_mean
    record = trainer.step(make_batch(2))
    assert (record.skipped_in_a_row, record.num_skipped) == (0, 1)
    assert bool(torch.isfinite(record.metrics["loss"]))


def test_ten_skipped_steps_in_a_row_stop_the_run():
    trainer = make()
    trainer.mean = trainer.mean * float("nan")
    seen = []
    with pytest.raises(ArithmeticError, match="10 steps in a row"):
        trainer.run((make_batch(step) for step in range(50)), lambda record: bool(seen.append(record.step)))
    assert seen == list(range(10))


def test_the_loss_falls_on_one_batch():
    trainer = make()
    losses = [float(trainer.step(make_batch(0)).metrics["loss"]) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


def test_schedules_of_a_shortened_run_keep_their_proportions():
    """The seed: 40 of 300 epochs are warm-up; of 150 steps that is 20. Rates scale with the batch: 64 / 256."""
    recipe = load_recipe("seed_vit_base_16")
    recipe = build_recipe(recipe.model_dump() | {"data": recipe.data.model_dump() | {"batch_size": 64}})
    schedules = make_schedules(recipe, 150)
    rates = [schedules.lr(step) for step in range(150)]
    assert rates.index(max(rates)) == 19
    assert max(rates) == pytest.approx(1.5e-4 / 4)
    assert schedules.momentum(0) == pytest.approx(0.996)


@pytest.mark.parametrize(
    ("train", "step_s", "steps"),
    [
        ({"epochs": 3}, None, 300),
        ({"epochs": 3, "max_steps": 1000}, None, 1000),
        ({"epochs": 3, "max_steps": 10}, None, 10),
        ({"epochs": 1000, "max_minutes": 1}, 0.5, 116),  # 60 s less 3 % kept back, at 0.5 s
        ({"epochs": 3, "max_minutes": 60}, 0.5, 300),
        ({"epochs": 3, "max_minutes": 0.001}, 5.0, 1),
    ],
)
def test_the_number_of_steps(train, step_s, steps):
    recipe = build_recipe({"data": {"batch_size": 100}, "train": train})
    assert plan_steps(recipe, 10_000, step_s) == steps


def test_devices_that_are_not_there_are_refused():
    for name in ("cuda:99", "tpu", "meta"):
        with pytest.raises(ValueError, match="train.device"):
            pick_device(name)
    assert choose_precision(torch.device("cuda"), "bf16") == "bf16"
    assert choose_precision(torch.device("cpu"), "fp32") == "fp32"
