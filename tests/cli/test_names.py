"""Names as disks hold them, from pretraining to report; and records of evaluations, none of which is lost."""

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.cli.console import assert_refused, openjepa
from tests.cli.test_commands import SMALL

ODD = ["[bold]", "[red] x", "a\tb", " leading", "quo\"te'", "<script>alert(1)", "new\nline"]
QUICK = (*SMALL, "--train.precision", "fp32", "--data.workers", "0", "train.length=3steps")


def draw(path: bytes, number: int) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(os.fsdecode(path))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes with odd names, one of them in bytes that are no text."""
    folder = tmp_path_factory.mktemp("names") / "my [/red] photos"
    for number, name in enumerate([*map(os.fsencode, ODD), b"caf\xe9"]):
        for image in range(4):
            draw(os.fsencode(folder) + b"/" + name + b"/%d.png" % image, 10 * number + image)
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "[bold] run [/red]"
    openjepa("pretrain", photos, "--out", path, *QUICK)
    return path


def test_a_finished_run_with_markup_in_its_path_says_so_on_resume(photos: Path, run: Path):
    """Version 0.1 ended in a traceback."""
    result = openjepa("pretrain", photos, "--out", run, "--resume")
    assert str(run) in result.stderr


def test_every_class_is_embedded(photos: Path, run: Path, tmp_path: Path):
    """Version 0.1 refused everything for one folder that is not UTF-8."""
    out = tmp_path / "features [/bold].parquet"
    openjepa("embed", run, photos, "--out", out)
    labels = pq.read_table(out)["label"].to_pylist()
    assert len(labels) == 4 * (len(ODD) + 1)
    assert set(labels) == {*ODD, "caf\\xe9"}


def test_report_and_doctor_show_odd_names_without_harm(photos: Path, run: Path):
    openjepa("evaluate", run, "--protocol", "knn", "--train", photos, "--test", photos)
    openjepa("report", run)
    page = (run / "report.html").read_text("utf-8")
    assert "<script>alert" not in page
    assert "caf" in openjepa("doctor", photos, "--recipe", run / "recipe.yaml").stdout


def test_a_progress_bar_shows_markup_as_it_is(photos: Path, run: Path, tmp_path: Path):
    """On a terminal, where version 0.1's bar raised MarkupError."""
    command = f"{sys.executable} -m openjepa.cli embed '{run}' '{photos}' --out '{tmp_path}/f.parquet'"
    result = subprocess.run(
        ["script", "-qec", command, "/dev/null"], capture_output=True, text=True, env=os.environ | {"TERM": "xterm"}, check=False
    )
    assert result.returncode == 0, result.stdout
    assert (tmp_path / "f.parquet").exists()


def test_a_class_composed_in_another_way_is_the_same_class(run: Path, tmp_path: Path):
    for part, form in (("train", "NFC"), ("test", "NFD")):
        for number, name in enumerate((unicodedata.normalize(form, "café"), "dog")):
            for image in range(3):
                draw(os.fsencode(tmp_path / part / name) + b"/%d.png" % image, 10 * number + image)
    result = openjepa("evaluate", run, "--protocol", "knn", "--train", tmp_path / "train", "--test", tmp_path / "test", "--json")
    assert json.loads(result.stdout)["accuracy"] == 1.0  # the very same pictures


def test_no_evaluation_overwrites_another(photos: Path, run: Path, tmp_path: Path):
    """Version 0.1 kept one of two seeds, and one of two folders that agree in their last sixty characters."""
    tail = "x" * 70
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / tail).symlink_to(photos) if name == "a" else None
    for number in range(2):
        for label in ("cat", "dog"):
            for image in range(3):
                draw(os.fsencode(tmp_path / "b" / tail / label) + b"/%d.png" % image, number + image)
    before = set((run / "evals").iterdir())
    asked = [("0", tmp_path / "a" / tail), ("1", tmp_path / "a" / tail), ("0", tmp_path / "b" / tail)]
    for seed, data in asked:
        openjepa("evaluate", run, "--protocol", "knn", "--train", data, "--test", data, "--seed", seed)
    added = set((run / "evals").iterdir()) - before
    # the link leads to photos, which an earlier test may have evaluated with seed 0: the same question
    records = [json.loads(path.read_text()) for path in (run / "evals").iterdir()]
    found = {(record["seed"], record["train_path"]) for record in records}
    assert {(int(seed), str(data.resolve())) for seed, data in asked} <= found
    assert len(added) >= 2
    openjepa("evaluate", run, "--protocol", "knn", "--train", photos, "--test", f"{photos}/", "--seed", "1")
    assert set((run / "evals").iterdir()) - before == added  # the same question again
    for record in records:
        checkpoint = next((run / "checkpoints").glob(record["checkpoint"]))
        note = json.loads(checkpoint.with_suffix(".json").read_text())
        assert (record["step"], record["sha256"]) == (note["step"], note["sha256"])


def test_test_data_that_is_training_data_is_mentioned_however_it_is_written(photos: Path, run: Path):
    result = openjepa("evaluate", run, "--protocol", "knn", "--train", photos, "--test", f"{photos}/", "--json")
    assert any("training and for test" in words for words in json.loads(result.stdout)["warnings"])


def test_a_result_is_printed_though_its_record_cannot_be_written(photos: Path, run: Path):
    evals = run / "evals"
    evals.rename(run / "evals.aside")
    evals.write_text("not a folder")  # as a folder of somebody else, which root may write to all the same
    try:
        result = openjepa("evaluate", run, "--protocol", "knn", "--train", photos, "--test", photos)
    finally:
        evals.unlink()
        (run / "evals.aside").rename(evals)
    assert "accuracy" in json.loads(result.stdout.splitlines()[-1])
    assert len(result.stderr.strip().splitlines()) == 1 and "record" in result.stderr


def test_a_demo_replaces_demos_alone(tmp_path: Path):
    """Version 0.1 deleted any run on the embedded images."""
    out = tmp_path / "mine"
    openjepa("pretrain", "sample:train", "--out", out, "--recipe", "demo", "train.length=2steps")
    before = sorted(out.rglob("*"))
    assert_refused(openjepa("demo", "--out", out, "--minutes", "0.01", check=False), str(out), "--out")
    assert sorted(out.rglob("*")) == before
