"""A new mask, task and source are a file and a row each, a method a file and its section with a row: toys in a copy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import openjepa

TOY_MASK = '''"""Every second patch is context, every other one target."""
import torch
from openjepa.masks.masks import Masks

def sample_stripes(generator, grid, batch, settings):
    patches = torch.arange(grid[0] * grid[1]).expand(batch, -1)
    context, target = patches[:, ::2], patches[:, 1::2].unsqueeze(1)
    return Masks(context, torch.full((batch,), context.shape[1]), target, torch.full((batch, 1), target.shape[2]))
'''
TOY_METHOD = '''"""Guess the mean colour of an image from its features."""
from torch import nn
from torch.nn import functional
from openjepa.methods.contract import Method

class Brightness(Method):
    def __init__(self, encoder, settings):
        super().__init__(encoder, settings)
        self.weight, self.head = settings.weight, nn.Linear(encoder.embed_dim, 1)

    def forward(self, batch, rates):
        images = batch.views["main"].flat
        error = functional.mse_loss(self.head(self.context_encoder(images).mean(1)), images.mean((1, 2, 3))[:, None])
        return self.weight * error, {"loss": self.weight * error.detach()}
'''
TOY_SECTION = """class Brightness(MethodSection):
    VIEWS: ClassVar[dict[str, ViewGroup]] = {"main": ViewGroup()}

    name: Literal["brightness"] = "brightness"
    weight: float = 1.0
    "Of the loss."


"""
TOY_TASK = '''"""Always the commonest class."""
import torch
from openjepa.evals.labels import pair_up

def score_commonest(train, test, seed=0):
    pair = pair_up(train, test)
    commonest = pair.train_labels.bincount().argmax()
    return pair.score("commonest", torch.full_like(pair.test_labels, commonest), seed, {}, [])
'''
TOY_SOURCE = '''"""Images of one grey level each, dark ones and light ones."""
import numpy as np
from openjepa.data.sources.arrays import ArraySource

def open_levels(spec, rest, channels, _reading):
    levels = np.linspace(0, 255, int(rest)).astype(np.uint8)
    images, labels = np.tile(levels[:, None, None], (1, 8, 8)), (levels > 85).astype(np.int64)
    return ArraySource(spec, channels, images, labels, ["dark", "light"])
'''
ADDITIONS = (  # the file, its text; the table's file, a place in it, and what is added there
    ("masks/stripes.py", TOY_MASK, "masks/samplers.py",
     ('    "block": sample_block,\n', '    "block": sample_block,\n    "stripes": sample_stripes,\n'),
     "from openjepa.masks.stripes import sample_stripes\n"),
    ("methods/brightness.py", TOY_METHOD, "recipe/methods.py",
     ("SECTIONS: dict[str, type[MethodSection]] = {",
      TOY_SECTION + 'SECTIONS: dict[str, type[MethodSection]] = {"brightness": Brightness, '), ""),
    ("evals/commonest.py", TOY_TASK, "evals/__init__.py",
     ("TASKS: dict[str, Task] = {\n",
      'TASKS: dict[str, Task] = {\n    "commonest": FeatureTask("commonest", "Commonest class", score_commonest),\n'),
     "from openjepa.evals.commonest import score_commonest\n"),
    ("data/sources/levels.py", TOY_SOURCE, "data/sources/__init__.py",
     ("SOURCES = {\n", 'SOURCES = {\n    "levels": SourceKind(("levels:NUMBER",), open_levels),\n'),
     "from openjepa.data.sources.levels import open_levels\n"),
)  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy")
    package = root / "openjepa"
    shutil.copytree(Path(openjepa.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text, table, (place, row), line in ADDITIONS:
        (package / name).write_text(text)
        written = (package / table).read_text()
        assert written.count(place) == 1, table
        start = written.index("from openjepa.")
        (package / table).write_text(written[:start] + line + written[start:].replace(place, row))
    return root


TOY = ("pretrain", "sample:train", "--recipe", "demo", "method.name=brightness", "train.length=6steps", "data.batch_size=16",
       "data.workers=0", "health.num_images=32")  # fmt: skip
LEVELS = ("--train", "levels:90", "--test", "levels:12")
COMMANDS = {
    "masks": ("masks", "--recipe", "mine.yaml", "--out", "masks.png", "--batch-size", "8"),
    "another's key": (*TOY, "method.momentum.start=0.9"),
    "trained": (*TOY, "method.weight=3", "--out", "toy"),
    "resumed": ("pretrain", "sample:train", "--out", "toy", "--resume", "--accept-changes", "train.length=8steps"),
    "measured": ("evaluate", "toy", "--encoder", "pixels", "--task", "commonest", *LEVELS, "--json"),
    "reported": ("report", "toy"),
    "keys": ("keys", "method"),
    "no source": ("evaluate", "pixels:8", "--task", "knn", "--train", "nowhere", "--test", "levels:12"),
}  # fmt: skip
PROGRAM = """
import json, sys
from tests.cli.console import openjepa
print(json.dumps({name: vars(openjepa(*words, check=False)) for name, words in json.loads(sys.argv[1]).items()}))
"""


@pytest.fixture(scope="module")
def done(copy: Path) -> dict[str, dict[str, Any]]:
    """What each command of the changed copy gave, in one process: each of its own would import PyTorch."""
    (copy / "mine.yaml").write_text("extends: demo\nviews: {main: {mask: {sampler: stripes}}}\n")
    paths = os.pathsep.join([str(copy), str(Path(__file__).parents[2])])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, json.dumps(COMMANDS)]
    return json.loads(subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=True).stdout)


def test_a_mask_of_its_own_is_drawn(copy: Path, done: dict[str, dict[str, Any]]) -> None:
    assert done["masks"]["returncode"] == 0, done["masks"]
    assert "context 51.0 %, targets 49.0 %" in done["masks"]["stdout"]  # 25 and 24 of 49 patches
    assert (copy / "masks.png").stat().st_size > 1000


def test_a_method_of_its_own_trains_resumes_and_is_reported(copy: Path, done: dict[str, dict[str, Any]]) -> None:
    """Its section's key acts, another method's is unknown, and the run goes through every command that a run goes through."""
    refused = done["another's key"]
    assert refused["returncode"] == 2 and "method.momentum" in refused["stderr"]
    for name in ("trained", "resumed", "reported"):
        assert done[name]["returncode"] == 0, done[name]
    assert json.loads((copy / "toy" / "run.json").read_text())["recipe"]["method"] == {"name": "brightness", "weight": 3.0}
    assert "method.weight = 1.0" in done["keys"]["stdout"]


def test_a_task_and_a_source_of_ones_own_are_measured_and_reported(copy: Path, done: dict[str, dict[str, Any]]) -> None:
    assert json.loads(done["measured"]["stdout"])["accuracy"] == pytest.approx(8 / 12)
    refused = done["no source"]
    assert refused["returncode"] == 2 and "levels:NUMBER" in refused["stderr"]
    assert "Commonest class" in (copy / "toy" / "report.html").read_text()
