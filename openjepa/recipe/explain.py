"""Every key of recipes in words, with its value and type: what `openjepa keys` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from openjepa.recipe.base import Section
from openjepa.recipe.check import find_section
from openjepa.recipe.methods import SECTIONS
from openjepa.recipe.sections import Recipe
from openjepa.recipe.views import ViewGroup


def explain_keys(prefix: str = "", recipe: Recipe | None = None) -> Iterator[str]:
    """Lines of key, value and meaning for the keys that begin with a prefix. ValueError if there is none.

    recipe: whose values and method's keys are shown; None: the defaults, and the keys of every method.
    """
    found = [line for key, line in _list_keys(recipe) if key.startswith(prefix.replace("-", "_"))]
    if not found:
        raise ValueError(f"no recipe key begins with {prefix!r}; the groups are {', '.join(Recipe.model_fields)}")
    yield from found


def _list_keys(recipe: Recipe | None) -> Iterator[tuple[str, str]]:
    shown = recipe or Recipe()
    for name, field in Recipe.model_fields.items():
        value = getattr(shown, name)
        if name == "method":
            for section in [recipe.method] if recipe else [of.model_validate({}) for of in SECTIONS.values()]:
                yield name, f"method, of {section.name}:"
                yield from _list_section(type(section), section, "method.")
        elif name == "views":
            groups = recipe.views if recipe else _list_groups()
            for group, views in groups.items():
                yield from _list_section(ViewGroup, views, f"views.{group}.")
        elif isinstance(value, Section):
            yield from _list_section(type(value), value, f"{name}.")
        else:
            yield name, _line(name, value, field)


def _list_groups() -> dict[str, ViewGroup]:
    """The groups of views of all methods, each as the first method that has it takes it."""
    return {group: views for section in reversed(SECTIONS.values()) for group, views in section.VIEWS.items()}


def _list_section(section: type[Section], values: Section | None, prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in section.model_fields.items():
        key, inner = prefix + name, find_section(field.annotation)
        value = getattr(values, name) if values is not None else None if field.is_required() else field.default
        if inner is None:
            yield key, _line(key, value, field)
            continue
        if value is None:
            yield key, _line(key, None, field)
        yield from _list_section(inner, value, f"{key}.")


def _line(key: str, value: Any, field: FieldInfo) -> str:
    """As `optim.lr = 0.001: ...`, with the choices where there are some; of a group that is off, null, its keys show defaults."""
    shown = "null" if value is None else str(list(value)) if isinstance(value, tuple) else str(value)
    choices = " | ".join(_list_choices(field.annotation))
    words = " ".join((field.description or "").split())
    return f"{key} = {shown}{f' ({choices})' if choices else ''}: {words}"


def _list_choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return []
