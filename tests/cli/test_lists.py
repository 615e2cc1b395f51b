"""Whatever a command passes over or cannot read, it says on the screen and lists beside its output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.console import openjepa
from tests.cli.test_poor_data import QUICK

BAD, MISSED = "page.jpg", "scan.xcf"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of two classes with an HTML page called .jpg and a GIMP file among them, a run and a classifier."""
    place = tmp_path_factory.mktemp("place")
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for number in range(24):
            folder = place / part / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        (place / part / "a" / BAD).write_text("<html>not found</html>")
        (place / part / "b" / MISSED).write_bytes(b"gimp xcf v011")
    openjepa("pretrain", place / "train", "--out", place / "run", *QUICK, "train.length=5steps")
    tuned = ("train.length=4steps", "data.batch_size=16", "data.workers=0")
    parts = ("--train", place / "train", "--test", place / "test")
    openjepa("finetune", place / "run", *parts, "--out", place / "tuned", *tuned)
    return place


@pytest.mark.parametrize(
    ("words", "lists"),
    [
        ("pretrain train --out again", "again/"),
        ("evaluate run --task knn --train train --test test", "run/evals/knn-*-train.|run/evals/knn-*-test."),
        ("finetune run --train train --test test --out more train.length=2steps data.batch_size=16 data.workers=0",
         "more/|more/evals/*-test."),
        ("predict tuned test --out found.csv", "found."),
        ("embed run test --out features.parquet", "features."),
        ("pack train packed --size 16", "packed/"),
        ("doctor train --sheet sheet.png --recipe demo", "sheet."),
    ],
)  # fmt: skip
def test_files_are_counted_and_listed(place: Path, words: str, lists: str):
    arguments = [
        str(place / word) if (place / word).exists() or word in ("again", "more", "packed") else word for word in words.split()
    ]
    flags = [*QUICK, "train.length=5steps"] if words.startswith("pretrain") else []
    said = openjepa(*arguments, *flags, cwd=place)
    printed = said.stdout + said.stderr
    assert MISSED.rpartition(".")[2] in printed, printed
    assert "could not be read" in printed or "cannot be read" in printed, printed
    for start in lists.split("|"):
        for name, file in (("skipped", BAD), ("left_out", MISSED)):
            (found,) = place.glob(f"{start}{name}.txt")
            assert file in found.read_text(), (start, name)
