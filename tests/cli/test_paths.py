"""Paths and records from the command line: what is recorded means the same elsewhere, and a report never shows other images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.console import assert_refused, openjepa
from tests.cli.test_commands import SMALL

QUICK = (*SMALL, "--train.precision", "fp32", "--data.workers", "0", "train.length=3steps")


def draw(folder: Path, count: int, seed: int) -> Path:
    generator = np.random.default_rng(seed)
    for number in range(count):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "ab"[number % 2] / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images in lab/train, and a run on them that was started from there, written as `~/run`."""
    folder = tmp_path_factory.mktemp("place")
    draw(folder / "lab/train", 24, 0)
    draw(folder / "lab/test", 8, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        openjepa("pretrain", "lab/train/", "--out=~/run", *QUICK, cwd=folder)
        assert not (folder / "~").exists()
        assert_refused(
            openjepa("pretrain", "lab/train", "--out", "~nosuchuser/run", *QUICK, cwd=folder, check=False), "~nosuchuser"
        )
        assert_refused(openjepa("doctor", "~nosuchuser/x", cwd=folder, check=False), "~nosuchuser")
    return folder


def test_a_report_from_another_folder_shows_the_runs_own_images_or_none(place: Path, tmp_path: Path):
    assert json.loads((place / "run/run.json").read_text())["data"] == str(place / "lab/train")
    draw(tmp_path / "lab/train", 24, 5)  # a decoy under the same relative path
    result = openjepa("report", place / "run", "--out", tmp_path / "here.html", cwd=tmp_path)
    assert "no pictures" not in result.stderr and "<svg" in (tmp_path / "here.html").read_text()
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    facts = json.loads((run / "run.json").read_text())
    for other, words in ((draw(tmp_path / "more", 30, 6), "30 images"), (tmp_path / "lab/train", "hold something else")):
        (run / "run.json").write_text(json.dumps(facts | {"data": str(other)}))
        assert words in openjepa("report", run).stderr


def test_a_report_needs_no_image_that_can_be_read(place: Path, tmp_path: Path):
    run, data = tmp_path / "run", tmp_path / "train"
    shutil.copytree(place / "run", run)
    shutil.copytree(place / "lab/train", data)
    facts = json.loads((run / "run.json").read_text()) | {"data": str(data)}
    facts.pop("fingerprint")  # as of version 0.1
    (run / "run.json").write_text(json.dumps(facts))
    for file in data.rglob("*.png"):
        file.write_bytes(b"")
    result = openjepa("report", run)
    assert "no pictures" in result.stderr and len(result.stderr.splitlines()) == 1
    assert "not learning yet" in (run / "report.html").read_text()


def test_a_stray_image_is_named_wherever_labels_are_missed(place: Path, tmp_path: Path):
    data = draw(tmp_path / "train", 8, 0)
    shutil.copy(data / "a/0.png", data / "stray.png")
    run = place / "run"
    refused = openjepa("evaluate", run, "--task", "knn", "--train", data, "--test", data, check=False)
    assert_refused(refused, "stray.png")
    assert "stray.png" in openjepa("embed", run, data, "--out", tmp_path / "f.parquet").stderr
    supervised = openjepa("pretrain", data, "--out", tmp_path / "run", "--recipe", "supervised_small", check=False)
    assert_refused(
        supervised.__class__(supervised.args, supervised.returncode, "", supervised.stderr.splitlines()[-1]), "stray.png"
    )
