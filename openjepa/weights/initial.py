"""A new run's first weights from an earlier checkpoint: another run's, or an imported one. Only weights are taken.

Step 0, a fresh optimizer and fresh schedules: this starts a run, where a resume goes on with one. A checkpoint of one encoder
gives its weights to both, and one whose predictor predicts something else gives its encoders alone. Positions are resized if the
grid differs (openjepa/nn/positions.py); any other difference in shape is refused, with the values that make the recipe fit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from openjepa.engine.checkpoint import digest, load_checkpoint
from openjepa.methods import Method
from openjepa.methods.make import make_method
from openjepa.nn.positions import resize_positions
from openjepa.recipe.check import build_recipe
from openjepa.recipe.edit import changed_keys
from openjepa.recipe.methods import IJEPA, MAE
from openjepa.recipe.sections import Recipe
from openjepa.runs.paths import absolute_path
from openjepa.weights.load import find_checkpoint

ENCODERS = ("context_encoder", "target_encoder")
ENCODER_KEYS = {"data.channels", *(f"model.{key}" for key in ("encoder", "width", "depth", "heads", "patch_size"))}


@dataclass(frozen=True)
class InitialWeights:
    """A checkpoint's weights by part, as many as it has and the run takes: context_encoder, target_encoder and predictor."""

    path: Path
    sha256: str
    parts: dict[str, dict[str, Tensor]] = field(repr=False)
    grid: tuple[int, int]
    mean: list[float]  # of the images that they were trained on, in [0, 1], one value a channel
    std: list[float]
    num_encoders: int  # of the run
    encoder: str | None  # the only one taken, where the user chose
    has_predictor: bool  # the run

    def fill(self, method: Method) -> None:
        """Put the weights into a method of the same shapes, in place."""
        for part in (*(f"{name}_encoder" for name in method.encoders()), *self.parts.keys() & {"predictor"}):
            weights = self.parts.get(part)
            if weights is None and part in ENCODERS:
                weights = next(self.parts[encoder] for encoder in ENCODERS if encoder in self.parts)
            if weights is not None:
                table = resize_positions(weights["pos_embed"][0], self.grid, method.context_encoder.grid)[None]
                method.get_submodule(part).load_state_dict(weights | {"pos_embed": table}, strict=True)

    def to_record(self, grid: tuple[int, int]) -> dict[str, str | None]:
        """What run.json says of them, and what opens them again."""
        return {
            "checkpoint": absolute_path(self.path),
            "sha256": self.sha256,
            "encoder": self.encoder,
            "taken": self.describe(grid),
        }

    def describe(self, grid: tuple[int, int]) -> str:
        """What a run on this grid takes, in a line."""
        given = (
            [f"{self.encoder} encoder"] if self.encoder else [part.replace("_", " ") for part in ENCODERS if part in self.parts]
        )
        encoders = " and ".join(given) + (" (for both encoders)" if len(given) < self.num_encoders else "")
        predictor = "predictor" if "predictor" in self.parts else "a new predictor" if self.has_predictor else "nothing else"
        resized = f"; positions resized from {self.grid[0]} x {self.grid[1]} to {grid[0]} x {grid[1]} patches"
        return f"{encoders}, {predictor}{resized if grid != self.grid else ''}; step 0, fresh optimizer"


def open_initial(checkpoint: str | Path, recipe: Recipe, encoder: str | None = None) -> InitialWeights:
    """Read a run folder's newest checkpoint or a checkpoint file; ValueError if it does not fit the recipe.

    encoder: context or target, to start the run's encoder from that one and take nothing else.
    """
    path = find_checkpoint(checkpoint).resolve()
    tensors, info = load_checkpoint(path, prefix="method.")
    theirs = build_recipe(info["recipe"], where=f"the recipe in {path}")
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        _, part, name = key.split(".", 2)
        parts.setdefault(part, {})[name] = value
    if encoder is not None:
        parts = {"context_encoder": weights} if (weights := parts.get(f"{encoder}_encoder")) else {}
    if not parts.keys() & set(ENCODERS):
        raise ValueError(f"{path} holds no {f'{encoder} encoder' if encoder else 'encoder'}")
    with torch.device("meta"):
        method = make_method(recipe, num_classes=2)
    num_encoders, has_predictor = len(method.encoders()), hasattr(method, "predictor")
    if num_encoders == 1 and "context_encoder" in parts:
        parts.pop("target_encoder", None)
    if _find_kind(recipe) is None or _find_kind(theirs) != _find_kind(recipe):
        parts.pop("predictor", None)
    _require_same_shapes(recipe, theirs, "predictor" in parts, path.name)
    return InitialWeights(path, digest(path), parts, theirs.grid, info["mean"], info["std"], num_encoders, encoder, has_predictor)


def _find_kind(recipe: Recipe) -> str | None:
    """What a predictor predicts, which decides its last weights; None without one. Normalised pixels are pixels."""
    if isinstance(recipe.method, MAE):
        return "pca" if recipe.method.targets == "pca" else "pixels"
    return "features" if isinstance(recipe.method, IJEPA) else None


def _require_same_shapes(ours: Recipe, theirs: Recipe, with_predictor: bool, name: str) -> None:
    """ValueError unless the recipe's encoder, and predictor if there is one, have the checkpoint's shapes.

    Compared are the recipes' values, since the number of heads shows in no shape.
    """
    own, other = ours.model, theirs.model
    asked = (own.encoder_shape, own.patch_size, ours.data.channels)
    held = (other.encoder_shape, other.patch_size, theirs.data.channels)
    compared = () if asked == held else ENCODER_KEYS
    flags = [
        f"{key}={'null' if value is None else value}"
        for key, (_, value) in changed_keys(ours, theirs).items()
        if key in compared or (with_predictor and key.startswith("method.predictor."))
    ]
    if flags:
        raise ValueError(f"{name} does not fit the recipe {ours.name}: add {' '.join(flags)}, or choose a recipe that fits")
