"""Anomaly detection: areas under ROC curves against scikit-learn, layouts of data, and the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score

from openjepa.data.defects import open_defects
from openjepa.evals import anomaly
from openjepa.evals.anomaly import Suspicion, count_pixels, score_auroc, score_suspicion
from tests.cli.console import assert_refused, openjepa
from tests.unit.test_energy import make_trained, write_run


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(anomaly, "RESAMPLES", 50)


@settings(max_examples=25)
@given(st.integers(2, 30), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_areas_are_those_of_scikit_learn(num_images, levels, seed):
    """With ties, and with weights: a value that stands for several pixels."""
    generator = np.random.default_rng(seed)
    values = generator.integers(levels, size=num_images).astype(float)
    is_defect = np.arange(num_images) % 2 == 1
    found = score_auroc(values, np.arange(num_images), ~is_defect * 1.0, is_defect * 1.0, is_defect, 0)
    assert found.value == pytest.approx(roc_auc_score(is_defect, values))
    assert 0 <= found.interval[0] <= found.value <= found.interval[1] <= 1
    normal, defect = generator.integers(0, 4, (2, num_images)).astype(float)
    normal[0] = defect[-1] = 1
    weighted = score_auroc(values, np.arange(num_images), normal, defect, is_defect, 0).value
    everything = np.concatenate([np.repeat(values, counts.astype(int)) for counts in (normal, defect)])
    truth = np.repeat([0, 1], [int(normal.sum()), int(defect.sum())])
    assert weighted == pytest.approx(roc_auc_score(truth, everything))


def test_the_interval_is_that_of_resampled_images(monkeypatch):
    """Normal ones and defects apart; wider for fewer images, whatever the number of their pixels."""
    monkeypatch.setattr(anomaly, "RESAMPLES", 400)
    generator = np.random.default_rng(0)

    def width(num_images, copies):
        is_defect = np.arange(num_images) % 2 == 1
        values = (generator.normal(size=num_images) + is_defect).repeat(copies)
        rows = np.arange(num_images).repeat(copies)
        low, high = score_auroc(values, rows, ~is_defect[rows] * 1.0, is_defect[rows] * 1.0, is_defect, 0).interval
        return high - low

    assert width(200, 1) == pytest.approx(4 * 0.0338, rel=0.3)  # Hanley and McNeil's standard error of 0.76, 100 of each
    assert width(200, 30) == pytest.approx(width(200, 1), rel=0.3)
    assert width(800, 1) == pytest.approx(width(200, 1) / 2, rel=0.3)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(5, 24), st.integers(0, 99))
def test_pixels_are_counted_once(down, across, side, seed):
    defect = np.random.default_rng(seed).random((side, side)) < 0.3
    normal, wrong = count_pixels(defect, (side, side), (down, across))
    assert wrong.sum() == defect.sum() and normal.sum() == (~defect).sum()
    if side % down == side % across == 0:
        cells = defect.reshape(down, side // down, across, side // across).sum((1, 3))
        assert np.array_equal(wrong.reshape(down, across), cells)


SIZE = 16


def draw_set(root: Path, *, normal="good", images="test", maps="ground_truth", suffix="_mask", value=255, count=4) -> Path:
    """Grey squares; a defect is a bright 4 x 4 patch in a place of its own."""
    generator = np.random.default_rng(0)
    for kind in (normal, "crack", "hole"):
        for number in range(count):
            pixels, defect = generator.integers(90, 110, (SIZE, SIZE, 3)).astype(np.uint8), np.zeros((SIZE, SIZE), np.uint8)
            if kind != normal:
                row, column = 4 * generator.integers(0, 4, 2)
                pixels[row : row + 4, column : column + 4] = 250
                defect[row : row + 4, column : column + 4] = value
                (root / maps / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(defect).save(root / maps / kind / f"{number:03d}{suffix}.png")
            (root / images / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / images / kind / f"{number:03d}.png")
            if kind == normal:
                (root / "train" / normal).mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(90, 110, (SIZE, SIZE, 3)).astype(np.uint8)).save(
                    root / "train" / normal / f"{number:03d}.png"
                )
    return root


@pytest.mark.parametrize("layout", ["MVTec AD's", "of scenes"])
def test_both_layouts_are_read(layout, tmp_path):
    if layout == "of scenes":
        draw_set(tmp_path, normal="Normal", images="images", maps="annotations", suffix="", value=2)
        source = open_defects(str(tmp_path), 3)
        assert [Path(file).parts[-2:] for file in open_defects(str(tmp_path / "images"), 3).files] == [
            Path(file).parts[-2:] for file in source.files
        ]
    else:
        draw_set(tmp_path)
        source = open_defects(str(tmp_path / "test"), 3)
    assert source.is_defect.sum() == 8 and len(source) == 12
    for index in range(12):
        bright = source.load(index)[:, :, 0] > 200
        assert np.array_equal(source.read_defect(index), bright)
        assert source.is_defect[index] == bright.any()


def test_a_perfect_and_an_opposite_suspicion(tmp_path):
    source = open_defects(str(draw_set(tmp_path) / "test"), 3)
    patches = np.stack([source.read_defect(index).reshape(4, 4, 4, 4).any((1, 3)) for index in range(12)]).astype(float)
    for sign, expected in ((1, 1.0), (-1, 0.0)):
        found = score_suspicion("x", Suspicion(sign * source.is_defect * 1.0, sign * patches, np.arange(12)), source, (16, 16), 0)
        of_patches = {"image_auroc_by_patch": 1.0 if sign == 1 else 0.5}  # the worst patch is a normal one everywhere
        for name, score in found.scores.items():
            assert score.value == of_patches.get(name, expected), name
        assert set(found.scores) == {
            "image_auroc", "image_auroc_by_patch", "pixel_auroc", "image_auroc crack", "image_auroc hole",
        }  # fmt: skip


def test_pixels_find_bright_squares_on_the_command_line(tmp_path):
    root = draw_set(tmp_path)
    data = ("--train", root / "train", "--test", root / "test")
    shown = openjepa("evaluate", "pixels:16", "--task", "anomaly", *data)
    record = json.loads(shown.stdout.splitlines()[-1])
    assert record["scores"]["image_auroc"]["value"] == record["image_auroc"] == 1
    assert (record["num_train"], record["num_test"], record["num_defects"]) == (4, 12, 8)
    elsewhere = draw_set(tmp_path / "no maps", maps="elsewhere")
    data = ("--train", elsewhere / "train", "--test", elsewhere / "test")
    without = json.loads(openjepa("evaluate", "pixels:16", "--task", "anomaly", *data, "--json").stdout)
    assert "pixel_auroc" not in without["scores"] and without["image_auroc"] == 1
    named = openjepa("evaluate", "pixels:16", "--task", "anomaly", *data, "--test-annotations", elsewhere / "elsewhere", "--json")
    assert "pixel_auroc" in json.loads(named.stdout)["scores"]


def test_energy_beside_mae_and_neighbours(tmp_path):
    root = draw_set(tmp_path)
    colour = {"data__channels": 3, "data__image_size": 16}
    ijepa, mae = (write_run(tmp_path / f"{method}.safetensors", make_trained(method, **colour)) for method in ("ijepa", "mae"))
    more = ("--defects", "--normal", root / "train", "--mae", mae, "--most-draws", "8")
    shown = openjepa("energy", ijepa, root / "test", "--out", tmp_path / "out", *more)
    records = json.loads((tmp_path / "out" / "scores.json").read_text())["records"]
    assert [record["encoder"] for record in records] == ["energy-ijepa", "energy-mae", "context"]
    assert len(shown.stdout.splitlines()) == 4
    assert all({"image_auroc", "pixel_auroc", "image_auroc crack"} <= set(record["scores"]) for record in records)
    alone = openjepa("energy", mae, root / "test", "--out", tmp_path / "mae", "--defects", "--most-draws", "8")
    assert alone.stdout.splitlines()[1] == shown.stdout.splitlines()[2]
    drawn = np.asarray(Image.open(next((tmp_path / "out" / "maps").iterdir())))
    assert drawn.shape == (256, 3 * 256 + 8, 3)


def test_mistakes_are_one_line(tmp_path):
    root = draw_set(tmp_path)

    def refused(*more, train=root / "train", test=root / "test"):
        return openjepa("evaluate", "pixels:16", "--task", "anomaly", "--train", train, "--test", test, *more, check=False)

    assert_refused(refused(test=root / "train"), "no image in a class folder of images with a defect", "good")
    assert_refused(refused(test=root / "test" / "crack"), "has no labels")
    assert_refused(refused(train=root / "test"), "class folders beside good: crack, hole")
    assert_refused(refused("--test-annotations", root / "none"), "there is no folder")
    assert_refused(refused("--test-annotations", root / "train"), "has a map in")
    assert_refused(refused("--layers", "2"), "drop --layers 2")
    assert_refused(refused("--ignore-zero"), "--ignore-zero")
    Image.new("L", (3, 3)).save(root / "ground_truth" / "hole" / "002_mask.png")
    assert_refused(refused(), "002_mask.png")
    run = write_run(tmp_path / "run.safetensors", make_trained("ijepa"))
    energy = ("energy", run, root / "test", "--out", tmp_path / "out")
    assert_refused(openjepa(*energy, "--normal", root / "train", check=False), "add --defects")
    (root / "ground_truth" / "hole" / "002_mask.png").unlink()
    assert_refused(openjepa(*energy, "--defects", "--mae", run, check=False), "not of mae")
    assert not (tmp_path / "out").exists()
