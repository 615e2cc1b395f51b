"""The rows of a comparison: what a user names, and what is trained or measured for it.

NAME                a recipe, a method (its small recipe, NAME_small) or auto, which is chosen for the data: trained
NAME,KEY=VALUE,...  the same with values of its own
random:ROW          the encoder of such a row before its first step, one for each seed
pixels:ROW, pixels  the pixels that the row's encoder sees; of the first row that is trained
RUN                 a run folder or a checkpoint file: measured as it is
timm:NAME, hf:FOLDER, random:RUN, pixels:SIZE   whatever else evals/encoders.py opens: measured as it is

Rows that are trained share images and encoder: those of the first of them, as its recipe has them (SHARED). A row's own values
come last, so it can differ in anything; the table says in what. Sides of small views (views.local of DINO) keep their share of
the image.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from openjepa.commands.auto import choose
from openjepa.evals.encoders import OPENERS
from openjepa.recipe.edit import flatten, read_assignments, with_changes
from openjepa.recipe.files import AUTO, list_recipes, load_recipe
from openjepa.recipe.methods import SECTIONS
from openjepa.recipe.sections import Recipe
from openjepa.runs.folder import RunFolder
from openjepa.runs.paths import user_path

Kind = Literal["trained", "untrained", "pixels", "measured"]
SMALL = "_small"  # ends the name of a method's small recipe
# What all rows that are trained have in common, of the first one: how images are read, and the encoder.
SHARED = ("data.image_size", "data.channels", "data.normalization", "data.white_level", "data.black_level", "data.nodata",
          "data.layout", "data.pages", "model", "train.precision")  # fmt: skip
LONGEST = 120  # bytes of a folder's name; a file system takes 255, and a seed and the names of temporary files come on top
_CHANGE = re.compile(r",(?=[a-z_]+(?:\.[\w-]+)*=)")  # a comma in front of KEY=, not one within a value


@dataclass(frozen=True)
class Entrant:
    """A row: what it is called, and its recipe, or the encoder that is measured as it is.

    recipe: of all kinds but measured; spec: of that kind, as evals/encoders.py reads it.
    """

    name: str
    kind: Kind
    recipe: Recipe | None = None
    spec: str = ""

    @property
    def has_seeds(self) -> bool:
        """Whether each seed gives another encoder."""
        return self.kind in ("trained", "untrained")

    def at_seed(self, seed: int) -> Recipe:
        """The recipe with a seed."""
        assert self.recipe is not None
        return with_changes(self.recipe, {"train.seed": seed}, self.name)


@dataclass(frozen=True)
class Variant:
    """A row that is a recipe with some dotted keys changed, for tables that know their recipe."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)

    def over(self, base: Recipe, common: Mapping[str, Any]) -> Entrant:
        """The row; common: keys that all rows change."""
        return Entrant(self.name, "trained", with_changes(base, {**common, **self.changes}, self.name))


def list_baselines(row: Entrant) -> list[Entrant]:
    """Raw pixels, and the untrained encoder of a row."""
    return [Entrant("raw pixels", "pixels", row.recipe), Entrant("untrained encoder", "untrained", row.recipe)]


@dataclass(frozen=True)
class Budget:
    """How long each run is trained, where one is: one of the three."""

    minutes: float | None = None
    steps: int | None = None
    images: int | None = None

    def length(self, recipe: Recipe) -> str:
        """The recipe's train.length. ValueError unless one of the three is given, and is above 0."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise ValueError("a budget is either --minutes or --steps or --images, one of them")
        ((name, value),) = given.items()
        if not 0 < value < math.inf:
            raise ValueError(f"--{name} must be above 0, not {value:g}")
        if name == "images":
            return f"{math.ceil(value / recipe.batch_size)}steps"
        return f"{value:g}minutes" if name == "minutes" else f"{value}steps"

    def __str__(self) -> str:
        amounts = ((self.minutes, "minute"), (self.steps, "step"), (self.images, "image"))
        return next(f"{value:,g} {unit}{'' if value == 1 else 's'}" for value, unit in amounts if value is not None)


def read_rows(words: Sequence[str], data: str, changes: Mapping[str, Any], budget: Budget) -> list[Entrant]:
    """The rows that a user names. data: the training images, which auto looks at; changes: dotted keys of all rows.

    Raises ValueError for a row that is nothing, is named twice, or whose values do not fit.
    """
    if twice := next((word for word in words if words.count(word) > 1), None):
        raise ValueError(f"the row {twice} is named twice")
    named = [_split(word) for word in words]
    bases = {name: _load(name, data) for _, name, _ in named if _is_recipe(name)}
    first = next((bases[name] for _, name, _ in named if name in bases), None)
    shared = {} if first is None else _list_shared(with_changes(first, changes))
    found = []
    for word, (kind, name, own) in zip(words, named, strict=True):
        if name in bases:
            recipe = _fit(bases[name], shared, changes, own, word)
            if kind == "trained":
                recipe = with_changes(recipe, {"train.length": budget.length(recipe)}, word)
            found.append(Entrant(word, kind, recipe))
        elif word == "pixels":
            if first is None:
                raise ValueError("pixels of which size? No row is trained here: write pixels:28, or pixels:RUN")
            found.append(Entrant(word, "pixels", with_changes(first, {**shared, **changes}, word)))
        else:
            found.append(Entrant(word, "measured", spec=_check_spec(word)))
    return found


def _split(word: str) -> tuple[Kind, str, dict[str, Any]]:
    """What a word asks for, of which recipe or encoder, with which values of its own."""
    head, *changes = _CHANGE.split(word)
    start, colon, rest = head.partition(":")
    if colon and start in ("random", "pixels") and _is_recipe(rest):
        return ("untrained" if start == "random" else "pixels"), rest, read_assignments(changes)
    if changes and not _is_recipe(head):
        raise ValueError(f"{word}: only a recipe has values to change, and {head} is none; {_name_recipes(head)}")
    return "trained", head, read_assignments(changes)


def _is_recipe(name: str) -> bool:
    is_file = Path(name).suffix in (".yaml", ".yml") and user_path(name).is_file()
    return name == AUTO or name in SECTIONS or name in list_recipes() or is_file


def _load(name: str, data: str) -> Recipe:
    if name == AUTO:
        return choose(data)[0]
    return load_recipe(f"{name}{SMALL}" if name in SECTIONS and name not in list_recipes() else name)


def _list_shared(first: Recipe) -> dict[str, Any]:
    values = flatten(first.model_dump())
    return {key: value for key, value in values.items() if key in SHARED or key.startswith("model.")}


def _fit(base: Recipe, shared: Mapping[str, Any], changes: Mapping[str, Any], own: Mapping[str, Any], where: str) -> Recipe:
    """A row's recipe: its own, with the shared images and encoder, then what all rows change, then what it changes itself."""
    asked = {**shared, **changes, **own}
    before, after = base.data.size, shared["data.image_size"]
    ratio = (after if isinstance(after, int) else after[0]) / before[0]
    patch = asked["model.patch_size"]
    for name, group in base.views.items():
        if group.size is not None and ratio != 1:
            sides = [max(round(ratio * side / patch), 1) * patch for side in base.size_of(group)]
            asked = {f"views.{name}.size": sides[0] if sides[0] == sides[1] else tuple(sides), **asked}
    recipe = with_changes(base, asked, where)
    if recipe.data.batch_size == "auto":
        raise ValueError(f"{where}: data.batch_size auto would give each row another batch; name a number")
    return recipe


def _check_spec(word: str) -> str:
    """A spec that evals/encoders.py opens. ValueError names what a word may have meant."""
    kind, colon, rest = word.partition(":")
    if colon and kind in OPENERS and rest:
        return word
    path = user_path(word)
    if path.is_file() or RunFolder(path).exists():
        return word
    if path.is_dir():
        RunFolder(path).require()
    kinds = ", ".join(f"{name}:" for name in OPENERS)
    raise ValueError(f"no row {word!r}: neither a recipe nor a run folder, nor one of {kinds}; {_name_recipes(word)}")


def _name_recipes(word: str) -> str:
    known = [AUTO, *SECTIONS, *list_recipes()]
    return f"did you mean {difflib.get_close_matches(word, known, n=1, cutoff=0.0)[0]}? `openjepa recipes` lists them"


def slug(name: str) -> str:
    """A row's name as a folder's, or the start of one."""
    words = "-".join("".join(letter if letter.isalnum() or letter == "." else " " for letter in name).split()).strip(".-")
    if len(words.encode()) <= LONGEST:
        return words or "row"
    short = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:8]
    return f"{words.encode()[: LONGEST - 9].decode('utf-8', 'ignore')}-{short}"
