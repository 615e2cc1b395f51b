"""How far our paper and brief recipes are from what they should compute, through the trainer that users run.

The comparisons that the parity tests hold to their tolerances and that `python -m benchmarks.fidelity` prints as the table of
docs/fidelity.md. Two references: the release's own step (`../shared/golden`, float32) and ours of equations.py
(own_step.safetensors, float64 rounded once). A difference is relative to the largest entry of its tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from openjepa.data.batch import Batch, one_view
from openjepa.engine.optim import make_optimizer, set_rates
from openjepa.masks import Masks, sample_masks
from openjepa.methods.make import make_method
from openjepa.nn.encoder import normalise
from openjepa.recipe.edit import with_changes
from openjepa.recipe.files import load_recipe
from openjepa.recipe.sections import Recipe
from openjepa.recipe.views import Mask
from openjepa.training import trainer as train
from openjepa.training.build import make_schedules, make_trainer
from openjepa.training.trainer import Trainer
from openjepa.weights.official import our_name
from tests import models
from tests.parity import make_golden
from tests.parity.equations import Learner, Rates, Setup

FORWARD, GRADIENT, WEIGHT, SCHEDULE = 1e-5, 1e-4, 1e-5, 1e-9
CHANGE = (
    4e-3  # of what a step changes in a weight: AdamW's epsilon makes 6e-4 to 2e-3, by CPU, of the rounding of a gradient near 0
)
STANDARD_ERRORS = 4.5  # about 130 statistics are compared: one such table in a thousand would pass this by chance

OUTPUTS = ("target_encoder_output", "targets", "context_output", "predictions")
PARTS = ("context_encoder.", "predictor.", "target_encoder.")


@dataclass(frozen=True)
class Agreement:
    """The largest difference found for one quantity, and where."""

    quantity: str
    tolerance: float
    difference: float
    where: str
    compared: int

    def check(self) -> None:
        message = f"{self.quantity}: {self.difference:.2e} at {self.where}, tolerance {self.tolerance:g}"
        assert self.difference <= self.tolerance, message


@dataclass(frozen=True)
class Golden:
    """A recorded step under our names, and the recipe that should compute it."""

    name: str
    recipe: Recipe
    total_steps: int
    mean: list[float]
    std: list[float]
    images: Tensor
    masks: Masks
    tensors: dict[str, Tensor]

    @property
    def weights(self) -> dict[str, Tensor]:
        """Before the step."""
        return {name: value for name, value in self.tensors.items() if name.startswith(PARTS)}

    def make_trainer(self) -> Trainer:
        """As `openjepa pretrain` makes it, with the recorded weights in it."""
        trainer = make_trainer(self.recipe, self.mean, self.std, self.total_steps, "fp32")
        fresh = {name: value for name, value in trainer.method.state_dict().items() if name.endswith("pos_embed")}
        trainer.method.load_state_dict(fresh | self.weights, strict=True)
        return trainer

    def make_batches(self, step: int = 0) -> list[Batch]:
        """The recorded images and masks in the recipe's micro-batches, as the loader would give them."""
        as_bytes = self.images if self.images.dtype == torch.uint8 else torch.zeros_like(self.images, dtype=torch.uint8)
        count, all_targets = self.recipe.train.accumulation_steps, int(self.masks.target_lengths.sum())
        return [
            one_view(images, masks, step=step, share=int(masks.target_lengths.sum()) / all_targets)
            for images, masks in zip(as_bytes.chunk(count), self.masks.split(count), strict=True)
        ]

    @contextmanager
    def given_images(self) -> Iterator[None]:
        """The release recorded normalised images, which no loader gives: the trainer gets them past its normalisation."""
        if self.images.dtype == torch.uint8:
            yield
        else:
            with mock.patch.object(train, "normalise", return_value=self.images):
                yield


def load_release(shared: Path) -> tuple[Golden, dict[str, Any]]:
    """The release's step and the facts beside it. Its rates are the first ones of a run of 200 steps, 40 of them warm-up."""
    tensors = load_file(shared / "golden" / "official_step.safetensors")
    facts: dict[str, Any] = json.loads((shared / "golden" / "official_step.json").read_text("utf-8"))
    shape = facts["config"]
    changes = {
        "data.image_size": shape["img"], "model.patch_size": shape["patch"],
        "model.width": shape["embed_dim"], "model.depth": shape["depth"], "model.heads": shape["heads"],
        "method.predictor.width": shape["pred_dim"], "method.predictor.depth": shape["pred_depth"],
        "method.predictor.heads": shape["heads"],
        "optim.warmup_frac": 40 / 200, "train.length": "200epochs", "train.device": "cpu",
    }  # fmt: skip
    recipe = with_changes(load_recipe("paper_vit_base_16"), changes)
    named = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind in ("grad", "after"):
            named[f"{'gradient' if kind == 'grad' else kind}.{our_name(rest)}"] = value
        else:
            named[{"context_encoder_output": "context_output"}.get(name) or our_name(name)] = value
    context, targets = tensors["context_idx"], tensors["target_idx"]
    lengths = torch.full((len(context),), context.shape[1]), torch.full(targets.shape[:2], targets.shape[2])
    masks = Masks(context, lengths[0], targets, lengths[1])
    named["losses"] = tensors["loss"][None]
    return Golden("release", recipe, 200, [0.0] * 3, [1.0] * 3, tensors["images"], masks, named), facts


def load_own(name: str) -> Golden:
    """The step of the `paper` or the `brief` recipe that make_golden.py recorded."""
    tensors = load_file(make_golden.FILE)
    mine = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
    height, width = (make_golden.PATCH * side for side in make_golden.GRID)
    changes = {
        "data.image_size": (height, width), "data.batch_size": {"paper": 2048, "brief": 1024}[name],
        "model.encoder": "tiny", "model.patch_size": make_golden.PATCH,
        "model.width": make_golden.WIDTH, "model.depth": make_golden.DEPTH, "model.heads": make_golden.HEADS,
        "method.predictor.width": make_golden.PREDICTOR_WIDTH, "method.predictor.depth": make_golden.PREDICTOR_DEPTH,
        "method.predictor.heads": make_golden.PREDICTOR_HEADS,
        "optim.warmup_frac": make_golden.WARMUP_STEPS / make_golden.TOTAL_STEPS, "optim.eps": make_golden.EPS,
        "train.length": "100epochs", "train.precision": "fp32", "train.device": "cpu",
    }  # fmt: skip
    changes |= {
        "paper": {"optim.start_lr": make_golden.PAPER_START_LR, "optim.lr": make_golden.PAPER_LR},
        "brief": {"optim.lr": make_golden.BRIEF_LR},
    }[name]
    recipe = with_changes(load_recipe(f"{name}_vit_base_16"), changes)
    masks = Masks(*(mine.pop(key) for key in ("context_idx", "context_lengths", "target_idx", "target_lengths")))
    shared = {key: value for key, value in tensors.items() if key.startswith(PARTS)}
    return Golden(
        f"{name} recipe", recipe, make_golden.TOTAL_STEPS, list(make_golden.MEAN), list(make_golden.STD), tensors["images"],
        masks, shared | mine,
    )  # fmt: skip


def compare(quantity: str, tolerance: float, pairs: Mapping[str, tuple[Tensor, ...]]) -> Agreement:
    """The largest difference over pairs (ours, theirs), each relative to their largest entry."""
    found = {}
    for name, (ours, theirs) in pairs.items():
        assert ours.shape == theirs.shape, (name, ours.shape, theirs.shape)
        ours, theirs = ours.detach().double(), theirs.detach().double()
        found[name] = float((ours - theirs).abs().max() / theirs.abs().max())
    where = max(found, key=lambda name: found[name])
    return Agreement(quantity, tolerance, found[where], where, len(found))


def compare_forward(golden: Golden) -> list[Agreement]:
    """Outputs of encoders and predictor at real tokens, and the loss."""
    trainer = golden.make_trainer()
    method, masks = trainer.method, golden.masks
    images = normalise(golden.images, trainer.mean, trainer.std)
    with torch.no_grad():
        context = method.encode_context(images, masks)
        ours = {
            "target_encoder_output": method.target_encoder(images),
            "targets": method.make_targets(images, masks)[masks.target_mask],
            "context_output": context[masks.context_mask],
            "predictions": method.predict(context, masks)[masks.target_mask],
            "context_encoder_full_output": method.context_encoder(images),
        }
        loss = models.call(method, images, masks)[0]
    width = ours["targets"].shape[-1]
    rows = []
    for name in (*OUTPUTS, "context_encoder_full_output"):
        if name in golden.tensors:
            pair = (ours[name].reshape(-1, width), golden.tensors[name].reshape(-1, width))
            rows.append(compare(name.replace("_", " "), FORWARD, {name: pair}))
    return [*rows, compare("loss", FORWARD, {"loss": (loss, golden.tensors["losses"][0])})]


def compare_gradients(golden: Golden) -> Agreement:
    """Every gradient, as the trainer accumulates it."""
    trainer = golden.make_trainer()
    with golden.given_images():
        for batch in golden.make_batches():
            trainer.accumulate_gradients(batch, trainer.schedules.at(0))
    ours = {name: weight.grad for name, weight in trainer.method.named_parameters() if weight.requires_grad}
    theirs = {name.removeprefix("gradient."): value for name, value in golden.tensors.items() if name.startswith("gradient.")}
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    return compare("every gradient", GRADIENT, {name: (ours[name], theirs[name]) for name in theirs})


def compare_step(golden: Golden) -> list[Agreement]:
    """Every weight after one step of the trainer: AdamW, then the momentum update; and the losses of the steps after it."""
    trainer = golden.make_trainer()
    with golden.given_images():
        losses = [trainer.step(golden.make_batches()).metrics["loss"]]
        ours = {name: value.clone() for name, value in trainer.method.state_dict().items()}
        losses += [trainer.step(golden.make_batches(step)).metrics["loss"] for step in range(1, len(golden.tensors["losses"]))]
    theirs = {name.removeprefix("after."): value for name, value in golden.tensors.items() if name.startswith("after.")}
    missing = ours.keys() - theirs.keys()
    assert not theirs.keys() - ours.keys() and all(name.endswith("pos_embed") for name in missing), missing
    rows = []
    for step, prefixes in (("AdamW step", ("context_encoder.", "predictor.")), ("momentum update", ("target_encoder.",))):
        pairs = {name: (ours[name], theirs[name]) for name in theirs if name.startswith(prefixes)}
        changes = {
            name: tuple(after.double() - golden.weights[name].double() for after in pair)
            for name, pair in pairs.items()
            if not name.endswith("pos_embed")
        }
        rows.append(compare(f"every weight after one {step}", WEIGHT, pairs))
        rows.append(compare(f"what one {step} changes in every weight", CHANGE, changes))
    if len(losses) > 1:
        rows.append(
            compare(f"loss of each of {len(losses)} steps", FORWARD, {"losses": (torch.stack(losses), golden.tensors["losses"])})
        )
    return rows


def compare_release_with_equations(release: Golden) -> list[Agreement]:
    """The release's own float32 step against equations.py in float64, with none of our code between them."""
    rates = Rates(2.2e-4, 0.0400222061533011, 0.0400222061533011, 0.996, layer_decay=1.0, max_norm=None, eps=1e-8)
    setup = Setup((6, 6), 16, 4, 4, True, True, True, True, True)
    weights = {
        part[:-1]: {
            name.removeprefix(part): value
            for name, value in release.weights.items()
            if name.startswith(part) and not name.endswith("pos_embed")
        }
        for part in PARTS
    }
    learner = Learner(weights, setup)
    outputs, gradients = learner.step(
        release.images, release.masks.context_idx.tolist(), release.masks.target_idx.tolist(), rates
    )
    width = release.tensors["targets"].shape[-1]
    pairs = {name: (getattr(outputs, name), release.tensors[name].reshape(-1, width)) for name in OUTPUTS}
    after = {f"{part}.{name}": value for part, values in learner.weights.items() for name, value in values.items()}
    return [
        compare("outputs and loss", FORWARD, pairs | {"loss": (outputs.loss, release.tensors["losses"][0])}),
        compare(
            "every gradient", GRADIENT, {name: (value, release.tensors[f"gradient.{name}"]) for name, value in gradients.items()}
        ),
        compare(
            "every weight after the step",
            WEIGHT,
            {name: (value, release.tensors[f"after.{name}"]) for name, value in after.items()},
        ),
    ]


def compare_schedules(facts: dict[str, Any]) -> list[Agreement]:
    """Learning rate, weight decay and momentum of the paper's 300-epoch recipe at every step that the release recorded."""
    schedule = facts["schedule"]
    total_steps = schedule["epochs"] * schedule["iterations_per_epoch"]
    shrunk = {"width": 8, "depth": 1, "heads": 1}
    changes = {f"{part}.{key}": value for part in ("model", "method.predictor") for key, value in shrunk.items()}
    recipe = with_changes(load_recipe("paper_vit_huge_14"), changes | {"data.image_size": 28})
    assert recipe.train.run_length == (schedule["epochs"], "epochs")
    method = make_method(recipe)
    schedules, optimizer = make_schedules(recipe, method, total_steps), make_optimizer(method.weight_groups(), recipe.optim)
    found: dict[str, dict[int, float]] = {"learning rate": {}, "weight decay": {}, "momentum": {}}
    for row in schedule["rows"]:
        step = row["step"] - 1  # the release counts from 1
        rates = schedules.at(step)
        set_rates(optimizer, rates["lr"], step, total_steps)
        assert {group["lr"] for group in optimizer.param_groups} == {rates["lr"]}
        decays = {group["weight_decay"] for group in optimizer.param_groups}
        assert len(decays) == 2 and min(decays) == 0
        ours = {"learning rate": rates["lr"], "weight decay": max(decays), "momentum": rates["momentum"]}
        for name, theirs in zip(found, (row["lr"], row["weight_decay"], row["momentum"]), strict=True):
            found[name][row["step"]] = abs(ours[name] - theirs) / theirs
    return [
        Agreement(
            f"{name} at {len(steps)} steps",
            SCHEDULE,
            max(steps.values()),
            f"step {max(steps, key=steps.__getitem__)}",
            len(steps),
        )
        for name, steps in found.items()
    ]


def measure_masks(grid: int, batch: int, step: int) -> dict[str, np.ndarray]:
    """Statistics of one batch of released masks, under the golden file's names; target rates count a patch once a block."""
    masks = sample_masks(Mask(fidelity="released"), (grid, grid), batch, seed=0, step=step)
    context, blocks = masks.context_idx.numpy(), masks.target_idx.flatten(1).numpy()
    in_target = np.zeros((batch, grid * grid), dtype=bool)
    np.put_along_axis(in_target, blocks, True, axis=1)
    assert bool(masks.context_mask.all()) and bool(masks.target_mask.all())
    return {
        "context_tokens": np.array(context.shape[1]),
        "tokens_per_block": np.array(masks.target_idx.shape[2]),
        "target_union_tokens": np.array(in_target.sum() / batch),
        "context_rate_by_row": np.bincount(context.ravel() // grid, minlength=grid) / (batch * grid),
        "target_rate_by_row": np.bincount(blocks.ravel() // grid, minlength=grid) / (batch * grid),
    }


def compare_masks(expected: dict[str, Any], num_batches: int) -> tuple[list[Agreement], dict[str, np.ndarray]]:
    """Means of released masks against the release's, in standard errors of the difference; and our values, batch by batch.

    Both sides are samples, and images of a batch share their shapes, so the batch is the unit of sampling: with s the standard
    deviation between our batches, the difference has a standard error of s x sqrt(1 / our batches + 1 / its batches). The
    release's rates are rounded to four digits, which is taken off first.
    """
    measured = [measure_masks(expected["grid"], expected["batch"], step) for step in range(num_batches)]
    values = {name: np.stack([statistics[name] for statistics in measured]) for name in measured[0]}
    rows = []
    for name, ours in values.items():
        theirs = np.array(expected[name]["mean"] if isinstance(expected[name], dict) else expected[name])
        rounding = 0.5e-4 if "rate" in name else 0.0
        standard_error = ours.std(axis=0, ddof=1) * np.sqrt(1 / num_batches + 1 / expected["batches"])
        excess = np.maximum(np.abs(ours.mean(axis=0) - theirs) - rounding, 0)
        # A row that neither side ever uses has no error at all; one that only ours uses is infinitely far.
        deviation = np.divide(excess, standard_error, out=np.where(excess > 0, np.inf, 0.0), where=standard_error > 0)
        where = f"row {deviation.argmax()}" if deviation.ndim else f"mean {float(ours.mean()):.2f} against {float(theirs):.2f}"
        rows.append(Agreement(name.replace("_", " "), STANDARD_ERRORS, float(deviation.max()), where, deviation.size))
    return rows, values
