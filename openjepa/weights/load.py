"""Encoders and methods out of run folders and checkpoint files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from openjepa.data.reading import Reading, reading_of
from openjepa.engine.checkpoint import find_latest, load_checkpoint
from openjepa.engine.precision import pick_device
from openjepa.methods import Method
from openjepa.methods.make import make_encoder, make_method
from openjepa.nn.encoder import Encoder
from openjepa.recipe.check import build_recipe
from openjepa.recipe.sections import Recipe
from openjepa.runs.folder import RunFolder
from openjepa.runs.paths import user_path

EncoderName = Literal["context", "target"]


def load_encoder(run: str | Path, encoder: EncoderName = "context", device: str = "cpu", layers: int = 1) -> Encoder:
    """The encoder of a run folder's newest checkpoint, or of a checkpoint file, ready for evaluation.

    Called on (B, C, H, W) images, uint8 or floats in [0, 1], it gives `pooled` (B, D x layers) and `patches` (B, h, w, D).
    ValueError if there is no undamaged checkpoint, or it lacks the encoder or the layers.
    """
    prefix = f"method.{encoder}_encoder."
    tensors, info = load_checkpoint(find_checkpoint(run), prefix)
    if not tensors:
        other = "target" if encoder == "context" else "context"
        raise ValueError(f"{run} holds no {encoder} encoder; --encoder {other} is there")
    with torch.device("meta"):  # no random weights to be thrown away: half the memory, and seconds for a large encoder
        vit = make_encoder(_recipe_of(info))
    vit.load_state_dict({name.removeprefix(prefix): value for name, value in tensors.items()}, strict=True, assign=True)
    return Encoder(vit, info["mean"], info["std"], layers).to(pick_device(device)).eval()


def load_reading(run: str | Path) -> Reading:
    """How the run's images were read: by its white level, layout and pages."""
    _, info = load_checkpoint(find_checkpoint(run), prefix="method.context_encoder.pos_embed")
    return reading_of(_recipe_of(info).data)


def name_method(run: str | Path) -> str:
    """The method that a run folder or checkpoint file was trained by."""
    _, info = load_checkpoint(find_checkpoint(run), prefix="method.context_encoder.pos_embed")
    return _recipe_of(info).method.name


def load_random_encoder(run: str | Path, device: str = "cpu", layers: int = 1) -> Encoder:
    """The run's context encoder as it was before the first step: the same seed draws the same weights."""
    _, info = load_checkpoint(find_checkpoint(run), prefix="method.context_encoder.pos_embed")
    recipe = _recipe_of(info)
    torch.manual_seed(recipe.train.seed)
    return Encoder(make_encoder(recipe), info["mean"], info["std"], layers).to(pick_device(device)).eval()


def find_checkpoint(run: str | Path) -> Path:
    """A checkpoint file itself, or the newest undamaged one of a run folder."""
    path = user_path(run)
    if path.is_file():
        return path
    folder = RunFolder(path)
    folder.require()
    latest, _ = find_latest(folder.checkpoints)
    if latest is None:
        raise ValueError(f"{path} has no checkpoint yet; train it further: openjepa pretrain DATA --out {path} --resume")
    return latest


class TrainedMethod(NamedTuple):
    """A whole method as a checkpoint holds it, its recipe, the normalisation of its images in [0, 1], and its classes if any."""

    method: Method
    recipe: Recipe
    mean: list[float]
    std: list[float]
    classes: list[str] | None = None


def load_method(checkpoint: Path) -> TrainedMethod:
    """The whole method of a checkpoint file, on the CPU, for evaluation. ValueError if one of them is not in it."""
    tensors, info = load_checkpoint(checkpoint, prefix="method.")
    recipe = _recipe_of(info)
    with torch.device("meta"):
        method = make_method(recipe, info.get("num_classes"))
    for part in (name for name, _ in method.named_children() if not name.endswith("_encoder") and name != "pixel_targets"):
        if not any(name.startswith(f"method.{part}.") for name in tensors):
            raise ValueError(f"{checkpoint.name} holds no {part}")
    for name in method.encoders():
        if not any(key.startswith(f"method.{name}_encoder.") for key in tensors):
            raise ValueError(f"{checkpoint.name} holds no {name} encoder")
    weights = {name.removeprefix("method."): value for name, value in tensors.items()}
    method.load_state_dict(weights, strict=True, assign=True)
    return TrainedMethod(method.eval(), recipe, info["mean"], info["std"], info.get("classes"))


def _recipe_of(info: dict[str, Any]) -> Recipe:
    return build_recipe(info["recipe"], where="the checkpoint's recipe")
