"""The test bed of the health verdict: about fifty short runs, good and deliberately bad, on the embedded Fashion-MNIST sample.

    OMP_NUM_THREADS=1 python benchmarks/health_bed.py --out runs/bed            trains what is missing; stop and start it at will
    python benchmarks/health_bed.py --out runs/bed --measure                    health of every run's snapshots -> bed.jsonl
    python benchmarks/health_bed.py --out runs/bed --table [--picture F.png]    the tables of docs/health.md, from bed.jsonl

A run is a case of CASES: a small encoder trained for STEPS steps, weights kept at every MEASURED_EVERY steps. So what is
measured, how it is judged and what it is worth can be changed without training again. Sabotage that no recipe can express (no
stop-gradient, black images, targets of other images ...) is done here, by small subclasses, and is no option of the product.

The outcome of a run, by the rule of outcomes.py, needs labels: 20-NN accuracy of the trained context encoder, pooled, on
sample:test with NUM_TRAIN labelled images of sample:train, against that of the same encoder before its first step. *Diverged* is
training that stopped for ten steps that were not finite, or a mean loss of the last 20 steps over ten times that of the first 20.
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

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.outcomes import is_right, name_outcome, tabulate_outcomes
from openjepa.build import find_normalization, make_batches, make_trainer
from openjepa.config import Recipe, build_recipe
from openjepa.data.sources import ArraySource, open_source
from openjepa.evals import PROTOCOLS
from openjepa.evals.features import extract_features
from openjepa.health import Verdict, judge
from openjepa.masks import Masks, sample_masks
from openjepa.methods import IJEPA, METHODS, Method
from openjepa.methods.ijepa import mean_tokens
from openjepa.monitor import HealthMonitor
from openjepa.nn.encoder import Encoder, gather_tokens, normalise
from openjepa.records import read_json, write_json
from openjepa.train import StepRecord, Trainer

STEPS = 500
MEASURED_EVERY = 25
NUM_TRAIN = 5000
NUM_IMAGES = 256  # that health is measured on, as in a run
NUM_VIEWS = 6
FROM_STEP = ("loss", "explained_variance", "explained_content", "content_frac", "grad_norm", "skipped_in_a_row")

BASE: dict[str, dict[str, Any]] = {  # the demo recipe, smaller and shorter, so with a momentum that lets the target follow
    "data": {"image_size": 28, "channels": 1, "batch_size": 64, "workers": 0, "augmentation": "none",
             "normalization": "measured"},
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
    """A run of the bed: differences from BASE as section.key, and sabotage."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    method: type[IJEPA] | None = None
    images: Callable[[np.ndarray], np.ndarray] | None = None
    held_out: bool = False

    def make_recipe(self) -> Recipe:
        values: dict[str, Any] = {section: dict(keys) for section, keys in BASE.items()}
        for key, value in self.changes.items():
            section, _, name = key.partition(".")
            values[section][name] = value
        values["train"]["seed"] = self.seed
        return build_recipe(values, where=self.name)


DEEPER = {"model.width": 96, "model.depth": 3, "model.heads": 3, "model.predictor_width": 48, "model.predictor_heads": 3}

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
    Case(
        "momentum 0.9, no term, raw targets", NO_TERM | {"momentum.start": 0.9, "momentum.end": 0.9, "method.target_norm": "none"}
    ),
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
    # From here on trained when the limits of health.py stood. (They were chosen on the runs up to "three images".)
    Case("deeper encoder", DEEPER, seed=7, held_out=True),
    Case("deeper encoder, paper recipe", DEEPER | PAPER, seed=7, held_out=True),
    Case("deeper encoder, MAE", DEEPER | MAE_CHANGES, seed=7, held_out=True),
    Case("patches of 7 px", {"model.patch_size": 7}, seed=7, held_out=True),
    Case("block masks, no term", NO_TERM | {"mask.sampler": "block"}, seed=7, held_out=True),
    Case("rate x 10", {"optim.lr": 2e-2}, seed=7, held_out=True),
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


def measure_case(case: Case, folder: Path) -> None:
    """Health rows of a trained case as a run would have written them, and the scores of its last snapshot."""
    recipe, source = case.make_recipe(), open_images(case)
    trainer = make_case_trainer(case, recipe)
    steps = {row["step"]: row for row in read_lines(folder / "steps.jsonl")}
    monitor = HealthMonitor(source, recipe.data.size, NUM_IMAGES)
    rows = []
    for path in sorted(folder.glob("step-*.safetensors")):
        trainer.method.load_state_dict(load_file(path))
        step = steps[int(path.stem.removeprefix("step-"))]
        rows.append({"step": step["step"], **monitor.measure(trainer.method, trainer.mean, trainer.std)})
        rows[-1] |= {name: step[name] for name in FROM_STEP}
    views = encode_views(trainer, recipe, monitor.batches).double()
    write_json(folder / "health.json", {"rows": rows, "lidar": lidar(views), "view_bits": view_bits(views)})


@torch.inference_mode()
def encode_views(trainer: Trainer, recipe: Recipe, batches: list[Tensor]) -> Float[Tensor, "images views dim"]:
    """Pooled context features of NUM_VIEWS masked views of every image, by the recipe's own contexts."""
    encoded = []
    for number, images in enumerate(batches):
        views = []
        for view in range(NUM_VIEWS):
            masks = sample_masks(recipe.mask, recipe.grid, len(images), seed=view, step=number)
            context_mask = masks.context_mask
            normal = normalise(images, trainer.mean, trainer.std)
            views.append(mean_tokens(trainer.method.context_encoder(normal, masks.context_idx, context_mask), context_mask))
        encoded.append(torch.stack(views, dim=1))
    return torch.cat(encoded)


def between_over_within(views: Float[Tensor, "images views dim"]) -> Float[Tensor, " dim"]:
    """Eigenvalues of W^-1/2 B W^-1/2: B is the covariance of the images' means, W that of an image's views, plus 1e-4."""
    num_images, num_views, dim = views.shape
    means = views.mean(1)
    spread = (views - means[:, None]).flatten(0, 1)
    within = spread.T @ spread / (num_images * (num_views - 1)) + 1e-4 * torch.eye(dim, dtype=views.dtype)
    values, vectors = torch.linalg.eigh(within)
    whiten = vectors / values.sqrt() @ vectors.T
    return torch.linalg.eigvalsh(whiten @ means.T.cov() @ whiten).clamp_min(0)


def lidar(views: Float[Tensor, "images views dim"]) -> float:
    """LiDAR: effective rank of the linear discriminant of images by their views (arXiv 2312.04000, section 4)."""
    shares = between_over_within(views)
    shares = shares / shares.sum().clamp_min(1e-30) + 1e-12
    return float(torch.exp(-(shares * shares.log()).sum()))


def view_bits(views: Float[Tensor, "images views dim"]) -> float:
    """Bits that a view tells about which image it is of, were both Gaussian: LiDAR's eigenvalues as a channel's capacity."""
    return float(between_over_within(views).log1p().sum() / 2 / np.log(2))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def decide_outcome(facts: dict[str, Any], steps: list[dict[str, Any]]) -> str:
    """The outcome as the head of this file defines it."""
    losses = [row["loss"] for row in steps]
    if facts["stopped"] or np.mean(losses[-20:]) > 10 * np.mean(losses[:20]):
        return "diverged"
    return name_outcome(100 * (facts["after"]["knn"] - facts["before"]["knn"]))


def collect(out: Path) -> None:
    """Measure what has been trained and write bed.jsonl, a line a run."""
    lines = []
    for case in CASES:
        folder = find_folder(out, case)
        if not (folder / "facts.json").is_file():
            continue
        if not (folder / "health.json").is_file():
            measure_case(case, folder)
        facts, health = read_json(folder / "facts.json"), read_json(folder / "health.json")
        outcome = decide_outcome(facts, read_lines(folder / "steps.jsonl"))
        lines.append(
            {
                "name": case.name,
                "held_out": case.held_out,
                "outcome": outcome,
                "before": facts["before"],
                "after": facts["after"],
                **health,
            }
        )
    (out / "bed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def judge_at(line: dict[str, Any], share: float) -> Verdict:
    """The verdict on a run of the bed at a share of its steps, from the rows that a run of this length writes: every second."""
    last = share * (STEPS - 1)
    rows = [row for row in line["rows"][::2] if row["step"] <= last + MEASURED_EVERY / 2]
    if share == 1 and rows[-1] is not line["rows"][-1]:
        rows.append(line["rows"][-1])
    return judge(rows)


SCORES: dict[str, Callable[[dict[str, Any]], float]] = {
    "effective rank, pooled features": lambda line: line["rows"][-1]["effective_rank_pooled"],
    "effective rank, patch features": lambda line: line["rows"][-1]["effective_rank_patches"],
    "LiDAR over 6 masked views": lambda line: line["lidar"],
    "bits a masked view tells of its image": lambda line: line["view_bits"],
    "explained variance": lambda line: line["rows"][-1]["explained_variance"],
    "the same against each position's mean": lambda line: line["rows"][-1]["explained_content"],
    "feature standard deviation": lambda line: line["rows"][-1]["feature_std"],
    "cosine between images, negative": lambda line: -line["rows"][-1]["image_cosine"],
    "loss, negative": lambda line: -line["rows"][-1]["loss"],
}


def correlate(lines: list[dict[str, Any]], score: str, protocol: str) -> float:
    """Spearman's correlation of a score with an accuracy at the end of the runs."""
    values = [SCORES[score](line) for line in lines]
    return float(spearmanr(values, [line["after"][protocol] for line in lines]).statistic)


def make_tables(lines: list[dict[str, Any]]) -> str:
    """Agreement, earliness, scores and every run, as Markdown."""
    text = [tabulate_outcomes([(line["outcome"], judge_at(line, 0.2).label) for line in lines])]
    text += [
        "",
        "| measured up to | right | of those held out | learned runs ever called collapsed so far |",
        "|---|---:|---:|---:|",
    ]
    for share in (0.1, 0.2, 0.3, 0.5, 1.0):
        right = [is_right(line["outcome"], judge_at(line, share).label) for line in lines]
        held_out = [is_right(line["outcome"], judge_at(line, share).label) for line in lines if line["held_out"]]
        alarms = sum(
            any(judge_at(line, step / 10).label == "collapsed" for step in range(1, round(10 * share) + 1))
            for line in lines
            if line["outcome"] == "learned"
        )
        text.append(f"| {share:.0%} of the run | {sum(right)} of {len(right)} | {sum(held_out)} of {len(held_out)} | {alarms} |")
    text += ["", "| score at the end of the run | Spearman with 20-NN | with the linear probe |", "|---|---:|---:|"]
    for score in SCORES:
        text.append(f"| {score} | {correlate(lines, score, 'knn'):.2f} | {correlate(lines, score, 'linear'):.2f} |")
    between = spearmanr([line["after"]["knn"] for line in lines], [line["after"]["linear"] for line in lines]).statistic
    text.append(f"| 20-NN itself | 1 | {between:.2f} |")
    text += [
        "",
        "| run | 20-NN before, after | linear before, after | effective rank | outcome | verdict at a fifth | at the end |",
    ]
    text.append("|---|---|---|---:|---|---|---|")
    for line in lines:
        accuracies = [f"{100 * line['before'][name]:.1f}, {100 * line['after'][name]:.1f}" for name in PROTOCOLS]
        labels = [judge_at(line, share).label for share in (0.2, 1.0)]
        shown = [label if is_right(line["outcome"], label) else f"**{label}**" for label in labels]
        name = line["name"] + (" (held out)" if line["held_out"] else "")
        rank = line["rows"][-1]["effective_rank_pooled"]
        text.append(f"| {name} | {' | '.join(accuracies)} | {rank:.1f} | {line['outcome']} | {' | '.join(shown)} |")
    return "\n".join(text)


def draw_picture(lines: list[dict[str, Any]], file: Path) -> None:
    """Effective rank of patch features against both accuracies, a dot a run."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    score = "effective rank, patch features"
    for axis, (protocol, title) in zip(axes, (("knn", "20-NN"), ("linear", "linear probe")), strict=True):
        for outcome, colour in (("learned", "tab:green"), ("no better", "tab:orange"), ("worse", "tab:red"), ("diverged", "k")):
            runs = [line for line in lines if line["outcome"] == outcome]
            heights = [100 * line["after"][protocol] for line in runs]
            axis.scatter([SCORES[score](line) for line in runs], heights, s=14, color=colour, label=outcome if runs else None)
        axis.set(xscale="log", xlabel=score, ylabel=f"{title} accuracy, %")
        axis.set_title(f"{title}: Spearman {correlate(lines, score, protocol):.2f}", fontsize=10)
    axes[0].legend(fontsize=8)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=100)
    plt.close(figure)


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
    parser.add_argument("--measure", action="store_true", help="measure what there is and train nothing")
    parser.add_argument("--table", action="store_true", help="print the tables of docs/health.md from bed.jsonl")
    parser.add_argument("--picture", type=Path, help="draw docs/health.png from bed.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    options.out.mkdir(parents=True, exist_ok=True)
    if options.table or options.picture:
        lines = read_lines(options.out / "bed.jsonl")
        if options.table:
            print(make_tables(lines))
        if options.picture:
            draw_picture(lines, options.picture)
        return
    if not options.measure:
        train_missing(options.out)
    collect(options.out)


if __name__ == "__main__":
    main()
