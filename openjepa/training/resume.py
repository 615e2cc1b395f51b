"""What may change when a run is resumed: for every recipe key, whether it acts from then on or cannot.

Keys that are not in REFUSED, or in a group that is, act from the first resumed step on, once the user accepts them; IGNORED
say nothing about the computation. tests/unit/test_resume.py resumes a run with every key changed.
"""

from __future__ import annotations

from typing import Any

from openjepa.recipe.edit import changed_keys
from openjepa.recipe.sections import Recipe

IGNORED = frozenset({"name", "description", "version"})
_SHAPE = "the weights were made for the recorded value"
_READ = "the weights were trained on images read the recorded way"
_DRAWN = "it decides the first weights, which were drawn long ago"
_PREDICTS = "the predictor was trained to predict something else"
REFUSED = {
    "data.image_size": _SHAPE,
    "data.channels": _SHAPE,
    "data.normalization": "the weights were trained on images normalised the recorded way",
    **dict.fromkeys([f"data.{key}" for key in ("white_level", "black_level", "nodata", "layout", "pages", "window")], _READ),
    "model": _SHAPE,
    "train.seed": _DRAWN,
    "method.name": "the weights were trained for another task",
    "method.predictor": _SHAPE,
    "method.targets": _PREDICTS,
    "method.pool_targets": _PREDICTS,
    "method.projector_width": _SHAPE,
    "method.projector_hidden": _SHAPE,
    "method.projector": _SHAPE,
    "method.decoder": _SHAPE,
    "method.averaged_layers": _PREDICTS,
    "method.freeze_patches": "the optimizer's state is of the weights that were trained",
    "method.detector": _SHAPE,
    "method.channels": _SHAPE,
    "method.frozen": "the optimizer's state is of the weights that were trained",
    "health.num_images": "earlier health measurements are of the recorded number",
    "number of classes": "the classifier was made for the recorded number",
}
PLANNED_FROM = frozenset({"train.length", "data.batch_size", "number of images"})

Changes = dict[str, tuple[Any, Any]]


def find_changes(recorded: Recipe, asked: Recipe) -> Changes:
    """Keys of the recipe whose values differ and matter, as {section.key: (recorded, asked)}."""
    return {key: pair for key, pair in changed_keys(recorded, asked).items() if key not in IGNORED}


def check_changes(changes: Changes, accepted: bool, run: str) -> None:
    """ValueError for a change that a resumed run cannot follow, or that the user has not accepted."""
    if "method.name" in changes:  # all of its section differs
        changes = {"method.name": changes["method.name"]}
    refused = [f"{_word(key, changes[key])}: {reason}" for key in changes if (reason := _why_refused(key))]
    if refused:
        raise ValueError(
            f"{run} cannot go on with {'; '.join(refused)}. Drop the change, or start a new run from its weights: "
            f"another --out, --init {run} and no --resume"
        )
    if changes and not accepted:
        listed = "; ".join(_word(key, pair) for key, pair in changes.items())
        raise ValueError(f"{run} was started with other settings: {listed}. Drop the changes or add --accept-changes")


def _why_refused(key: str) -> str | None:
    """Why a key, or the group that it is in, cannot change."""
    return next((reason for refused, reason in REFUSED.items() if key == refused or key.startswith(f"{refused}.")), None)


def _word(key: str, pair: tuple[Any, Any]) -> str:
    return f"{key} {pair[0]} -> {pair[1]}"
