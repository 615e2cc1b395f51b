"""The test bed of the health verdict: about fifty short runs, good and deliberately bad, on the embedded Fashion-MNIST sample.

    OMP_NUM_THREADS=1 python benchmarks/health_bed.py --out runs/bed            trains what is missing; stop and start it at will
    python benchmarks/health_bed.py --out runs/bed --measure                    health of every run's snapshots -> bed.jsonl
    python benchmarks/health_bed.py --out runs/bed --table [--picture F.png]    the tables of docs/health.md, from bed.jsonl

A run is a case of CASES: a small encoder trained for STEPS steps, weights kept at every MEASURED_EVERY steps. So what is measured,
how it is judged and what it is worth can be changed without training again. Sabotage that no recipe can express (no
stop-gradient, black images, targets of other images ...) is done here, by small subclasses, and is no option of the product.

The outcome of a run, fixed before any verdict was looked at. It needs labels: 20-NN accuracy of the trained context encoder, pooled,
on sample:test with NUM_TRAIN labelled images of sample:train, against that of the same encoder before its first step.
  diverged   training stopped for ten steps that were not finite, or the mean loss of the last 20 steps is over ten times that of
             the first 20
  learned    at least MARGIN above the untrained encoder        worse   at least MARGIN below it
  no better  in between
20-NN and not the linear probe, which standardises features and so undoes much of a collapse: it gives an untrained encoder 76 %.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from openjepa.build import find_normalization, make_batches, make_trainer
from openjepa.config import Recipe, build_recipe
from openjepa.data.sources import ArraySource, open_source
from openjepa.evals import PROTOCOLS
from openjepa.evals.features import extract_features
from openjepa.masks import Masks
from openjepa.methods import IJEPA, METHODS, Method
from openjepa.nn.encoder import Encoder, gather_tokens
from openjepa.records import read_json, write_json
from openjepa.train import StepRecord, Trainer

STEPS = 500
MEASURED_EVERY = 25
NUM_TRAIN = 5000
MARGIN = 0.05

BASE: dict[str, dict[str, Any]] = {  # the demo recipe, smaller and shorter, so with a momentum that lets the target follow
    "data": {"image_size": 28, "channels": 1, "batch_size": 64, "workers": 0, "augmentation": "none", "normalization": "measured"},
    "model": {"encoder": "tiny", "width": 64, "depth": 2, "heads": 2, "patch_size": 4,
              "predictor_width": 32, "predictor_depth": 1, "predictor_heads": 2},
    "mask": {"sampler": "union", "num_contexts": 4, "context_scale": (0.15, 0.20), "context_aspect": (0.75, 1.5),
             "num_targets": 2, "target_scale": (0.10, 0.15)},
    "method": {"target_input": "image", "target_norm": "layer", "predict": "joint", "loss": "mse",
               "regularizer": "vicreg", "regularizer_weight": 0.3},
    "optim": {"lr": 2e-3, "warmup_epochs": 15, "clip_grad_norm": 1.0},
    "momentum": {"schedule": "linear", "start": 0.99, "end": 1.0},
    "train": {"epochs": 300, "max_steps": STEPS, "precision": "fp32", "device": "cpu"},
}  # fmt: skip
NO_TERM = {"method.regularizer": "none", "method.regularizer_weight": 0.0}
MULTIBLOCK = {"mask.sampler": "multiblock", "mask.num_contexts": 1, "mask.context_scale": (0.85, 1.0),
              "mask.context_aspect": (1.0, 1.0), "mask.num_targets": 4, "mask.target_scale": (0.15, 0.2)}  # fmt: skip
PAPER = MULTIBLOCK | NO_TERM | {"method.predict": "per_block", "method.loss": "smooth_l1"}
MAE_CHANGES = NO_TERM | {
    "method.name": "mae", "method.target_norm": "none", "mask.sampler": "random", "mask.context_scale": (0.25, 0.25),
    "momentum.start": 0.996,
}  # fmt: skip


class NoStopGradient(IJEPA):
    """Targets are the context encoder's own, and gradients flow through them: the trivial solution is one step away."""

    def encode_targets(
        self, images: Float[Tensor, "batch channels height width"], masks: Masks
    ) -> Float[Tensor, "batch blocks target dim"]:
        tokens = self.context_encoder(images).float()
        targets: Tensor = gather_tokens(tokens, masks.target_idx.flatten(1)).unflatten(1, (masks.target_idx.shape[1], -1))
        return targets


class PositionTargets(IJEPA):
    """Targets are those of the mean image: they say where a patch is and nothing of what is there."""

    def encode_targets(
        self, images: Float[Tensor, "batch channels height width"], masks: Masks
    ) -> Float[Tensor, "batch blocks target dim"]:
        return super().encode_targets(torch.zeros_like(images), masks)


class OtherTargets(IJEPA):
    """Targets are those of another image of the batch: nothing about them can be predicted but the average."""

    def encode_targets(
        self, images: Float[Tensor, "batch channels height width"], masks: Masks
    ) -> Float[Tensor, "batch blocks target dim"]:
        return super().encode_targets(images.roll(1, 0), masks)


def draw_noise(images: np.ndarray) -> np.ndarray:
    """Every pixel on its own."""
    return np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)


def shuffle_pixels(images: np.ndarray) -> np.ndarray:
    """The pixels of every image in an order of its own."""
    return np.random.default_rng(0).permuted(images.reshape(len(images), -1), axis=1).reshape(images.shape)


@dataclass(frozen=True)
class Case:
    """A run of the bed: differences from BASE as section.key, and sabotage. `intended` only says why it is in the bed."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    method: type[IJEPA] | None = None
    images: Callable[[np.ndarray], np.ndarray] | None = None

    def make_recipe(self) -> Recipe:
        values: dict[str, Any] = {section: dict(keys) for section, keys in BASE.items()}
        for key, value in self.changes.items():
            section, _, name = key.partition(".")
            values[section][name] = value
        values["train"]["seed"] = self.seed
        return build_recipe(values, where=self.name)


CASES = [
    Case("base"),
    Case("base, seed 1", seed=1),
    Case("base, seed 2", seed=2),
    Case("crops and flips", {"data.augmentation": "minimal", "data.crop_scale": (0.6, 1.0)}),
    Case("MAE", MAE_CHANGES),
    Case("MAE, seed 1", MAE_CHANGES, seed=1),
    Case("multiblock masks", MULTIBLOCK),
    Case("multiblock masks, per block", MULTIBLOCK | {"method.predict": "per_block"}, seed=1),
    Case("random masks", {"mask.sampler": "random", "mask.context_scale": (0.25, 0.25)}),
    Case("block masks", {"mask.sampler": "block"}),
    Case("VICReg x 0.1", {"method.regularizer_weight": 0.1}),
    Case("VICReg x 1", {"method.regularizer_weight": 1.0}),
    Case("SIGReg", {"method.regularizer": "sigreg", "method.regularizer_weight": 0.1}),
    Case("rate x 2", {"optim.lr": 4e-3}),
    Case("rate x 0.5", {"optim.lr": 1e-3}),
    Case("rate x 0.1", {"optim.lr": 2e-4}, seed=1),
    Case("raw targets", {"method.target_norm": "none"}),
    Case("standardised targets", {"method.target_norm": "batch"}),
    Case("smooth L1", {"method.loss": "smooth_l1"}),
    Case("target sees patches alone", {"method.target_input": "patches", "method.target_norm": "none"}),
    Case("momentum 0.996", {"momentum.start": 0.996}),
    Case("momentum 0.9, VICReg", {"momentum.start": 0.9, "momentum.end": 0.9}),
    Case("batch 32", {"data.batch_size": 32, "optim.lr": 1e-3}),
    Case("momentum 1: the target never moves", {"momentum.start": 1.0} | NO_TERM),
    Case("paper recipe", PAPER),
    Case("paper recipe, momentum 0.998", PAPER | {"momentum.start": 0.998}, seed=1),
    Case("paper recipe, rate x 0.25", PAPER | {"optim.lr": 5e-4}),
    Case("seed masks, no term", NO_TERM),
    Case("seed masks, no term, momentum 0.998", NO_TERM | {"momentum.start": 0.998}, seed=1),
    Case("seed masks, no term, standardised targets", NO_TERM | {"method.target_norm": "batch"}),
    Case("momentum 0.9, no term", NO_TERM | {"momentum.start": 0.9, "momentum.end": 0.9}),
    Case("momentum 0.9, no term, raw targets", NO_TERM | {"momentum.start": 0.9, "momentum.end": 0.9, "method.target_norm": "none"}),
    Case("momentum 0, no term", NO_TERM | {"momentum.start": 0.0, "momentum.end": 0.0}),
    Case("no stop-gradient", NO_TERM, method=NoStopGradient),
    Case("no stop-gradient, seed 1, rate x 2", NO_TERM | {"optim.lr": 4e-3}, seed=1, method=NoStopGradient),
    Case("rate x 30", {"optim.lr": 6e-2}),
    Case("rate x 30, no term", NO_TERM | {"optim.lr": 6e-2}),
    Case("rate x 100", {"optim.lr": 0.2}),
    Case("rate x 1000, no clipping, raw targets", {"optim.lr": 2.0, "optim.clip_grad_norm": None, "method.target_norm": "none"}),
    Case("rate x 1000, MAE, no clipping", MAE_CHANGES | {"optim.lr": 2.0, "optim.clip_grad_norm": None}),
    Case("weight decay x 100", {"optim.weight_decay": (5.0, 5.0), "optim.predictor_weight_decay": (4.0, 4.0)}),
    Case("weight decay x 1000", {"optim.weight_decay": (50.0, 50.0), "optim.predictor_weight_decay": (40.0, 40.0)}),
    Case("rate 0", {"optim.lr": 0.0}),
    Case("rate x 0.00005", {"optim.lr": 1e-7}, seed=1),
    Case("VICReg x 1000", {"method.regularizer_weight": 300.0}),
    Case("constant images", images=lambda images: np.full_like(images, 128)),
    Case("black images, no term", NO_TERM, images=np.zeros_like),
    Case("one repeated image", images=lambda images: np.repeat(images[:1], len(images), axis=0)),
    Case("three images", images=lambda images: images[np.arange(len(images)) % 3]),
    Case("noise", images=draw_noise),
    Case("shuffled pixels", images=shuffle_pixels),
    Case("position-only targets", method=PositionTargets),
    Case("position-only targets, no term", NO_TERM, method=PositionTargets, seed=1),
    Case("targets of another image", method=OtherTargets),
    Case("targets of another image, no term", NO_TERM, method=OtherTargets, seed=1),
]


@cache
def open_sample() -> tuple[ArraySource, ArraySource, ArraySource]:
    """Images to train on, and labelled ones to fit and to test probes on."""
    train, test = open_source("sample:train", 1), open_source("sample:test", 1)
    assert isinstance(train, ArraySource) and isinstance(test, ArraySource) and train.labels is not None
    return train, replace(train, images=train.images[:NUM_TRAIN], labels=train.labels[:NUM_TRAIN]), test


def open_images(case: Case) -> ArraySource:
    """What a case trains on."""
    train = open_sample()[0]
    return train if case.images is None else replace(train, images=case.images(train.images))


def probe(trainer: Trainer) -> dict[str, float]:
    """Accuracy of the context encoder by both protocols; NaN where its features are not finite."""
    encoder = Encoder(trainer.method.context_encoder, trainer.mean.flatten().tolist(), trainer.std.flatten().tolist())
    try:
        fit, test = (extract_features(encoder, source) for source in open_sample()[1:])
    except ValueError:
        return dict.fromkeys(PROTOCOLS, float("nan"))
    return {name: protocol(fit, test, 0).accuracy for name, protocol in PROTOCOLS.items()}


def snapshot(method: Method) -> dict[str, Tensor]:
    """Copies of a method's weights."""
    return {name: value.detach().clone().contiguous() for name, value in method.state_dict().items()}


def make_case_trainer(case: Case, recipe: Recipe) -> Trainer:
    """The trainer of a case, on its sabotaged method."""
    with ExitStack() as stack:
        if case.method is not None:
            stack.enter_context(patch.dict(METHODS, {"ijepa": case.method}))
        return make_trainer(recipe, *find_normalization(recipe, open_images(case)), STEPS, "fp32")


def train_case(case: Case, folder: Path) -> None:
    """Train, keep snapshots and every step's numbers, and probe the encoder before and after."""
    started = time.process_time()
    recipe = case.make_recipe()
    trainer = make_case_trainer(case, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    before = probe(trainer)
    rows: list[dict[str, Any]] = []

    def after_step(record: StepRecord) -> bool:
        numbers = {name: float(value) for name, value in record.metrics.items()}
        rows.append({"step": record.step, **numbers, "grad_norm": float(record.grad_norm), "lr": record.lr,
                     "skipped_in_a_row": record.skipped_in_a_row})  # fmt: skip
        if record.step % MEASURED_EVERY == 0 or record.step + 1 == STEPS:
            save_file(snapshot(trainer.method), folder / f"step-{record.step:08d}.safetensors")
        return False

    stopped = None
    with closing(make_batches(recipe, open_images(case), 0, STEPS)) as batches:
        try:
            trainer.run(batches, after_step)
        except ArithmeticError as error:
            stopped = str(error)
            save_file(snapshot(trainer.method), folder / f"step-{rows[-1]['step']:08d}.safetensors")
    (folder / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    facts = {"name": case.name, "recipe": recipe.model_dump(mode="json"), "before": before, "after": probe(trainer)}
    write_json(folder / "facts.json", facts | {"stopped": stopped, "cpu_s": time.process_time() - started})


def find_folder(out: Path, case: Case) -> Path:
    """Where a case is kept: its name in letters that every file system takes."""
    return out / "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in case.name)


def train_missing(out: Path) -> None:
    """Every case that has not been trained to its end yet."""
    for number, case in enumerate(CASES, start=1):
        folder = find_folder(out, case)
        if (folder / "facts.json").is_file():
            continue
        train_case(case, folder)
        facts = read_json(folder / "facts.json")
        shown = "; ".join(f"{name} {facts['before'][name]:.3f} -> {facts['after'][name]:.3f}" for name in PROTOCOLS)
        print(f"{number}/{len(CASES)} {case.name}: {shown}; {facts['cpu_s']:.0f} CPU s {facts['stopped'] or ''}", flush=True)


def main() -> None:
    """Train, measure or tell."""
    parser = argparse.ArgumentParser(description="The test bed of the health verdict.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the bed's runs")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    options.out.mkdir(parents=True, exist_ok=True)
    train_missing(options.out)


if __name__ == "__main__":
    main()
