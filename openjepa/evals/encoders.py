"""Encoders by spec: whatever is named is measured by the same code.

RUN            a run folder's newest checkpoint, or a checkpoint file
random:RECIPE  an untrained encoder of a recipe's shape; random:RUN, the run's own before its first step
pixels:RUN     the pixels that a run's encoder sees; pixels:SIZE, those of views SIZE px a side
timm:NAME      a timm model with random weights; timm:NAME:FILE, with the weights of a state dict
hf:FOLDER      a model that transformers reads
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from openjepa.data.depth import measure_reading, settle
from openjepa.data.inspect import look_at
from openjepa.data.normalization import find_normalization
from openjepa.data.reading import AS_STORED, Reading, reading_of
from openjepa.data.sources import open_source
from openjepa.engine.checkpoint import digest, load_checkpoint
from openjepa.engine.precision import pick_device
from openjepa.evals.features import ImageEncoder, RawPixels
from openjepa.methods.make import make_encoder
from openjepa.nn.encoder import Encoder
from openjepa.recipe.files import list_recipes, load_recipe
from openjepa.recipe.sections import Recipe
from openjepa.runs.folder import RunFolder
from openjepa.runs.paths import absolute_path, user_path
from openjepa.weights.hf import load_hf_encoder
from openjepa.weights.load import find_checkpoint, load_encoder, load_random_encoder, load_reading
from openjepa.weights.timm import load_timm_encoder

PIXEL_PATCH_FRAC = 8  # pixels:SIZE has patches of an eighth of a side
Candidate = Literal["context", "target", "random", "pixels"]


class Subject(NamedTuple):
    """What is evaluated. name: in tables; weights: another string for other weights; facts: what records say of it."""

    name: str
    encoder: ImageEncoder
    weights: str
    facts: dict[str, Any]
    run: RunFolder | None = None  # where records and features are kept
    reading: Reading = AS_STORED  # how images of more than 8 bits are shown to it


def open_encoder(spec: str | Path, images: str, encoder: Candidate = "context", device: str = "auto") -> Subject:
    """The encoder that a spec names, on the device, ready for evaluation.

    images: the data it will be measured on, whose channels and statistics serve where an encoder has none of its own.
    encoder: of a run or checkpoint: context, target, random (untrained) or pixels. ValueError if there is no such encoder.
    """
    kind, _, rest = str(spec).partition(":")
    place = str(pick_device(device))
    if kind not in OPENERS or Path(spec).exists():
        return _open_run(user_path(spec), encoder, place)
    if encoder != "context":
        raise ValueError(f"--encoder {encoder} chooses among a run's encoders; {spec} is one already: drop it")
    if not rest:
        raise ValueError(f"{spec} lacks what follows the colon: {EXAMPLES[kind]}")
    if kind in ("random", "pixels") and rest not in list_recipes() and _is_run(user_path(rest)):
        return _open_run(user_path(rest), "random" if kind == "random" else "pixels", place)
    subject = OPENERS[kind](rest, images)._replace(reading=measure_reading(images))
    if isinstance(subject.encoder, torch.nn.Module):
        subject.encoder.to(place).eval()
    return subject


def _is_run(path: Path) -> bool:
    """Whether a path is a run folder or a checkpoint file, and not a recipe's."""
    return path.is_dir() or (path.is_file() and path.suffix == ".safetensors")


def _open_run(path: Path, encoder: Candidate, device: str) -> Subject:
    checkpoint = find_checkpoint(path)
    sha256 = digest(checkpoint)
    _, info = load_checkpoint(checkpoint, prefix="method.context_encoder.pos_embed")
    facts = {"run": absolute_path(path), "checkpoint": checkpoint.name, "step": info["step"], "sha256": sha256}
    run = RunFolder(path) if path.is_dir() else None
    shown = _load_candidate(checkpoint, encoder, device)
    return Subject(encoder, shown, f"{sha256}:{encoder}", facts, run, load_reading(checkpoint))


def _load_candidate(checkpoint: Path, name: Candidate, device: str) -> ImageEncoder:
    """One of the things that a probe of a run compares: a trained encoder, the untrained one, or the pixels themselves."""
    if name == "random":
        return load_random_encoder(checkpoint, device)
    if name == "pixels":
        vit = load_random_encoder(checkpoint).vit
        return RawPixels(vit.size, vit.channels, vit.patch_size)
    return load_encoder(checkpoint, name, device)


def _open_random(rest: str, images: str) -> Subject:
    return open_untrained(load_recipe(rest), images, f"random:{rest}")


def open_untrained(recipe: Recipe, images: str, name: str = "random") -> Subject:
    """The encoder that a run of the recipe on these images starts from, on the CPU."""
    source = open_source(images, recipe.data.channels, reading_of(recipe.data))
    data, source, _ = settle(recipe.data, source)
    mean, std = find_normalization(data, source)
    torch.manual_seed(recipe.train.seed)
    encoder = Encoder(make_encoder(recipe), mean, std).eval()
    weights = f"{name}:{recipe.model}:{data.size}:{mean}:{std}:{recipe.train.seed}"
    return Subject(name, encoder, weights, {"spec": name}, reading=reading_of(data))


def _open_pixels(rest: str, images: str) -> Subject:
    if not rest.isdigit() or int(rest) < 1:
        raise ValueError(f"pixels:{rest} names no run and no size; {EXAMPLES['pixels']}")
    side = int(rest)
    patch_size = next(size for size in range(max(side // PIXEL_PATCH_FRAC, 1), 0, -1) if side % size == 0)
    name = f"pixels:{rest}"
    return Subject(name, RawPixels((side, side), look_at(images).channels, patch_size), name, {"spec": name})


def _open_timm(rest: str, images: str) -> Subject:
    model, _, file = rest.partition(":")
    encoder = load_timm_encoder(model, user_path(file) if file else None, look_at(images).channels)
    name = f"timm:{rest}"
    return Subject(name, encoder, f"{name}:{digest(user_path(file)) if file else 'seed 0'}", {"spec": name})


def _open_hf(rest: str, _images: str) -> Subject:
    folder = user_path(rest)
    encoder = load_hf_encoder(folder)
    files = sorted(folder.glob("*.safetensors"))
    return Subject(f"hf:{rest}", encoder, f"hf:{[digest(file) for file in files]}", {"spec": f"hf:{rest}"})


OPENERS = {"random": _open_random, "pixels": _open_pixels, "timm": _open_timm, "hf": _open_hf}
EXAMPLES = {
    "random": "random:small_10k or random:runs/demo",
    "pixels": "pixels:28 or pixels:runs/demo",
    "timm": "timm:vit_small_patch16_224 or timm:vit_small_patch16_224:weights.safetensors",
    "hf": "hf:FOLDER with config.json and model.safetensors",
}
