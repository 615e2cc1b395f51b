"""Segmentation by linear heads: scores against torchmetrics, heads against what can be known of them, and the command line."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from openjepa.data.label_maps import IGNORED, open_mapped
from openjepa.evals import segmentation
from openjepa.evals.features import FeatureStore, RawPixels
from openjepa.evals.iou import Tally
from openjepa.evals.task import TaskSettings
from tests.cli.console import assert_refused, openjepa

NUM_CLASSES = 4
DEFAULTS = TaskSettings()
COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(segmentation, "STEPS", 12)


@given(
    arrays(np.uint8, (3, 5, 4), elements=st.sampled_from([0, 1, 2, 3, IGNORED])),
    arrays(np.uint8, (3, 5, 4), elements=st.integers(0, NUM_CLASSES - 1)),
)
def test_scores_are_those_of_torchmetrics(truth, guess):
    tally = Tally(NUM_CLASSES, 0)
    for pair in zip(truth, guess, strict=True):
        tally.add(*pair)
    target, predicted = torch.from_numpy(truth).long(), torch.from_numpy(guess).long()
    options = {"num_classes": NUM_CLASSES, "ignore_index": IGNORED}
    if not (truth != IGNORED).any():
        return
    names = [str(number) for number in range(NUM_CLASSES)]
    scores = tally.score(names, 0)
    assert scores["miou"].value == pytest.approx(float(multiclass_jaccard_index(predicted, target, **options)), abs=1e-6)
    assert scores["miou"].value == pytest.approx(tally.miou())
    accuracy = multiclass_accuracy(predicted, target, average="micro", **options)
    assert scores["pixel_accuracy"].value == pytest.approx(float(accuracy), abs=1e-6)
    by_class = multiclass_jaccard_index(predicted, target, average="none", **options)
    for number, name in enumerate(names):
        counted = target != IGNORED
        if ((target == number) & counted).any() or ((predicted == number) & counted).any():
            assert scores[f"iou {name}"].value == pytest.approx(float(by_class[number]), abs=1e-6)
        else:
            assert f"iou {name}" not in scores
    inside = (np.minimum(truth, 1)[truth != IGNORED], np.minimum(guess, 1)[truth != IGNORED])
    union = (inside[0] | inside[1]).sum()
    if union:  # as one class against the rest, but a pixel of the wrong object is still foreground
        assert scores["foreground_iou"].value == pytest.approx((inside[0] & inside[1]).sum() / union)
    for value, interval in scores.values():
        assert 0 <= interval[0] <= interval[1] <= 1 and 0 <= value <= 1


def write_colours(root, split, count, seed, *, classes=NUM_CLASSES, size=(16, 24)):
    """Images of squares of 4 px whose colour is their class, with maps in ADE20K's layout."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        coarse = generator.integers(0, classes, (size[0] // 4, size[1] // 4)).astype(np.uint8)
        values = coarse.repeat(4, 0).repeat(4, 1)
        for kind, pixels in (("images", COLOURS[values]), ("annotations", values)):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / kind / split / f"{number}.png")
    return str(root / "images" / split)


def evaluate(train, test, settings=DEFAULTS, size=16, patch_size=4, seed=0):
    task = segmentation.SegmentationTask("segmentation", "")
    store = FeatureStore(RawPixels((size, size), 3, patch_size), "pixels")
    return task.evaluate(store, *task.open(train, test, 3, settings), settings, seed)


def test_what_a_linear_head_can_see_is_learned(tmp_path, monkeypatch):
    """Classes are colours of whole patches, so all that is lost is what bilinear scores do between patches."""
    monkeypatch.setattr(segmentation, "STEPS", 50)
    monkeypatch.setattr(segmentation, "DECAYS", (1e-3,))
    train, test = write_colours(tmp_path, "training", 20, 0), write_colours(tmp_path, "validation", 6, 1)
    outcome = evaluate(train, test)
    assert outcome.scores["pixel_accuracy"].value > 0.85
    assert outcome.scores["miou"].value > 0.75
    assert outcome.main == "miou" and outcome.classes == ["background", "1", "2", "3"]
    shuffled = tmp_path / "annotations" / "training"
    files = sorted(shuffled.iterdir())
    maps = [file.read_bytes() for file in files]
    for file, content in zip(files, [*maps[1:], maps[0]], strict=True):
        file.write_bytes(content)
    assert evaluate(train, test).scores["miou"].value < 0.35


def test_test_maps_keep_their_own_pixels(tmp_path, quick):
    """The same colours four times as large are other files and the same task, but for where scores are interpolated."""
    train, test = write_colours(tmp_path, "training", 8, 0), write_colours(tmp_path / "large", "validation", 4, 1)
    small = evaluate(train, test)
    for file in (tmp_path / "large").rglob("*.png"):
        image = Image.open(file)
        image.resize((image.width * 4, image.height * 4), Image.Resampling.NEAREST).save(file)
    large = evaluate(train, test)
    assert large.scores["pixel_accuracy"].value == pytest.approx(small.scores["pixel_accuracy"].value, abs=0.03)


def test_ignored_pixels_count_nowhere(tmp_path, quick):
    train, test = write_colours(tmp_path, "training", 8, 0), write_colours(tmp_path, "validation", 4, 1)
    before = evaluate(train, test, TaskSettings(ignore_zero=True))
    assert before.classes == ["1", "2", "3"] and "foreground_iou" not in before.scores
    for file in (tmp_path / "annotations").rglob("*.png"):
        values = np.asarray(Image.open(file)).copy()
        values[values == 0] = IGNORED
        Image.fromarray(values).save(file)
    assert evaluate(train, test).to_record()["scores"] == before.to_record()["scores"]


def test_the_same_seed_gives_the_same_record(tmp_path, quick):
    train, test = write_colours(tmp_path, "training", 8, 0), write_colours(tmp_path, "validation", 4, 1)
    first, second = (evaluate(train, test, seed=3).to_record() for _ in range(2))
    assert first == second
    assert json.loads(json.dumps(first)) == first


def test_parts_of_a_batch_add_up(tmp_path, monkeypatch, quick):
    train, test = write_colours(tmp_path, "training", 8, 0), write_colours(tmp_path, "validation", 4, 1)
    whole = evaluate(train, test).scores["miou"].value
    monkeypatch.setattr(segmentation, "MOST_SCORES", 1)
    assert evaluate(train, test).scores["miou"].value == pytest.approx(whole, abs=1e-3)


def test_one_image_and_one_test_image(tmp_path, quick):
    train, test = write_colours(tmp_path, "training", 1, 0), write_colours(tmp_path, "validation", 1, 1)
    assert evaluate(train, test).num_train == 1


def test_classes_must_agree(tmp_path):
    train, test = write_colours(tmp_path, "training", 4, 0, classes=2), write_colours(tmp_path, "validation", 2, 1)
    with pytest.raises(ValueError, match=r"validation have classes that .*training lacks: 2, 3; .* has background, 1"):
        evaluate(train, test)
    with pytest.raises(ValueError, match="have one class only"):
        evaluate(train, train, TaskSettings(ignore_zero=True))


def test_a_view_shows_the_same_part_of_image_and_map():
    truth = np.arange(12 * 20).reshape(12, 20) % 200
    truth = truth.astype(np.uint8)
    assert np.array_equal(segmentation.shrink_map(truth, (12, 12), (12, 12)), truth[:, 4:16])
    assert np.array_equal(segmentation.shrink_map(truth, (24, 40), (6, 10)), truth[1::2, 1::2])
    rows, columns = segmentation.find_view(truth, (12, 12))
    assert (rows, columns) == (slice(0, 12), slice(4, 16))


def test_scenes_on_the_command_line(scenes, tmp_path, quick):
    pictures = tmp_path / "drawn"
    data = ("--train", scenes / "train", "--test", scenes / "test")
    shown = openjepa("evaluate", "pixels:32", "--task", "segmentation", *data, "--pictures", pictures)
    record = json.loads(shown.stdout.splitlines()[-1])
    assert shown.stdout.startswith("segmentation miou of pixels:32: ")
    assert (record["main"], record["num_train"], record["num_test"], record["num_classes"]) == ("miou", 24, 12, 13)
    assert 0 < record["scores"]["foreground_iou"]["value"] < 1
    source = open_mapped(str(scenes / "test"), 3)
    assert len(list(pictures.iterdir())) == len(source)
    drawn = np.asarray(Image.open(pictures / "000000.png"))
    assert drawn.shape == (256, 3 * 256 + 8, 3)
    assert np.array_equal(drawn[4::8, 4:256:8], source.load(0))  # the image itself comes first
    assert np.array_equal((drawn[4::8, 264:516:8] == 0).all(-1), source.read_map(0) == 0)  # then the truth


def test_mistakes_are_one_line(scenes, tmp_path):
    def refused(*more, task="segmentation", train=scenes / "train", test=scenes / "test"):
        return openjepa("evaluate", "pixels:32", "--task", task, "--train", train, "--test", test, *more, check=False)

    assert_refused(refused("--layers", "4"), "drop --layers 4")
    assert_refused(refused("--ignore-zero"), "drop --ignore-zero")
    assert_refused(refused("--ignore-zero", task="knn"), "task knn does not read --ignore-zero")
    assert_refused(refused("--train-annotations", tmp_path / "none.json"), "none.json")
    assert_refused(refused(train="sample:train"), "sample:train")
    elsewhere = write_colours(tmp_path, "validation", 2, 1)
    assert_refused(refused(test=elsewhere), "have classes that", "lacks: 1, 2, 3")
