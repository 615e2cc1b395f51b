"""The training step: accumulation, precision, checkpointing, and steps that are not finite."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from openjepa.commands.pretrain import pretrain
from openjepa.data.batch import one_view
from openjepa.engine.precision import pick_device
from openjepa.engine.prefetch import Answer
from openjepa.masks import sample_masks
from openjepa.methods.ijepa import IJEPA
from openjepa.methods.make import make_method
from openjepa.nn.vit import compile_layers
from openjepa.recipe.edit import with_changes
from openjepa.recipe.files import load_recipe
from openjepa.training import build
from openjepa.training.build import make_schedules, make_trainer, plan_steps
from openjepa.training.trainer import StepImages
from tests.models import RATES, small_recipe

SCALES = {"context_scale": [0.05, 0.15], "target_scale": [0.05, 0.15]}
MASK = {"sampler": "union", "num_contexts": 3, "num_targets": 2, **SCALES}
RECIPE = small_recipe(data__batch_size=12, views__main__mask=MASK)


def make(precision="fp32", **train):
    changes = {f"train.{key}": value for key, value in train.items()} | {"optim.clip_grad_norm": 1.0, "optim.warmup_frac": 0}
    return make_trainer(with_changes(RECIPE, changes), [0.5], [0.25], 100, precision)


def make_batch(step=0, seed=0):
    images = torch.randint(0, 256, (12, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed + step))
    return one_view(images, sample_masks(RECIPE.mask, (8, 8), 12, seed=seed, step=step), step=step)


def split(batch, count):
    """The micro-batches of a batch."""
    images, masks = batch.views["main"].flat, batch.views["main"].masks
    total = masks.target_lengths.sum()
    return [
        replace(one_view(part, hidden, step=batch.step, share=float(hidden.target_lengths.sum() / total)), image_idx=image_idx)
        for part, hidden, image_idx in zip(images.chunk(count), masks.split(count), batch.image_idx.chunk(count), strict=True)
    ]


def gradients(trainer, *batches):
    """Metrics and gradients of a step's micro-batches."""
    metrics = [trainer.accumulate_gradients(batch, RATES) for batch in batches]
    total = {name: sum(batch.share * row[name] for batch, row in zip(batches, metrics, strict=True)) for name in metrics[0]}
    return total, [weight.grad.clone() for weight in trainer.weights]


@pytest.mark.parametrize("count", [2, 3, 12])
def test_micro_batches_are_the_large_batch(count):
    whole, accumulated = gradients(make(), make_batch()), gradients(make(), *split(make_batch(), count))
    torch.testing.assert_close(whole[0]["loss"], accumulated[0]["loss"], rtol=1e-5, atol=0)
    for first, second in zip(whole[1], accumulated[1], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-7)


def test_a_step_takes_as_many_micro_batches_as_it_accumulates():
    whole, accumulated = make(), make(accumulation_steps=3)
    plain = list(whole.steps(make_batch(step) for step in range(2)))
    records = list(accumulated.steps(part for step in range(2) for part in split(make_batch(step), 3)))
    assert [record.step for record in records] == [0, 1]
    for first, second in zip(plain, records, strict=True):
        torch.testing.assert_close(first.metrics["loss"], second.metrics["loss"], rtol=1e-4, atol=0)
        torch.testing.assert_close(first.grad_norm, second.grad_norm, rtol=1e-4, atol=0)


@pytest.mark.parametrize("level", ["selective", "full", True])  # True: what recipes said before there were levels
def test_activation_checkpointing_changes_no_gradient(level):
    plain, checkpointed = gradients(make(), make_batch()), gradients(make(activation_checkpointing=level), make_batch())
    for first, second in zip(plain[1], checkpointed[1], strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains_to_about_the_same_loss(precision):
    losses = {}
    for name in ("fp32", precision):
        trainer = make(name)
        losses[name] = [float(trainer.step([make_batch(step)]).metrics["loss"]) for step in range(6)]
        assert all(weight.dtype == torch.float32 for weight in trainer.weights)
    for exact, reduced in zip(losses["fp32"], losses[precision], strict=True):
        assert reduced == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])  # in the latter two a fused optimizer finds out by itself
def test_a_step_that_is_not_finite_is_skipped_before_the_optimizer_sees_it(precision):
    trainer = make(precision)
    trainer.step([make_batch(0)])
    before = [value.clone() for value in trainer.method.state_dict().values()]
    state = {key: value.clone() for key, value in trainer.optimizer.state[trainer.weights[0]].items()}
    good_mean, trainer.mean = trainer.mean, trainer.mean * float("nan")
    record = trainer.step([make_batch(1)])
    assert record.skipped_in_a_row == record.num_skipped == 1
    assert [batch.step for batch in record.skipped] == [1]
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.method.state_dict().values(), strict=True))
    assert all(torch.equal(value, trainer.optimizer.state[trainer.weights[0]][key]) for key, value in state.items())
    trainer.mean = good_mean
    record = trainer.step([make_batch(2)])
    assert (record.skipped_in_a_row, record.num_skipped, record.skipped) == (0, 1, [])
    assert bool(torch.isfinite(record.metrics["loss"]))
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.method.state_dict().values(), strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_that_is_not_finite_is_enough(monkeypatch, precision):
    """Smooth L1 of an infinite target has gradients of 1."""
    trainer = make(precision)
    before = [value.clone() for value in trainer.method.state_dict().values()]
    monkeypatch.setattr(trainer.method, "make_targets", lambda *given: IJEPA.make_targets(trainer.method, *given) + torch.inf)
    record = trainer.step([make_batch(0)])
    assert bool(torch.isfinite(record.grad_norm)) and not bool(torch.isfinite(record.metrics["loss"]))
    assert record.num_skipped == 1
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.method.state_dict().values(), strict=True))


def test_steps_whose_answer_is_still_on_its_way_are_counted_later():
    """As on a GPU, where the last step's answer is left unread until somebody saves."""
    trainer = make()
    answers = [True, False, False, True, False]
    for step, finite in enumerate(answers):
        trainer.unread.append((StepImages(step, torch.arange(12)), Answer(torch.tensor([finite, False]))))
        found = trainer.find_skipped(leave=1)
        assert [batch.step for batch in found] == ([step - 1] if step and not answers[step - 1] else [])
    assert (trainer.num_skipped, trainer.skipped_in_a_row) == (2, 0)
    assert [batch.step for batch in trainer.find_skipped()] == [4]
    assert (trainer.num_skipped, trainer.skipped_in_a_row) == (3, 1)


def with_scale(scale):
    """A trainer in fp16 whose scaler starts at this scale."""
    trainer = make("fp16")
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return trainer


def test_overflows_while_the_scale_is_found_are_no_broken_steps():
    """2^40 overflows fp16 until it is halved to what the gradients stand: that many steps are lost, and nobody is blamed."""
    trainer = with_scale(2.0**40)
    before = [value.clone() for value in trainer.method.state_dict().values()]
    records = [trainer.step([make_batch(step)]) for step in range(40)]
    scale = trainer.scaler.get_scale()
    overflows = records[-1].num_overflows
    assert scale == 2.0 ** (40 - overflows) and 5 < overflows < 40
    assert [record.num_overflows for record in records] == [min(step + 1, overflows) for step in range(40)]
    assert not any(record.skipped or record.num_skipped or record.skipped_in_a_row for record in records)
    assert all(bool(torch.isfinite(record.grad_norm)) for record in records)  # for the logs: no alarm
    assert float(records[0].grad_norm) == 0 < float(records[-1].grad_norm)
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.method.state_dict().values(), strict=True))


def test_steps_lost_to_an_overflow_change_nothing():
    trainer = with_scale(2.0**40)
    before = [value.clone() for value in trainer.method.state_dict().values()]
    record = trainer.step([make_batch(0)])
    assert record.num_overflows == 1
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.method.state_dict().values(), strict=True))


def test_ten_overflows_in_a_row_stop_nothing():
    trainer, seen = with_scale(2.0**60), []
    seen += [record.num_overflows for record in trainer.steps(make_batch(step) for step in range(15))]
    assert seen == list(range(1, 16))


def test_a_loss_that_is_not_finite_is_broken_whatever_the_scale():
    trainer = with_scale(2.0**40)
    trainer.mean = trainer.mean * float("nan")
    with pytest.raises(ArithmeticError, match="10 steps in a row"):
        list(trainer.steps(make_batch(step) for step in range(50)))
    assert (trainer.num_skipped, trainer.num_overflows) == (10, 0)


def test_gradients_that_are_not_finite_are_broken_when_the_scale_cannot_help(monkeypatch):
    """The loss is finite and its gradient is not, at any scale: overflows until the scale is below 1, then ten broken steps."""
    trainer, seen = with_scale(8.0), []

    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(_context, value):
            return value.clone()

        @staticmethod
        def backward(_context, gradient):
            return gradient * torch.inf

    forward = trainer.method.forward

    def spoil(*given):
        loss, metrics = forward(*given)
        return Spoilt.apply(loss), metrics

    monkeypatch.setattr(trainer.method, "forward", spoil)
    with pytest.raises(ArithmeticError, match="10 steps in a row"):
        seen.extend(record.skipped_in_a_row for record in trainer.steps(make_batch(step) for step in range(50)))
    assert trainer.num_overflows == 4  # at 8, 4, 2 and 1
    assert seen == [0] * 4 + list(range(1, 11))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_a_scaler_nothing_is_an_overflow(precision, monkeypatch):
    trainer = make(precision)
    monkeypatch.setattr(trainer, "clip_grad_norm", None)
    monkeypatch.setattr("openjepa.training.trainer.clip_gradients", lambda *_: torch.tensor(torch.inf))
    record = trainer.step([make_batch(0)])
    assert bool(torch.isfinite(record.metrics["loss"]))
    assert (record.num_skipped, record.num_overflows) == (1, 0)
    assert float(record.grad_norm) == torch.inf


def test_an_overflow_between_broken_steps_does_not_make_them_good():
    trainer = make()
    for step, outcome in enumerate([(False, False), (False, True), (False, False), (True, False), (False, True)]):
        trainer.unread.append((StepImages(step, torch.arange(12)), Answer(torch.tensor(outcome))))
    assert [batch.step for batch in trainer.find_skipped(leave=2)] == [0, 2]
    assert (trainer.skipped_in_a_row, trainer.num_skipped, trainer.num_overflows) == (2, 2, 1)
    assert trainer.find_skipped() == []
    assert (trainer.skipped_in_a_row, trainer.num_skipped, trainer.num_overflows) == (0, 2, 2)


def test_compiled_layers_are_the_plain_ones(monkeypatch):
    """Loss and gradients, with masks padded to few shapes; also in bf16, where an uncompiled CPU leaves padding out."""
    monkeypatch.setattr(build, "compile_layers", partial(compile_layers, backend="aot_eager"))
    for precision, tolerance in (("fp32", 1e-5), ("bf16", 3e-2)):
        plain, compiled = make(precision), make(precision, compile=True, activation_checkpointing="selective")
        assert plain.method.state_dict().keys() == compiled.method.state_dict().keys()
        batch = make_batch(0)
        (metrics, expected), (compiled_metrics, ours) = gradients(plain, batch), gradients(compiled, batch)
        masks = compiled.place(batch).views["main"].masks
        assert masks.context_idx.shape[1] % 16 == masks.target_idx.shape[2] % 16 == 0
        torch.testing.assert_close(metrics["loss"], compiled_metrics["loss"], rtol=tolerance, atol=0)
        for first, second in zip(expected, ours, strict=True):
            assert float((first - second).norm() / first.norm()) < tolerance


def test_a_run_goes_on_with_compiled_layers(monkeypatch, tmp_path):
    """Three steps and three compiled ones are six plain ones, to rounding."""
    monkeypatch.setattr(build, "compile_layers", partial(compile_layers, backend="aot_eager"))

    def train(out, steps, compiled=False):
        changes = {
            "train.length": f"{steps}steps", "train.compile": compiled, "train.precision": "fp32", "train.device": "cpu",
            "checkpoint.every_steps": 3, "health.num_images": 8, "method.momentum.schedule": "fixed",
            "optim.warmup_frac": 0, "optim.final_lr": 1e-3,  # a rate that does not know how many steps there are
        }  # fmt: skip
        pretrain("sample:train", RECIPE, out, changes=changes, resume=out.exists(), accept_changes=True)
        return load_file(sorted(out.glob("checkpoints/*.safetensors"))[-1])

    plain = train(tmp_path / "plain", 6)
    train(tmp_path / "compiled", 3)
    compiled = train(tmp_path / "compiled", 6, compiled=True)
    assert compiled.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_ten_skipped_steps_in_a_row_stop_the_run():
    trainer = make()
    trainer.mean = trainer.mean * float("nan")
    seen = []
    with pytest.raises(ArithmeticError, match="10 steps in a row"):
        seen.extend(record.step for record in trainer.steps(make_batch(step) for step in range(50)))
    assert seen == list(range(10))


def test_the_loss_falls_on_one_batch():
    trainer = make()
    losses = [float(trainer.step([make_batch(0)]).metrics["loss"]) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


def test_schedules_of_a_shortened_run_keep_their_proportions():
    """The seed: 40 of 300 epochs are warm-up; of 150 steps that is 20. Rates scale with the batch: 64 / 256."""
    recipe = with_changes(load_recipe("brief_vit_base_16"), {"data.batch_size": 64})
    with torch.device("meta"):
        method = make_method(recipe)
    schedules = make_schedules(recipe, method, 150)
    rates = [schedules.at(step)["lr"] for step in range(150)]
    assert rates.index(max(rates)) == 19
    assert max(rates) == pytest.approx(1.5e-4 / 4)
    assert schedules.at(0)["momentum"] == pytest.approx(0.996)


@pytest.mark.parametrize(
    ("length", "step_s", "steps"),
    [
        ("3epochs", None, 300),
        ("0.5 epochs", None, 50),
        ("0.001epochs", None, 1),
        ("1000steps", None, 1000),
        ("10steps", None, 10),
        ("1minute", 0.5, 116),  # 60 s less 3 % kept back, at 0.5 s
        ("60minutes", 0.5, 6984),
        ("0.001minutes", 5.0, 1),
    ],
)
def test_the_number_of_steps(length, step_s, steps):
    assert plan_steps(small_recipe(data__batch_size=100, train__length=length), 10_000, step_s) == steps


def test_devices_that_are_not_there_are_refused():
    for name in ("cuda:99", "tpu", "meta"):
        with pytest.raises(ValueError, match="train.device"):
            pick_device(name)
