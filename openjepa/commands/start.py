"""What a training on labels starts from: the recipe of an encoder's shape, and its weights or none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from openjepa.engine.checkpoint import load_checkpoint
from openjepa.health.verdict import Verdict
from openjepa.recipe.check import build_recipe
from openjepa.recipe.edit import with_changes
from openjepa.recipe.files import list_recipes, load_recipe
from openjepa.recipe.sections import Recipe
from openjepa.runs.folder import Row
from openjepa.weights.load import find_checkpoint


class Start(NamedTuple):
    """What an encoder spec gives a run to start from: the recipe that its shape is of, and weights or none."""

    recipe: Recipe
    weights: Path | None


class Tuned(NamedTuple):
    """The verdict on the training, and the record of what was trained on test images."""

    verdict: Verdict
    record: Row


def find_start(spec: str) -> Start:
    """The recipe of an encoder's shape, and the checkpoint of its weights. ValueError for an encoder of another kind."""
    kind, _, rest = spec.partition(":")
    if kind == "random" and rest in list_recipes():
        return Start(load_recipe(rest), None)
    if kind in ("timm", "hf", "pixels") and not Path(spec).exists():
        cure = "; openjepa import makes a checkpoint of it" if kind != "pixels" else ""
        raise ValueError(f"{spec} cannot be fine-tuned: name a run folder, a checkpoint file or random:RECIPE{cure}")
    checkpoint = find_checkpoint(rest if kind == "random" and not Path(spec).exists() else spec)
    _, info = load_checkpoint(checkpoint, prefix="method.context_encoder.pos_embed")
    recipe = build_recipe(info["recipe"], where=f"the recipe in {checkpoint}")
    return Start(recipe, None if kind == "random" and not Path(spec).exists() else checkpoint)


def fit_to_encoder(recipe: Recipe, start: Start, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe with the encoder and the size of images of the weights, and images normalised as they were for them."""
    data, model = start.recipe.data, start.recipe.model
    given = {
        "data.image_size": data.image_size, "data.channels": data.channels, "data.workers": data.workers,
        **{f"data.{key}": getattr(data, key) for key in ("white_level", "black_level", "nodata", "layout", "pages", "window")},
        "data.normalization": "measured" if start.weights is None else "init",
        **{f"model.{key}": value for key, value in model.model_dump().items()},
        "train.precision": start.recipe.train.precision, "train.device": start.recipe.train.device,
    }  # fmt: skip
    return with_changes(recipe, given | dict(changes or {}))
