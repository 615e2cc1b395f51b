"""The import graph is the one that docs/architecture.md draws: arrows point down only.

Every import counts, also those inside functions and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import shutil
from functools import cache
from pathlib import Path

import pytest

import openjepa

PACKAGE = Path(openjepa.__file__).parent

# From top to bottom. A group may import groups of lower tiers and itself; groups of one tier know nothing of one another.
# "api" is openjepa/__init__.py, the names that a user imports.
TIERS = [{"cli"}, {"api"}, {"run"}, {"train", "evals", "interop"}, {"methods", "data"}, {"nn", "masks", "engine", "health"}]
TIERS += [{"config", "records"}]
# The report stands beside the tiers: it reads run folders, so these are all it may import, and only the cli imports it.
REPORT_MAY_IMPORT = {"report", "records", "config", "masks", "api"}
# Modules that lie directly in openjepa/ and are not named like their group.
GROUP_OF_MODULE = {
    "__init__": "api",
    "__main__": "cli",
    "ablate": "run",
    "compare": "run",
    "demo": "cli",
    "doctor": "cli",
    "replay": "cli",
    "summarize": "cli",
    "apply": "run",
    "beliefs": "cli",
    "bench": "cli",
    "bridge": "run",
    "build": "run",
    "choose": "run",
    "initial": "run",
    "journal": "run",
    "lock": "run",
    "machine": "run",
    "memory": "run",
    "monitor": "run",
    "resume": "run",
    "signals": "run",
    "speed": "run",
    "threads": "run",
}
TIMM_IS_IMPORTED_BY = {"nn/encoder.py", "interop/timm.py"}


def find_group(module: str) -> str:
    """Group of a module given by its path below openjepa, such as masks.blocks; AssertionError if it belongs to none."""
    top = module.split(".")[0]
    group = GROUP_OF_MODULE.get(top, top)
    assert group == "report" or any(group in tier for tier in TIERS), f"{module} belongs to no group: give it one in {__file__}"
    return group


def is_allowed(importer: str, imported: str) -> bool:
    if importer == "report":
        return imported in REPORT_MAY_IMPORT
    if imported == "report":
        return importer == "cli"
    rank = {group: number for number, tier in enumerate(TIERS) for group in tier}
    return importer == imported or rank[importer] < rank[imported]


def list_imports(package: Path) -> dict[str, list[str]]:
    """File -> every module or name that it imports, absolute: openjepa.masks, openjepa.masks.Masks, timm."""
    imports: dict[str, list[str]] = {}
    for file in sorted(package.rglob("*.py")):
        place = file.relative_to(package)
        names = imports[place.as_posix()] = []
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                here = ["openjepa", *place.parts[:-1]]
                base = here[: len(here) - node.level + 1] if node.level else []
                names += [".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names]
    return imports


def find_module(name: str, package: Path) -> str:
    """The module below openjepa that a name is or lies in: openjepa.masks.Masks in masks, openjepa.pretrain in __init__."""
    parts = name.split(".")[1:]
    while parts and not (package.joinpath(*parts).is_dir() or package.joinpath(*parts).with_suffix(".py").is_file()):
        parts.pop()
    return ".".join(parts) or "__init__"


def draw_arrows(package: Path) -> dict[tuple[str, str], list[str]]:
    """(importing group, imported group) -> the imports that make the arrow, in words."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for place, names in list_imports(package).items():
        importer = find_group(place.split("/")[0].removesuffix(".py"))
        for name in names:
            if name.split(".")[0] == "openjepa" and name != "openjepa.__version__":  # a constant that anyone may print
                imported = find_group(find_module(name, package))
                arrows.setdefault((importer, imported), []).append(f"{place} imports {name}")
    return arrows


def find_violations(package: Path) -> list[str]:
    wrong = [line for (one, other), lines in draw_arrows(package).items() if not is_allowed(one, other) for line in lines]
    for place, names in list_imports(package).items():
        if place not in TIMM_IS_IMPORTED_BY:
            wrong += [f"{place} imports {name}" for name in names if name.split(".")[0] == "timm"]
        if place != "__init__.py":  # the lazy public API; what it imports so is repeated for type checkers, and seen there
            wrong += [f"{place} uses {name}, an arrow that nobody sees" for name in names if name == "importlib.import_module"]
    return wrong


@cache
def violations_before() -> list[str]:
    return find_violations(PACKAGE)


def test_arrows_point_down() -> None:
    assert violations_before() == []


def test_the_drawing_is_not_empty() -> None:
    drawn = set(draw_arrows(PACKAGE))
    assert {("run", "train"), ("train", "engine"), ("methods", "nn"), ("masks", "config"), ("report", "records")} <= drawn
    assert any(name.split(".")[0] == "timm" for name in list_imports(PACKAGE)["nn/encoder.py"])


def test_the_lazy_api_names_what_type_checkers_see() -> None:
    seen = {name.rpartition(".")[2]: name.rpartition(".")[0] for name in list_imports(PACKAGE)["__init__.py"]}
    assert {name: f"openjepa.{home}" for name, home in openjepa._HOMES.items()} == {name: seen[name] for name in openjepa._HOMES}
    assert set(openjepa.__all__) == set(openjepa._HOMES)


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("config.py", "import openjepa.records"),
        ("records.py", "from openjepa import config"),
        ("masks/blocks.py", "from openjepa.engine.checkpoint import find_latest"),
        ("masks/blocks.py", "from ..nn import encoder"),
        ("masks/blocks.py", "from .. import health"),
        ("nn/encoder.py", "def late():\n    from openjepa.methods.ijepa import IJEPA"),
        ("engine/optim.py", "import openjepa"),
        ("methods/ijepa.py", "import openjepa.data.loader"),
        ("data/loader.py", "from openjepa import methods"),
        ("train.py", "from openjepa.evals import knn"),
        ("train.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from openjepa.run import pretrain"),
        ("evals/knn.py", "from openjepa import train"),
        ("interop/formats.py", "import openjepa.evals.knn as knn"),
        ("run.py", "from openjepa.cli import main"),
        ("run.py", "from openjepa.report import page"),
        ("report/page.py", "from openjepa.run import pretrain"),
        ("report/page.py", "from openjepa.nn.encoder import Encoder"),
        ("methods/ijepa.py", "import timm"),
        ("nn/predictor.py", "from timm.layers import Mlp"),
        ("evals/knn.py", "from importlib import import_module"),
    ],
)
def test_a_planted_arrow_is_found(tmp_path: Path, place: str, line: str) -> None:
    copy = Path(shutil.copytree(PACKAGE, tmp_path / "openjepa", ignore=shutil.ignore_patterns("__pycache__", "sample")))
    (copy / place).parent.mkdir(exist_ok=True)
    (copy / place).touch()
    with (copy / place).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    planted = [violation for violation in find_violations(copy) if violation not in violations_before()]
    assert len(planted) == 1
    assert planted[0].startswith(place)


def test_a_module_without_a_group_is_found(tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text("import openjepa.config\n")
    with pytest.raises(AssertionError, match="helpers belongs to no group"):
        draw_arrows(tmp_path)
