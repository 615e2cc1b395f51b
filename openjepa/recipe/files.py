"""Recipes as files: load, extend, write.

A recipe is a YAML file of differences from the defaults in sections.py; `extends: NAME` starts from another recipe
(edit.merge). An unknown key is an error that names the nearest right one.
"""

from __future__ import annotations

import difflib
import os
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from openjepa.recipe.check import build_recipe
from openjepa.recipe.edit import merge
from openjepa.recipe.migrate import migrate
from openjepa.recipe.sections import Recipe

AUTO = "auto"  # in a recipe's place: commands/auto.py makes one for the data and the machine

RENAMED = {  # recipes that had another name in version 0.1, where the brief was called the seed
    "seed_vit_base_16": "brief_vit_base_16",
    "seed_vit_base_16_solved": "brief_vit_base_16_solved",
}


def list_recipes() -> list[str]:
    """Names of the recipes that ship with OpenJEPA, in alphabetical order."""
    folder = resources.files("openjepa.recipe") / "shipped"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_recipe(name_or_file: str | Path) -> Recipe:
    """Read a shipped recipe by name, or a YAML file by path.

    Raises ValueError with one line if there is no such recipe, a key is unknown or a value does not fit.
    """
    values = _read_values(str(name_or_file), seen=())
    return build_recipe(values, where=str(name_or_file))


def to_yaml(recipe: Recipe) -> str:
    """The whole resolved recipe as YAML that load_recipe reads back."""
    return str(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=120))


def _read_values(name_or_file: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """Values of a recipe over those of the recipe it extends."""
    if name_or_file in seen:
        raise ValueError(f"recipe {name_or_file} extends itself: {' > '.join((*seen, name_or_file))}")
    if name_or_file == AUTO:
        raise ValueError(
            "recipe auto is chosen for the data: openjepa doctor DATA --recipe auto shows it, "
            "openjepa pretrain DATA --recipe auto writes it to RUN/recipe.yaml"
        )
    name_or_file = RENAMED.get(name_or_file, name_or_file)
    shipped = list_recipes()
    if name_or_file in shipped:
        text = (resources.files("openjepa.recipe") / "shipped" / f"{name_or_file}.yaml").read_text("utf-8")
    elif (file := Path(os.path.expanduser(name_or_file))).exists() and not file.is_dir():  # also a pipe, as <(...) makes
        text = file.read_text("utf-8", errors="replace")
    else:
        near = difflib.get_close_matches(name_or_file, shipped, n=1, cutoff=0.0)
        raise ValueError(f"no recipe or file {name_or_file!r}; did you mean {near[0]}? Shipped: {', '.join(shipped)}")
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ValueError(f"{name_or_file}{where}: not valid YAML") from None
    if not isinstance(values, dict):
        raise ValueError(f"{name_or_file}: a recipe is a mapping of sections, found {type(values).__name__}")
    strange = [key for key in values if not isinstance(key, str)]
    if strange:
        raise ValueError(f"{name_or_file}: {strange[0]!r} is not the name of a section")
    base = values.pop("extends", None)
    values.setdefault("name", Path(name_or_file).stem)
    if base is None:
        return migrate(values)
    beside = (Path(os.path.expanduser(name_or_file)).parent / str(base)).resolve()
    found = str(beside) if str(base) not in shipped and beside.is_file() else str(base)
    below = _read_values(found, (*seen, name_or_file))
    return merge(below, migrate(values, below))
