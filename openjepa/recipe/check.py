"""From plain values to a Recipe, and what a user reads where they do not fit: key, value and the nearest right key."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import ValidationError

from openjepa.recipe.base import Section
from openjepa.recipe.methods import SECTIONS
from openjepa.recipe.migrate import TODAY, migrate
from openjepa.recipe.sections import Recipe
from openjepa.recipe.views import ViewGroup

_BRANCHES = ("tuple[", "function-", "constrained-", "literal[")


def build_recipe(values: dict[str, Any], where: str = "recipe") -> Recipe:
    """Check plain values and make a Recipe; ValueError names the key, the value and the nearest right key."""
    try:
        return Recipe.model_validate(migrate(values))
    except ValidationError as error:
        raise ValueError(f"{where}: {explain_validation(error)}") from None


def explain_validation(error: ValidationError) -> str:
    """The first problem of a pydantic error, in one line, with the nearest key where one is misspelt."""
    problems = error.errors()
    problem = next((found for found in problems if found["type"] == "extra_forbidden"), problems[0])
    loc, method = list(problem["loc"]), None
    if loc[:1] == ["method"] and loc[1:2] and loc[1] in SECTIONS:
        method = str(loc.pop(1))
    key = ".".join(str(part) for part in loc if not _is_union_branch(part))
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        owners = [name for name in SECTIONS if method and key in recipe_keys(name)]
        whose = f" (it belongs to method.name {' and '.join(owners)})" if owners else ""
        return f"unknown key {key}{whose}; did you mean {_nearest_key(key, method)}?"
    if problem["type"] == "missing":
        return f"{key} is missing"
    if problem["type"] == "union_tag_invalid":
        name = str(problem["ctx"]["tag"])
        near = difflib.get_close_matches(name, SECTIONS, n=1, cutoff=0.0)[0]
        return f"method.name = {name!r}: there is no such method; did you mean {near}? There are {', '.join(SECTIONS)}"
    if problem["type"] in ("model_type", "model_attributes_type", "dict_type", "union_tag_not_found"):
        within = [name for name in recipe_keys(method) if name.startswith(f"{key}.")]
        return f"{key} = {problem['input']!r}: it is a group of keys: {', '.join(within)}"
    if isinstance(problem["input"], dict | Section):
        return f"{key}.{message}" if key else message
    return f"{key} = {problem['input']!r}: {message}" if key else message


def recipe_keys(method: str | None = None) -> list[str]:
    """Every dotted key that a recipe of a method may hold, groups before the keys within them; of all methods if None."""
    keys: list[str] = []
    names = [method] if method else list(SECTIONS)
    for name, field in Recipe.model_fields.items():
        if name == "views":
            groups = dict.fromkeys(group for of in names for group in SECTIONS[of].VIEWS)
            keys += [key for group in groups for key in _keys_of(ViewGroup, f"views.{group}.")]
        elif name == "method":
            keys += dict.fromkeys(key for of in names for key in _keys_of(SECTIONS[of], "method."))
        elif (section := find_section(field.annotation)) is not None:
            keys += _keys_of(section, f"{name}.")
        else:
            keys.append(name)
    return keys


def find_section(annotation: Any) -> type[Section] | None:
    """The section that a field holds, alone or as `Section | None`; None for a value."""
    found = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type) and issubclass(kind, Section)]
    return found[0] if found else None


def _keys_of(section: type[Section], prefix: str) -> list[str]:
    keys: list[str] = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if (inner := find_section(field.annotation)) is not None:
            keys += _keys_of(inner, f"{prefix}{name}.")
    return keys


def _nearest_key(key: str, method: str | None) -> str:
    """The dotted key most like a misspelt one: its last part weighs more than the group it is in."""
    if key in TODAY:
        return TODAY[key]
    group, _, last = key.rpartition(".")

    def likeness(known: str) -> float:
        known_group, _, known_last = known.rpartition(".")
        same_group = difflib.SequenceMatcher(None, group, known_group).ratio()
        return (last == known_last) + difflib.SequenceMatcher(None, last, known_last).ratio() + 0.5 * same_group

    return max([*Recipe.model_fields, *recipe_keys(method)], key=likeness)


def _is_union_branch(part: int | str) -> bool:
    """Whether pydantic put the part into the location to name a branch of a union, not a key."""
    return isinstance(part, str) and (part in {"int", "float", "none", "bool", "str"} or part.startswith(_BRANCHES))
