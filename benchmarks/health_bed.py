"""The test bed of the health verdict: short runs, good and deliberately bad, on grey and on colour images.

    OMP_NUM_THREADS=1 python benchmarks/health_bed.py --out runs/bed --jobs 2   trains what is missing; stop and start it at will
    python benchmarks/verdicts.py runs/bed --runs                               the tables of docs/health.md

A run is a case of CASES: `openjepa pretrain` on a small recipe for a few hundred steps, a run folder like any other, and an
outcome.json with probes before and after. Grey cases train on the embedded Fashion-MNIST sample at 28 px; colour cases on
../shared/data/clipart at 64 and 224 px and on generated scenes at 64 px. Sabotage that no recipe can express (no stop-gradient,
black images, targets of other images ...) is done here, by small subclasses, and is no option of the product.

The outcome of a run, by the rule of outcomes.py, needs labels: 20-NN accuracy of the trained context encoder, pooled, against
that of the same encoder before its first step. 20-NN and not the linear probe, which standardises features and so undoes much of
a collapse. A third of the colour cases, by a hash of their names, is held out: no limit of health/verdict.py was chosen on them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tarfile
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from openjepa.commands import pretrain as run
from openjepa.data.decode import Decoded, Picture, Pixels
from openjepa.data.pack import write_pack
from openjepa.data.scenes.make import make_scenes
from openjepa.data.sources import ImageSource, open_source
from openjepa.evals.features import extract_features
from openjepa.evals.knn import score_knn
from openjepa.evals.linear import score_linear
from openjepa.masks import Masks
from openjepa.methods import ijepa
from openjepa.methods.ijepa import IJEPA
from openjepa.nn.encoder import Encoder
from openjepa.nn.vit import gather_tokens
from openjepa.recipe.check import build_recipe
from openjepa.recipe.edit import nest, with_changes
from openjepa.recipe.sections import Recipe
from openjepa.runs.folder import RunFolder, write_json
from openjepa.weights.load import load_encoder, load_random_encoder

HELD_OUT = 3  # one case in so many
PACK_PX = 224  # shorter side of packed images, at most
PROBES = {"knn": score_knn, "linear": score_linear}
CLIPART = Path(__file__).resolve().parents[2] / "shared" / "data" / "clipart"
SCENES = {"train": 3000, "test": 1000, "size": 64, "seed": 0}


def masked(**changes: Any) -> dict[str, Any]:
    """Keys of the masks."""
    return {f"views.main.mask.{key}": value for key, value in changes.items()}


def follow(start: float, end: float = 1.0) -> dict[str, Any]:
    """Momentum from start to end."""
    return {"method.momentum.start": start, "method.momentum.end": end}


UNION = masked(sampler="union", num_contexts=4, context_scale=(0.15, 0.20), context_aspect=(0.75, 1.5), num_targets=2,
               target_scale=(0.10, 0.15))  # fmt: skip
MULTIBLOCK = masked(sampler="multiblock", num_contexts=1, context_scale=(0.85, 1.0), context_aspect=(1.0, 1.0), num_targets=4,
                    target_scale=(0.15, 0.2))  # fmt: skip
COMMON: dict[str, Any] = {
    "data.batch_size": 64, "data.workers": 0, "data.normalization": "measured",
    "model.encoder": "tiny", "model.width": 64, "model.depth": 2, "model.heads": 2,
    "method.predictor.width": 32, "method.predictor.depth": 1, "method.predictor.heads": 2,
    "method.target_input": "image", "method.target_norm": "layer", "method.predict": "joint", "method.loss": "mse",
    "method.regularizer.name": "vicreg", "method.regularizer.weight": 0.3, "method.momentum.schedule": "linear",
    "optim.clip_grad_norm": 1.0, "train.log_every_steps": 1, "train.precision": "fp32", "train.device": "cpu",
} | follow(0.99)  # fmt: skip
BASE = COMMON | UNION | {  # the demo recipe, smaller and shorter, so with a momentum that lets the target follow
    "data.image_size": 28, "data.channels": 1, "model.patch_size": 4, "views.main.crop_scale": None, "views.main.flip": 0.0,
    "method.regularizer.acts_on": "pooled", "optim.lr": 2e-3, "optim.warmup_frac": 0.05, "train.length": "500steps",
}  # fmt: skip
COLOUR = COMMON | masked(sampler="random", context_scale=(0.25, 0.25), target_scale=(0.75, 0.75)) | {
    # the recipe small_10k predicting features, smaller and shorter
    "data.image_size": 64, "data.channels": 3, "model.patch_size": 16, "views.main.crop_scale": (0.3, 1.0),
    "views.main.flip": 0.5, "method.regularizer.acts_on": "tokens", "optim.lr": 2.5e-3, "optim.warmup_frac": 0.1,
    "train.length": "400steps",
}  # fmt: skip
NO_TERM = {"method.regularizer": None}
PAPER = MULTIBLOCK | NO_TERM | {"method.predict": "per_block", "method.loss": "smooth_l1"}
MAE_CHANGES = NO_TERM | masked(sampler="random", context_scale=(0.25, 0.25)) | {
    "method.name": "mae", "method.targets": "pixels",
}  # fmt: skip


class NoStopGradient(IJEPA):
    """Targets are the context encoder's own, and gradients flow through them: the trivial solution is one step away."""

    def make_targets(
        self, images: Float[Tensor, "batch channels height width"], masks: Masks
    ) -> Float[Tensor, "batch blocks target dim"]:
        tokens = self.context_encoder(images).float()
        targets: Tensor = gather_tokens(tokens, masks.target_idx.flatten(1)).unflatten(1, (masks.target_idx.shape[1], -1))
        return targets


class PositionTargets(IJEPA):
    """Targets are those of the mean image: they say where a patch is and nothing of what is there."""

    def make_targets(
        self, images: Float[Tensor, "batch channels height width"], masks: Masks
    ) -> Float[Tensor, "batch blocks target dim"]:
        return super().make_targets(torch.zeros_like(images), masks)


class OtherTargets(IJEPA):
    """Targets are those of another image of the batch: nothing about them can be predicted but the average."""

    def make_targets(
        self, images: Float[Tensor, "batch channels height width"], masks: Masks
    ) -> Float[Tensor, "batch blocks target dim"]:
        return super().make_targets(images.roll(1, 0), masks)


Alteration = Callable[[ImageSource, int], Pixels]


@dataclass(frozen=True)
class AlteredSource:
    """Another source's images, altered."""

    source: ImageSource
    alter: Alteration

    @property
    def spec(self) -> str:
        return self.source.spec

    @property
    def channels(self) -> int:
        return self.source.channels

    @property
    def labels(self) -> None:
        return None

    @property
    def classes(self) -> list[str]:
        return []

    def __len__(self) -> int:
        return len(self.source)

    def open(self, index: int) -> Picture:
        return Decoded(self.alter(self.source, index))

    def load(self, index: int) -> Pixels:
        return self.alter(self.source, index)

    def path(self, index: int) -> str:
        return self.source.path(index)


def draw_noise(source: ImageSource, index: int) -> Pixels:
    """Every pixel on its own."""
    return np.random.default_rng(index).integers(0, 256, source.load(index).shape, np.uint8)


def shuffle_pixels(source: ImageSource, index: int) -> Pixels:
    """The pixels of every image in an order of its own."""
    pixels = source.load(index)
    return np.random.default_rng(index).permutation(pixels.reshape(-1, pixels.shape[2])).reshape(pixels.shape)


def fill(value: int) -> Alteration:
    """One grey level everywhere."""
    return lambda source, index: np.full_like(source.load(index), value)


def repeat(count: int) -> Alteration:
    """The first images over and over."""
    return lambda source, index: source.load(index % count)


@dataclass(frozen=True)
class Case:
    """A run of the bed: differences from its kind's recipe by dotted key, and sabotage."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    method: type[IJEPA] | None = None
    alter: Alteration | None = None
    kind: str = "grey"

    @property
    def held_out(self) -> bool:
        return zlib.crc32(self.name.encode()) % HELD_OUT == 0

    def make_recipe(self) -> Recipe:
        base = build_recipe(nest(BASE if self.kind == "grey" else COLOUR))
        return with_changes(base, self.changes | {"train.seed": self.seed}, self.name)


SIGREG = {"method.regularizer.name": "sigreg", "method.regularizer.weight": 0.1}
DEEPER = {"model.width": 96, "model.depth": 3, "model.heads": 3, "method.predictor.width": 48,
          "method.predictor.heads": 3}  # fmt: skip

GREY = [
    Case("base"),
    Case("base, seed 1", seed=1),
    Case("base, seed 2", seed=2),
    Case("crops and flips", {"views.main.crop_scale": (0.6, 1.0), "views.main.flip": 0.5}),
    Case("MAE", MAE_CHANGES),
    Case("MAE, seed 1", MAE_CHANGES, seed=1),
    Case("multiblock masks", MULTIBLOCK),
    Case("multiblock masks, per block", MULTIBLOCK | {"method.predict": "per_block"}, seed=1),
    Case("random masks", masked(sampler="random", context_scale=(0.25, 0.25))),
    Case("block masks", masked(sampler="block")),
    Case("VICReg x 0.1", {"method.regularizer.weight": 0.1}),
    Case("VICReg x 1", {"method.regularizer.weight": 1.0}),
    Case("SIGReg", SIGREG),
    Case("rate x 2", {"optim.lr": 4e-3}),
    Case("rate x 0.5", {"optim.lr": 1e-3}),
    Case("rate x 0.1", {"optim.lr": 2e-4}, seed=1),
    Case("raw targets", {"method.target_norm": "none"}),
    Case("smooth L1", {"method.loss": "smooth_l1"}),
    Case("target sees patches alone", {"method.target_input": "patches", "method.target_norm": "none"}),
    Case("momentum 0.996", follow(0.996)),
    Case("momentum 0.9, VICReg", follow(0.9, 0.9)),
    Case("batch 32", {"data.batch_size": 32, "optim.lr": 1e-3}),
    Case("momentum 1: the target never moves", follow(1.0) | NO_TERM),
    Case("paper recipe", PAPER),
    Case("paper recipe, momentum 0.998", PAPER | follow(0.998), seed=1),
    Case("paper recipe, rate x 0.25", PAPER | {"optim.lr": 5e-4}),
    Case("seed masks, no term", NO_TERM),
    Case("seed masks, no term, momentum 0.998", NO_TERM | follow(0.998), seed=1),
    Case("momentum 0.9, no term", NO_TERM | follow(0.9, 0.9)),
    Case("momentum 0.9, no term, raw targets", NO_TERM | follow(0.9, 0.9) | {"method.target_norm": "none"}),
    Case("momentum 0, no term", NO_TERM | follow(0.0, 0.0)),
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
    Case("VICReg x 1000", {"method.regularizer.weight": 300.0}),
    Case("constant images", alter=fill(128)),
    Case("black images, no term", NO_TERM, alter=fill(0)),
    Case("one repeated image", alter=repeat(1)),
    Case("three images", alter=repeat(3)),
    Case("noise", alter=draw_noise),
    Case("shuffled pixels", alter=shuffle_pixels),
    Case("position-only targets", method=PositionTargets),
    Case("position-only targets, no term", NO_TERM, method=PositionTargets, seed=1),
    Case("targets of another image", method=OtherTargets),
    Case("targets of another image, no term", NO_TERM, method=OtherTargets, seed=1),
    Case("deeper encoder", DEEPER, seed=7),
    Case("deeper encoder, paper recipe", DEEPER | PAPER, seed=7),
    Case("deeper encoder, MAE", DEEPER | MAE_CHANGES, seed=7),
    Case("patches of 7 px", {"model.patch_size": 7}, seed=7),
    Case("block masks, no term", NO_TERM | masked(sampler="block"), seed=7),
    Case("rate x 10", {"optim.lr": 2e-2}, seed=7),
]

PIXELS = {"method.name": "mae", "method.targets": "normalised_pixels"}
COLOUR_MAE = PIXELS | NO_TERM | {"optim.lr": 1e-3}
PER_BLOCK = MULTIBLOCK | {"method.predict": "per_block"}
COLOUR_PAPER = PER_BLOCK | NO_TERM | {"method.loss": "smooth_l1"}
LARGE = {"data.image_size": 224, "model.patch_size": 32, "data.batch_size": 32}
STILL = {"optim.lr": 1e-12}
EXPLODING = {"optim.lr": 2.5, "optim.clip_grad_norm": None}

CLIPART_CASES: list[tuple[str, dict[str, Any], int]] = [
    ("features", {}, 0),
    ("features, seed 1", {}, 1),
    ("features, seed 2", {}, 2),
    ("pixels", PIXELS, 0),
    ("pixels, seed 1", PIXELS, 1),
    ("MAE", COLOUR_MAE, 0),
    ("MAE, seed 1", COLOUR_MAE, 1),
    ("multiblock per block", PER_BLOCK, 1),
    ("union", UNION, 0),
    ("SIGReg", SIGREG, 0),
    ("rate x 0.3", {"optim.lr": 7.5e-4}, 0),
    ("rate x 0.1", {"optim.lr": 2.5e-4}, 1),
    ("whole images", {"views.main.crop_scale": None, "views.main.flip": 0.0}, 0),
    ("rate 1e-12", STILL, 0),
    ("rate 1e-12, pixels", PIXELS | STILL, 1),
    ("rate 1e-12, MAE", COLOUR_MAE | STILL, 2),
    ("paper", COLOUR_PAPER, 0),
    ("no term", NO_TERM, 0),
    ("no term, momentum 0", NO_TERM | follow(0.0, 0.0), 1),
    ("union, no term, raw targets, momentum 0.9", UNION | NO_TERM | follow(0.9, 0.9) | {"method.target_norm": "none"}, 0),
    ("rate x 10", {"optim.lr": 2.5e-2}, 0),
    ("rate x 30", {"optim.lr": 7.5e-2}, 1),
    ("rate x 1000, raw targets, no clipping", EXPLODING | {"method.target_norm": "none"}, 0),
    ("rate x 1000, MAE, no clipping", COLOUR_MAE | EXPLODING, 1),
    ("VICReg x 1000", {"method.regularizer.weight": 300.0}, 0),
]  # fmt: skip
LARGE_CASES = ("features", "pixels", "MAE", "multiblock per block", "rate 1e-12", "paper", "rate x 30",
               "rate x 1000, MAE, no clipping", "rate x 0.1")  # fmt: skip
SCENES_CASES = (
    "features",
    "pixels",
    "MAE",
    "rate 1e-12",
    "paper",
    "rate x 30",
    "rate x 1000, raw targets, no clipping",
)
COLOURED = [
    *(Case(name, changes, seed, kind="clip art") for name, changes, seed in CLIPART_CASES),
    Case("no stop-gradient", NO_TERM, method=NoStopGradient, kind="clip art"),
    Case("noise", alter=draw_noise, kind="clip art"),
    Case("one repeated image", alter=repeat(1), kind="clip art"),
    *(
        Case(f"{name}, 224 px", LARGE | changes, seed, kind="clip art")
        for name, changes, seed in CLIPART_CASES
        if name in LARGE_CASES
    ),
    Case("rate 1e-12, paper, 224 px", LARGE | COLOUR_PAPER | STILL, 3, kind="clip art"),
    Case("no stop-gradient, 224 px", LARGE | NO_TERM, method=NoStopGradient, kind="clip art"),
    *(Case(f"{name}, scenes", changes, seed, kind="scenes") for name, changes, seed in CLIPART_CASES if name in SCENES_CASES),
    Case("no stop-gradient, scenes", NO_TERM, method=NoStopGradient, kind="scenes"),
]
CASES = GREY + COLOURED


def prepare_data(out: Path) -> dict[str, tuple[str, str, str]]:
    """Training images, and labelled ones to fit and test probes on, by kind; packed once, which is quicker to read."""
    specs = {"grey": ("sample:train", "sample:train", "sample:test")}
    for kind, folder in (("clip art", "clipart"), ("scenes", "scenes")):
        packs = {part: out / "data" / f"{folder}-{part}" for part in ("train", "test")}
        if not all(pack.exists() for pack in packs.values()):
            raw = out / "data" / folder
            if not raw.exists():
                draw_scenes(raw) if kind == "scenes" else unpack_clipart(raw)
            for part, pack in packs.items():
                if not pack.exists():
                    write_pack(open_source(str(raw / part), 3), pack, PACK_PX)
        specs[kind] = (str(packs["train"]), str(packs["train"]), str(packs["test"]))
    return specs


def unpack_clipart(folder: Path) -> None:
    """../shared/data/clipart as folders of classes."""
    for part in ("train", "test"):
        with tarfile.open(CLIPART / f"{part}.tar") as archive:
            archive.extractall(folder / part, filter="data")


def draw_scenes(folder: Path) -> None:
    """Generated scenes."""
    make_scenes(folder, **SCENES)


def probe(encoder: Encoder, fit: ImageSource, test: ImageSource) -> dict[str, float | None]:
    """Accuracies in per cent by both protocols; None where features are not finite."""
    try:
        features = [extract_features(encoder, source) for source in (fit, test)]
    except ValueError:
        return dict.fromkeys(PROBES, None)
    return {name: 100 * score(features[0], features[1], 0).score for name, score in PROBES.items()}


def run_case(case: Case, out: Path, specs: tuple[str, str, str]) -> str:
    """Train a case as a run and probe its encoder before and after; gives a line to print."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    started = time.process_time()
    train, fit, test = specs
    folder, recipe = RunFolder(find_folder(out, case)), case.make_recipe()
    stopped = None
    with ExitStack() as stack:
        if case.method is not None:
            stack.enter_context(patch.object(ijepa, "IJEPA", case.method))
        if (alter := case.alter) is not None:
            stack.enter_context(patch.object(run, "open_source", lambda *given: AlteredSource(open_source(*given), alter)))
        try:
            run.pretrain(train, recipe, folder.path, resume=folder.exists(), console=Console(quiet=True))
        except ArithmeticError as error:
            stopped = str(error)
    sources = [open_source(spec, recipe.data.channels) for spec in (fit, test)]
    before, after = (probe(load(folder.path), *sources) for load in (load_random_encoder, load_encoder))
    outcome = {"variant": case.name, "seed": case.seed, **after}
    facts = {"kind": case.kind, "held_out": case.held_out, "before": before, "labels": fit, "test": test, "stopped": stopped}
    write_json(folder.path / "outcome.json", {"outcome": outcome} | facts)
    shown = "; ".join(f"{name} {_word(before[name])} -> {_word(after[name])}" for name in PROBES)
    return f"{case.kind}, {case.name}: {shown}; {time.process_time() - started:.0f} CPU s {stopped or ''}"


def _word(accuracy: float | None) -> str:
    return "none" if accuracy is None else f"{accuracy:.1f}"


def find_folder(out: Path, case: Case) -> Path:
    """Where a case is kept: its name in letters that every file system takes."""
    return out / "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in f"{case.kind} {case.name}")


def main() -> None:
    """Run every case that is not finished yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the bed's runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, each of OMP_NUM_THREADS threads")
    parser.add_argument("--only", nargs="+", help="kinds of images: grey, clip art, scenes")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    specs = prepare_data(asked.out)
    todo = [case for case in CASES if not (find_folder(asked.out, case) / "outcome.json").is_file()]
    todo = [case for case in todo if not asked.only or case.kind in asked.only]
    context = multiprocessing.get_context("spawn")  # forked PyTorch threads hang
    with ProcessPoolExecutor(asked.jobs, mp_context=context) as pool:
        futures = [pool.submit(run_numbered, CASES.index(case), asked.out, specs[case.kind]) for case in todo]
        for number, done in enumerate(as_completed(futures), start=1):
            print(f"{number}/{len(todo)} {done.result()}", flush=True)


def run_numbered(number: int, out: Path, specs: tuple[str, str, str]) -> str:
    """run_case by number: a process is sent plain values."""
    return run_case(CASES[number], out, specs)


if __name__ == "__main__":
    main()
