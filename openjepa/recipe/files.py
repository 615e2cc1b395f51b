"""Recipes as files and plain values: load, extend, check, migrate, write.

A recipe is a YAML file of differences from the defaults in sections.py; `extends: NAME` starts from another recipe. An unknown
key is an error that names the nearest right one.
"""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from openjepa.recipe.sections import OF_WHOLE_BATCH, TARGETS, Momentum, Recipe, Section

AUTO = "auto"  # in a recipe's place: commands/auto.py makes one for the data and the machine

RENAMED = {  # recipes that had another name in version 0.1, where the brief was called the seed
    "seed_vit_base_16": "brief_vit_base_16",
    "seed_vit_base_16_solved": "brief_vit_base_16_solved",
}
METHOD_KEYS_0_1 = {  # of every recipe that version 0.1 recorded: it left none out
    "name", "targets", "target_input", "target_norm", "target_layers", "predict", "loss",
    "regularizer", "regularizer_on", "regularizer_weight",
}  # fmt: skip


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


def build_recipe(values: dict[str, Any], where: str = "recipe") -> Recipe:
    """Check plain values and make a Recipe; ValueError names the key, the value and the nearest right key."""
    try:
        return Recipe.model_validate(migrate(values))
    except ValidationError as error:
        raise ValueError(f"{where}: {explain_validation(error)}") from None


def migrate(values: dict[str, Any]) -> dict[str, Any]:
    """A whole recipe of version 0.1, from run.json, recipe.yaml or a checkpoint, in today's words.

    There pixels and their PCA were targets of ijepa, with a target encoder that nothing used, and mae did
    not say what it predicts: both are mae's now, with the same weights and loss. Rates above optim.lr, and
    parts of a batch where the loss needs the whole, were accepted. Other values are given back unchanged: a
    file of differences, which has no version either, is refused where it says so, and its writer can edit it.
    """
    sections: list[Any] = [values.get(name) for name in ("method", "optim", "momentum", "train")]
    method, optim, momentum, train = sections
    is_whole = all(isinstance(section, dict) for section in sections) and method.keys() >= METHOD_KEYS_0_1
    if "version" in values or not is_whole:
        return values
    if method["name"] == "mae":
        method = method | {"targets": "pixels"}
    elif method["targets"] in TARGETS["mae"]:
        method, momentum = method | {"name": "mae"}, Momentum().model_dump()
    if any(method[key] == value for key, value in OF_WHOLE_BATCH):
        train = train | {"accumulation_steps": 1}
    rates = {key: optim.get(key) for key in ("lr", "start_lr", "final_lr")}
    if all(isinstance(rate, float) for rate in rates.values()):
        optim = optim | {key: min(rate, rates["lr"]) for key, rate in rates.items()}
    return values | {"method": method, "optim": optim, "momentum": momentum, "train": train}


def explain_validation(error: ValidationError) -> str:
    """The first problem of a pydantic error, in one line, with the nearest key where one is misspelt."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"] if not _is_union_branch(part))
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}; did you mean {_nearest_key(key)}?"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key} = {problem['input']!r}: {message}" if key else message


def recipe_keys() -> list[str]:
    """Every key that a recipe may hold, as section.key."""
    keys: list[str] = []
    for name, field in Recipe.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            keys += [f"{name}.{key}" for key in section.model_fields]
        else:
            keys.append(name)
    return keys


def _nearest_key(key: str) -> str:
    """The section or section.key most like a misspelt one: its last part weighs more than the section it is in."""
    section, _, last = key.rpartition(".")

    def likeness(known: str) -> float:
        known_section, _, known_last = known.rpartition(".")
        same_section = difflib.SequenceMatcher(None, section, known_section).ratio()
        return difflib.SequenceMatcher(None, last, known_last).ratio() + 0.5 * same_section

    return max([*Recipe.model_fields, *recipe_keys()], key=likeness)


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
    elif Path(name_or_file).is_file():
        text = Path(name_or_file).read_text("utf-8", errors="replace")
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
        return values
    beside = (Path(name_or_file).parent / str(base)).resolve()
    found = str(beside) if str(base) not in shipped and beside.is_file() else str(base)
    return _merge(_read_values(found, (*seen, name_or_file)), values)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _is_union_branch(part: int | str) -> bool:
    """Whether pydantic put the part into the location to name a branch of a union, not a key."""
    return isinstance(part, str) and (part in {"int", "float", "none", "bool", "str"} or part.startswith(("tuple[", "function-")))
