"""Recipes as nested plain values: merged, changed by dotted keys, compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import yaml

from openjepa.recipe.check import build_recipe
from openjepa.recipe.methods import SECTIONS
from openjepa.recipe.sections import Recipe
from openjepa.recipe.views import ViewGroup

Values = dict[str, Any]


def merge(base: Values, over: Values) -> Values:
    """A recipe's values over those of another. With another method, what does not fit it is left behind.

    Of the base's method section the keys stay that both methods have, and of its views the groups that both have and mask
    alike. So `method.name=ijepa` over an MAE recipe keeps its masks, predictor and regulariser.
    """
    before, after = _name_method(base) or "ijepa", _name_method(over)
    if after is not None and before != after and {before, after} <= SECTIONS.keys():
        base = _fit_to_method(base, before, after)
    return _merge(base, over)


def with_changes(recipe: Recipe, changes: Mapping[str, Any], where: str | None = None) -> Recipe:
    """The recipe with the values of some dotted keys replaced. ValueError if a key is unknown or a value does not fit.

    where: what the message calls the recipe; "recipe NAME" if not given.
    """
    values = merge(recipe.model_dump(), nest(changes))
    return build_recipe(values, where=where or f"recipe {recipe.name}")


def read_assignments(words: Iterable[str]) -> Values:
    """{dotted key: value} of words such as optim.lr=1e-3; a value is read as YAML. ValueError if a word is not an assignment."""
    changes: Values = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise ValueError(f"{word!r} is not KEY=VALUE, as in train.length=300steps; `openjepa keys` lists the keys")
        try:
            changes[key.replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"{key}: the value {value!r} cannot be read as YAML") from None
    return changes


def nest(changes: Mapping[str, Any]) -> Values:
    """Dotted keys as nested values. A key set to a value as a whole comes before the keys within it."""
    nested: Values = {}
    for path, value in sorted(changes.items(), key=lambda pair: pair[0].count(".")):
        *groups, last = path.split(".")
        place = nested
        for group in groups:
            if not isinstance(place.get(group), dict):
                place[group] = {}
            place = place[group]
        place[last] = deepcopy(value)
    return nested


def changed_keys(old: Recipe, new: Recipe) -> dict[str, tuple[Any, Any]]:
    """The dotted keys whose values differ, as {key: (old, new)}; a group that one of them lacks is None there."""
    before, after = (flatten(recipe.model_dump(mode="json")) for recipe in (old, new))
    keys = [*before, *(key for key in after if key not in before)]
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def flatten(values: Values, prefix: str = "") -> Values:
    """Nested values by dotted key."""
    flat: Values = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def list_sections(values: Values, prefix: str = "") -> set[str]:
    """The dotted keys of the groups that are there, as method.momentum; one that is off is not."""
    found: set[str] = set()
    for key, value in values.items():
        if isinstance(value, dict):
            found |= {prefix + key} | list_sections(value, f"{prefix}{key}.")
    return found


def _merge(base: Values, over: Values) -> Values:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _name_method(values: Values) -> str | None:
    """The method that values name; None where they name none."""
    method = values.get("method")
    name = method.get("name") if isinstance(method, dict) else None
    return name if isinstance(name, str) else None


def _fit_to_method(base: Values, before: str, after: str) -> Values:
    old, new = SECTIONS[before], SECTIONS[after]
    common = new.model_fields.keys() & old.model_fields.keys() - {"name"}
    method, views = base.get("method"), base.get("views", {})
    method = method if isinstance(method, dict) else {}
    kinds = {name: _find_kind(group) for name, group in old.VIEWS.items()}
    alike = [name for name, group in new.VIEWS.items() if kinds.get(name) == _find_kind(group)]
    fitted = {"method": {key: value for key, value in method.items() if key in common}}
    if isinstance(views, dict):
        fitted["views"] = {name: group for name, group in views.items() if name in alike}
    return base | fitted


def _find_kind(group: ViewGroup) -> tuple[int, bool, bool, bool]:
    """Number of views, whether they are masked, whether several times, and whether they are whole images.

    Another method takes a group that agrees in these.
    """
    has_many_masks = group.mask is not None and group.mask.per_view > 1
    return group.count, group.mask is None, has_many_masks, group.crop_scale is None
