"""Imports point down, as pyproject.toml's import-linter contract says; timm is made in two files; the lazy API is typed."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import openjepa

PACKAGE = Path(openjepa.__file__).parent
TIMM_IS_IMPORTED_BY = {"data/rand_augment.py", "nn/vit.py", "weights/timm.py"}
PLANTED = {  # module: an import that points up or sideways
    "runs/stop.py": "from openjepa.training.session import Session",
    "recipe/edit.py": "from openjepa.masks import Masks",
    "engine/optim.py": "def late():\n    from openjepa.methods.ijepa import IJEPA",
    "nn/ema.py": "from openjepa.data.loader import Batch",
    "masks/blocks.py": "from openjepa.nn.ema import update_target",
    "data/decode.py": "from openjepa.health.verdict import judge",
    "methods/targets.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import openjepa.weights.load",
    "health/verdict.py": "from openjepa.methods.ijepa import IJEPA",
    "weights/timm.py": "from openjepa.evals.knn import evaluate_knn",
    "evals/knn.py": "from openjepa.training.trainer import Trainer",
    "training/pace.py": "from openjepa.evals.knn import evaluate_knn",
    "report/svg.py": "from openjepa.commands.demo import run_demo",
    "commands/bench.py": "from openjepa.cli import main",
}


def lint_imports(project: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, env={"PYTHONPATH": str(project)}, check=False)


def test_planted_arrows_are_found(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "openjepa", ignore=shutil.ignore_patterns("__pycache__", "sample"))
    (tmp_path / "openjepa" / "data" / "sample").mkdir()
    (tmp_path / "openjepa" / "data" / "sample" / "__init__.py").touch()
    shutil.copy(PACKAGE.parent / "pyproject.toml", tmp_path)
    assert lint_imports(tmp_path).returncode == 0, lint_imports(tmp_path).stdout
    for place, line in PLANTED.items():
        with (tmp_path / "openjepa" / place).open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
    (tmp_path / "openjepa" / "attic.py").write_text('"""A module of no room."""\n')
    found = lint_imports(tmp_path)
    assert found.returncode == 1
    importers = [f"openjepa.{place.removesuffix('.py').replace('/', '.')}" for place in PLANTED]
    assert [name for name in importers if f"- {name} -> " not in found.stdout] == []
    (tmp_path / "openjepa" / "attic.py").unlink()


def list_imports(file: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def test_timm_is_imported_in_two_files() -> None:
    importers = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] == "timm" for name in list_imports(file))
    }
    assert importers == TIMM_IS_IMPORTED_BY


def test_the_lazy_api_names_what_type_checkers_see() -> None:
    seen = {name.rpartition(".")[2]: name.rpartition(".")[0] for name in list_imports(PACKAGE / "__init__.py")}
    assert {name: f"openjepa.{home}" for name, home in openjepa._HOMES.items()} == {name: seen[name] for name in openjepa._HOMES}
    assert set(openjepa.__all__) == set(openjepa._HOMES)
