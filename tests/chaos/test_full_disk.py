"""A disk without room: every command that writes says so in one line, leaves nothing half-written and what was there alone.

A limit on the size of files stands for the disk: it fails as a full one does, in the same calls, and needs no rights.
benchmarks/chaos.py fills a real one under a run.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from openjepa.data.scenes import make as scenes
from openjepa.runs.folder import RunFolder
from openjepa.runs.log import Journal
from tests.cli.console import assert_refused, openjepa
from tests.cli.test_poor_data import QUICK


@contextmanager
def no_room(num_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes, a run on them and a fine-tuned one."""
    place = tmp_path_factory.mktemp("place")
    generator = np.random.default_rng(0)
    for number in range(16):
        (place / "data" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "data" / "ab"[number % 2] / f"{number}.png")
    data = place / "data"
    openjepa("pretrain", data, "--out", place / "run", *QUICK, "train.length=3steps")
    tuned = ("train.length=3steps", "data.batch_size=4", "data.workers=0")
    openjepa("finetune", place / "run", "--train", data, "--test", data, "--out", place / "tuned", *tuned)
    openjepa("report", place / "run")
    return place


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("num_bytes", [0, 200])
@pytest.mark.parametrize(
    "words",
    [
        ("report", "run"),
        ("report", "run", "--out", "new.html"),
        ("embed", "run", "data", "--out", "new.parquet"),
        ("predict", "tuned", "data", "--out", "new.csv"),
        ("predict", "tuned", "data", "--out", "new.parquet"),
        ("export", "run", "--format", "safetensors", "--out", "new.safetensors"),
        ("export", "run", "--format", "timm", "--out", "new.safetensors"),
        ("pack", "data", "new", "--workers", "0"),
        ("make-scenes", "new", "--train", "12", "--test", "12", "--size", "32"),
        ("masks", "--recipe", "demo", "--out", "new.png"),
    ],
    ids=lambda words: "-".join(words[:1] + words[3:4]),
)
def test_no_command_leaves_a_part(place: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], num_bytes: int):
    monkeypatch.setattr(scenes, "count_cores", lambda: 1)
    before = contents(place)
    with no_room(num_bytes):
        result = openjepa(*words, cwd=place, check=False)
    assert_refused(result, "")
    assert contents(place) == before
    assert not [path for path in place.iterdir() if path.name not in ("data", "run", "tuned")]


def test_a_result_that_cannot_be_recorded_is_printed(place: Path):
    before = contents(place)
    with no_room(0):
        result = openjepa("evaluate", "run", "--task", "knn", "--train", "data", "--test", "data", cwd=place)
    assert '"accuracy"' in result.stdout and "could not be written" in result.stderr
    assert contents(place) == before


def test_a_log_without_room_names_its_folder_and_prints_no_traceback(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """TensorBoard writes in a thread, whose traceback went to the screen."""
    run = RunFolder(tmp_path / "run")
    run.create()
    with pytest.raises(OSError, match=re.escape(str(run.path))), Journal(run, 0, 9, Console(quiet=True)) as journal:  # noqa: PT012
        journal.events.add_scalar("first", 1.0, 0)
        journal.events.flush()
        for step in range(10_000):
            run.metrics.unlink(missing_ok=True)
            events = next(run.path.glob("events.*"))
            with no_room(events.stat().st_size):
                journal.write("train", {"step": step, "loss": 0.5})
    assert "Traceback" not in capfd.readouterr().err
