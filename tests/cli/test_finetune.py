"""Fine-tuning through the command line: from an encoder and labels to a classifier, its record and its predictions."""

import csv
import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file

from tests.cli.console import assert_refused, openjepa
from tests.zygote import start

TINY = (
    "train.length=40steps", "data.batch_size=16", "data.workers=0", "health.num_images=16", "checkpoint.every_steps=5",
    "train.log_every_steps=1", "optim.lr=3e-3",
)  # fmt: skip
PRETRAINED = (
    "--recipe", "demo", "train.length=3steps", "data.batch_size=16", "data.workers=0", "data.image_size=16", "model.width=32",
    "model.heads=2", "model.depth=2", "method.predictor.width=16", "method.predictor.heads=2", "health.num_images=16",
)  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that brightness tells apart; a class of few images, and a test half."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for half, count in (("train", 24), ("test", 10)):
        for name, level in (("<b>dark", 0), ("bright", 120)):
            (folder / half / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(level, level + 128, (20, 20), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / half / name / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "pretrained"
    openjepa("pretrain", photos / "train", "--out", path, *PRETRAINED)
    return path


@pytest.fixture(scope="module")
def tuned(photos: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tuned") / "run"
    arguments = ("--train", photos / "train", "--test", photos / "test", "--out", path, "--encoder", "target", *TINY)
    said = openjepa("finetune", run, *arguments)
    record = json.loads(said.stdout.splitlines()[-1])
    assert record["accuracy"] == 1.0, "brightness tells the classes apart"
    assert (record["num_train"], record["num_test"], record["num_classes"]) == (48, 20, 2)
    return path


def test_it_starts_from_the_encoder_that_was_asked_for(photos: Path, run: Path, tmp_path: Path):
    still = ("train.length=1steps", "optim.lr=0", "data.batch_size=16", "data.workers=0", "health.num_images=16")
    start = load_file(next(iter((run / "checkpoints").glob("*.safetensors"))))
    for encoder in ("context", "target"):
        out = tmp_path / encoder
        data = ("--train", photos / "train", "--test", photos / "test")
        openjepa("finetune", run, *data, "--out", out, "--encoder", encoder, *still)
        weights = load_file(next(iter((out / "checkpoints").glob("*.safetensors"))))
        for name, value in weights.items():
            if name.startswith("method.context_encoder."):
                assert torch.equal(value, start[name.replace("context_encoder", f"{encoder}_encoder")]), name
        facts, before = (json.loads((place / "run.json").read_text()) for place in (out, run))
        assert (facts["mean"], facts["std"]) == (before["mean"], before["std"])
        assert facts["init"]["encoder"] == encoder


def test_report_evaluate_embed_export_and_predict_take_it(photos: Path, tuned: Path, tmp_path: Path):
    openjepa("report", tuned)
    page = (tuned / "report.html").read_text()
    assert "Fine-tuned" in page and "100.0 %" in page and "<b>dark" not in page
    assert "Target encoder" not in page and "healthy from" not in page, "a classifier has neither"
    evaluated = openjepa("evaluate", tuned, "--task", "linear", "--train", photos / "train", "--test", photos / "test")
    assert json.loads(evaluated.stdout.splitlines()[-1])["encoder"] == "context"
    openjepa("embed", tuned, photos / "test", "--out", tmp_path / "features.parquet")
    openjepa("export", tuned, "--format", "safetensors", "--out", tmp_path / "plain.safetensors")
    for name in ("p.csv", "p.parquet"):
        openjepa("predict", tuned, photos / "test", "--out", tmp_path / name)
    table = parquet.read_table(tmp_path / "p.parquet").to_pydict()
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == table["path"] and len(rows) == 20
    assert table["label"] == table["predicted"] == [row["predicted"] for row in rows]
    assert all(0.5 <= probability <= 1 for probability in table["probability"])


def test_a_kill_changes_nothing(photos: Path, run: Path, tuned: Path, tmp_path: Path):
    out = tmp_path / "run"
    words = [
        "finetune", run, "--train", photos / "train", "--test", photos / "test", "--out", out, "--encoder", "target", *TINY
    ]  # fmt: skip
    process = start(*words)
    metrics = out / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count('"kind": "train"') > 12):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    openjepa(*words, "--resume")
    last = "checkpoints/step-00000040.safetensors"
    ours, whole = load_file(out / last), load_file(tuned / last)
    assert ours.keys() == whole.keys() and all(torch.equal(ours[name], whole[name]) for name in whole)


def test_settings_fit_the_number_of_labels_and_say_why(photos: Path, run: Path, tmp_path: Path):
    said = {}
    for count in (2, 24):
        words = ("finetune", run, "--train", f"few:{count}:0:{photos / 'train'}", "--test", photos / "test")
        done = openjepa(*words, "--out", tmp_path / str(count), "train.length=1steps", "health.num_images=2", "data.workers=0")
        said[count] = done.stderr
        recipe = json.loads((tmp_path / str(count) / "run.json").read_text())["recipe"]
        assert recipe["data"]["batch_size"] <= 2 * count and recipe["method"]["name"] == "supervised"
    assert "4 labelled images of 2 classes" in said[2] and "48 labelled images" in said[24]
    assert "your value, in place of" in said[2]


def test_bad_input_is_one_line_and_leaves_nothing(photos: Path, run: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(photos / "test", other)
    (other / "bright").rename(other / "blue")
    train, test, out = ("--train", photos / "train"), ("--test", photos / "test"), ("--out", tmp_path / "out")
    for words, named in (
        ((run, *train, "--test", other), ("blue", "bright")),
        ((run, *train, "--test", photos / "test" / "bright"), ("no labels",)),
        ((tmp_path / "nowhere", *train, *test), ("nowhere",)),
        (("timm:vit_small_patch16_224", *train, *test), ("openjepa import",)),
        ((run, *train, *test, "model.width=64"), ("model.width",)),
        ((run, *train, *test, "--recipe", "demo"), ("supervised",)),
        ((run, *train, *test, "method.mixip=0.8"), ("method.mixup",)),
    ):
        assert_refused(openjepa("finetune", *words, *out, check=False), *named)
        assert not (tmp_path / "out").exists()
    assert_refused(openjepa("predict", run, photos / "test", "--out", tmp_path / "p.csv", check=False), "no classifier")
    assert not (tmp_path / "p.csv").exists()
