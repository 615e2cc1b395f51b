"""`--recipe auto` as a user meets it: a folder of images, no other flag but what keeps the test short."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from openjepa.recipe.check import build_recipe
from openjepa.recipe.files import load_recipe
from tests.cli.console import assert_refused, openjepa
from tests.messy_folder import draw_picture

SHORT = ("train.length=2steps", "--train.precision", "fp32", "--data.workers", "0")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in, with 20 photos in one sub-folder and a run of recipe auto on them."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "My photos").mkdir()
    generator = np.random.default_rng(0)
    for number in range(20):
        kind = "jpg" if number % 2 else "png"
        draw_picture("discs", (120, 90), generator).save(folder / "My photos" / f"{number}.{kind}")
    return folder


@pytest.fixture(scope="module")
def printed(work: Path) -> str:
    return openjepa("pretrain", "My photos", "--recipe", "auto", *SHORT, cwd=work).stderr


def test_auto_needs_nothing_but_the_images(work: Path, printed: str):
    run = work / "runs" / "My-photos"  # named after the folder
    facts = json.loads((run / "run.json").read_text())
    assert facts["total_steps"] == 2 and facts["finished"]
    recipe = facts["recipe"]
    assert recipe["name"] == "auto"
    assert recipe["data"]["channels"] == 3
    assert recipe["data"]["batch_size"] == 16  # of 20 images
    assert recipe["data"]["image_size"] % recipe["model"]["patch_size"] == 0
    assert yaml.safe_load((run / "recipe.yaml").read_text()) == recipe


def test_every_choice_is_printed_with_its_reason(printed: str):
    lines = {line.split()[0]: line for line in printed.splitlines() if line}
    assert "90 px" in lines["data.image_size"]
    assert "20 images" in lines["data.batch_size"]
    assert "docs/small-data.md" in lines["recipe"]
    assert "your value, in place of 30minutes" in lines["train.length"]
    assert "CPU" not in lines["train.length"]
    for key in ("model.patch_size", "model.encoder", "optim.lr", "method.name", "method.regularizer.name", "train.precision"):
        assert len(lines[key].split()) > 3, lines[key]
    assert lines["method.name"].split()[1] == "mae" and "method.name=ijepa" in lines["method.name"]


def test_one_flag_makes_auto_predict_features(work: Path, printed: str):
    """The value that its words name; what both methods have stays, and another method's key is unknown."""
    openjepa("pretrain", "My photos", "--recipe", "auto", *SHORT, "--method.name", "ijepa", "--out", "features", cwd=work)
    method = json.loads((work / "features" / "run.json").read_text())["recipe"]["method"]
    assert (method["name"], method["pool_targets"]) == ("ijepa", False)
    pixels = json.loads((work / "runs" / "My-photos" / "run.json").read_text())["recipe"]["method"]
    assert (pixels["name"], pixels["targets"]) == ("mae", "normalised_pixels")
    assert all(method[key] == pixels[key] for key in ("predictor", "predict", "loss", "regularizer"))
    both = ("--method.name", "ijepa", "--method.targets", "pixels")
    refused = openjepa("pretrain", "My photos", "--recipe", "auto", *SHORT, *both, "--out", "no", check=False, cwd=work)
    assert_refused(refused, "unknown key method.targets", "method.name mae")
    assert not (work / "no").exists()


def test_the_written_recipe_reads_back_to_the_same(work: Path, printed: str):
    written = work / "runs" / "My-photos" / "recipe.yaml"
    assert openjepa("recipes", written).stdout == written.read_text()
    recorded = json.loads((written.parent / "run.json").read_text())["recipe"]
    assert load_recipe(written) == build_recipe(recorded)


def test_a_resumed_auto_run_takes_its_own_recipe(work: Path, printed: str):
    Image.new("RGB", (30, 20), "red").save(work / "My photos" / "00 large.png")
    try:  # more images would be chosen for otherwise; the recorded recipe is kept and the change is said
        result = openjepa("pretrain", "My photos", "--recipe", "auto", "--resume", check=False, cwd=work)
        assert_refused(result, "number of images 20 -> 21", "--accept-changes")
        assert "data.image_size" not in result.stdout + result.stderr
    finally:
        (work / "My photos" / "00 large.png").unlink()


def test_grey_images_get_one_channel_and_doctor_says_so(work: Path):
    (work / "grey").mkdir()
    for path in (work / "My photos").iterdir():
        Image.open(path).convert("L").convert("RGB").save(work / "grey" / path.name)
    lines = openjepa("doctor", "grey", "--recipe", "auto", cwd=work).stdout.splitlines()
    (channels,) = (line.split() for line in lines if line.startswith("data.channels"))
    assert channels[1] == "1"
    assert any(line.startswith("recipe auto: ") for line in lines)


def test_auto_without_data_is_explained(tmp_path: Path):
    assert_refused(openjepa("recipes", "auto", check=False), "auto", "doctor DATA --recipe auto")
    assert "auto " in openjepa("recipes").stdout
    assert_refused(openjepa("pretrain", "nowhere", "--recipe", "auto", check=False, cwd=tmp_path), "there is no nowhere")
    assert list(tmp_path.iterdir()) == []
