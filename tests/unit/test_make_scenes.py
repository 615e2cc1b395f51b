"""The written data set, read back by an independent reader of COCO files; and what the class of a scene may depend on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from scipy import stats

from openjepa.data.scenes.make import encode_mask, make_scenes
from openjepa.data.scenes.scene import (
    CLASSES,
    GRID,
    MAIN_VISIBLE,
    OTHER_VISIBLE,
    Placed,
    Scene,
    arrange,
    choose_class,
    draw_shape,
    render_scene,
)
from openjepa.data.scenes.surfaces import to_srgb
from openjepa.data.sources import open_source


def decode_run_lengths(segmentation: dict[str, Any]) -> np.ndarray:
    """A mask pixel by pixel, as the format is defined: down each column, then the next; the first run is background."""
    height, width = segmentation["size"]
    mask = np.zeros((height, width), bool)
    position, value = 0, False
    for count in segmentation["counts"]:
        for pixel in range(position, position + count):
            mask[pixel % height, pixel // height] = value
        position, value = position + count, not value
    assert position == height * width
    return mask


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "set"
    make_scenes(folder, train=100, test=24, size=48, seed=7, processes=1)
    return folder


def read_annotations(folder: Path, split: str) -> tuple[dict[str, Any], dict[int, list[dict[str, Any]]]]:
    """A split's file, and its annotations by image id."""
    coco = json.loads((folder / "annotations" / f"{split}.json").read_text("utf-8"))
    by_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in coco["images"]}
    for annotation in coco["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    return coco, by_image


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_run_lengths_decode_to_the_mask(mask: np.ndarray):
    encoded = encode_mask(mask)
    assert np.array_equal(decode_run_lengths(encoded), mask)
    assert all(count > 0 for count in encoded["counts"][1:])
    assert json.loads(json.dumps(encoded)) == encoded


def test_every_annotation_describes_its_mask(scenes: Path):
    for split, count in (("train", 100), ("test", 24)):
        coco, by_image = read_annotations(scenes, split)
        assert sorted(by_image) == list(range(1, count + 1))
        assert [annotation["id"] for annotation in coco["annotations"]] == list(range(1, len(coco["annotations"]) + 1))
        for listed in by_image.values():
            masks = [decode_run_lengths(annotation["segmentation"]) for annotation in listed]
            assert np.sum(masks, axis=0).max() == 1  # what is seen of one object is not seen of another
            for mask, annotation in zip(masks, listed, strict=True):
                left, top, right, bottom = Image.fromarray(mask).getbbox()
                assert annotation["bbox"] == [left, top, right - left, bottom - top]
                assert annotation["area"] == mask.sum()
                assert annotation["iscrowd"] == 0


def test_folders_open_source_and_annotations_name_the_largest_object(scenes: Path):
    for split in ("train", "test"):
        coco, by_image = read_annotations(scenes, split)
        names = {category["id"]: category["name"] for category in coco["categories"]}
        source = open_source(str(scenes / split), channels=3)
        assert len(source) == len(coco["images"])
        labels = {source.path(index): source.classes[source.labels[index]] for index in range(len(source))}
        for image in coco["images"]:
            areas = sorted(annotation["area"] for annotation in by_image[image["id"]])
            largest = max(by_image[image["id"]], key=lambda annotation: annotation["area"])
            assert labels[str(scenes / split / image["file_name"])] == names[largest["category_id"]]
            assert areas[-1] > 1.3 * ([0, *areas][-2])  # and clearly so, even cut up into pixels
            with Image.open(scenes / split / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"]) == (48, 48)


def test_masks_lie_where_the_objects_are_painted(scenes: Path):
    """Colours jump where masks end: within the mask and outside it neighbouring pixels are more alike than across its border."""
    across, within = [], []
    _, by_image = read_annotations(scenes, "train")
    for image_id, listed in by_image.items():
        (file,) = (scenes / "train").glob(f"*/{image_id:06d}.png")
        pixels = np.asarray(Image.open(file)).astype(float)
        owner = np.sum([k * decode_run_lengths(a["segmentation"]) for k, a in enumerate(listed, start=1)], axis=0)
        jump, border = np.abs(np.diff(pixels, axis=1)).sum(2), np.diff(owner, axis=1) != 0
        across.append(jump[border].mean())
        within.append(jump[~border].mean())
    assert np.mean(np.array(across) > 2 * np.array(within)) > 0.95


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_processes(scenes: Path, tmp_path: Path):
    make_scenes(tmp_path / "again", train=100, test=24, size=48, seed=7, processes=2)
    files = {path.relative_to(scenes): path.read_bytes() for path in scenes.rglob("*") if path.is_file()}
    assert len(files) == 100 + 24 + 3
    assert files == {
        path.relative_to(tmp_path / "again"): path.read_bytes() for path in (tmp_path / "again").rglob("*") if path.is_file()
    }


def test_a_longer_set_starts_with_the_shorter_and_splits_and_seeds_differ(scenes: Path):
    first = render_scene(7, "train", 3, 48)
    (file,) = (scenes / "train").glob("*/000004.png")
    assert np.array_equal(np.asarray(Image.open(file)), first.pixels)
    assert not np.array_equal(render_scene(8, "train", 3, 48).pixels, first.pixels)
    images = [render_scene(7, split, index, 32) for split in ("train", "test") for index in range(100)]
    assert len({scene.pixels.tobytes() for scene in images}) == 200
    # Some scenes of one number have one class in both splits: were the split left out of the seed, they would be one image.
    assert any(one.label == other.label for one, other in zip(images[:100], images[100:], strict=True))


def test_size_changes_sharpness_alone():
    for index in range(20):
        small, large = render_scene(0, "train", index, 64), render_scene(0, "train", index, 128)
        assert small.classes == large.classes
        halved = np.asarray(Image.fromarray(large.pixels).reduce(2)).astype(float)
        assert np.abs(halved - small.pixels).mean() < 8
        assert np.mean(large.owners[::2, ::2] == small.owners) > 0.95


def test_enough_of_every_object_is_seen():
    """Counted on the whole scene; a pixel's width on the coarse grid is allowed for."""
    for index in range(100):
        draw = np.random.default_rng(index)
        stack = arrange(draw, index % len(CLASSES))
        owners = np.zeros((256, 256), int)
        for number, placed in enumerate(stack, start=1):
            owners[placed.cover(256) >= 128] = number
        for number, placed in enumerate(stack, start=1):
            seen = np.mean(owners == number) / placed.area
            least = MAIN_VISIBLE if placed.area == max(other.area for other in stack) else OTHER_VISIBLE
            assert seen > least - 4 / (GRID * np.sqrt(placed.area)), (index, seen)


def test_oklab_agrees_with_published_colours():
    """CSS Color 4 gives these for corners of sRGB and rebeccapurple; a grey's lightness is the cube root of its luminance."""
    published = {
        (255, 255, 255): (1, 0, 0), (0, 0, 0): (0, 0, 0), (255, 0, 0): (0.62796, 0.22486, 0.12585),
        (0, 255, 0): (0.86644, -0.23389, 0.1795), (0, 0, 255): (0.45201, -0.03246, -0.31153),
        (102, 51, 153): (0.44027, 0.08818, -0.13386), (128, 128, 128): (((128 / 255 + 0.055) / 1.055) ** 0.8, 0, 0),
    }  # fmt: skip
    assert np.abs(to_srgb(np.array(list(published.values()))).astype(int) - list(published)).max() <= 1


@given(st.integers(0, len(CLASSES) - 1), st.integers(0, 2**32))
def test_a_shape_is_as_large_and_lies_where_it_should(class_number: int, seed: int):
    shape = draw_shape(np.random.default_rng(seed), class_number)
    cover = Placed(shape, class_number, (0.5, 0.5), 0.1, 0.5).cover(256) / 255
    assert abs(cover.mean() / 0.1 - 1) < 0.03
    assert abs((cover.sum(0) @ np.arange(256)) / cover.sum() - 127.5) < 1.5
    assert abs((cover.sum(1) @ np.arange(256)) / cover.sum() - 127.5) < 1.5


@given(st.integers(0, 2**40), st.sampled_from(["train", "test"]), st.integers(0, 1000))
def test_classes_are_balanced_and_in_no_order(seed: int, split: str, block: int):
    classes = [choose_class(seed, split, block * len(CLASSES) + place) for place in range(len(CLASSES))]
    assert sorted(classes) == list(range(len(CLASSES)))


def test_order_of_classes_is_random():
    orders = np.array([[choose_class(0, "train", 12 * block + place) for place in range(12)] for block in range(600)])
    table = np.stack([np.bincount(column, minlength=12) for column in orders.T])
    assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    return [render_scene(1, "train", index, 32) for index in range(600)]


def test_smaller_objects_are_of_any_class_whatever_the_largest(many: list[Scene]):
    others = [(scene.label, other) for scene in many for other in scene.classes[1:]]
    table = np.zeros((12, 12))
    np.add.at(table, tuple(np.array(others).T), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-3
    assert stats.chisquare(table.sum(0)).pvalue > 1e-3
    assert {len(scene.classes) for scene in many} == {1, 2, 3, 4}


def test_colour_place_and_size_do_not_tell_the_class(many: list[Scene]):
    """Kruskal-Wallis: the distribution over scenes of each is the same for all classes."""
    measured: dict[str, list[list[float]]] = {name: [[] for _ in CLASSES] for name in MEASURES}
    for scene in many:
        for name, measure in MEASURES.items():
            measured[name][scene.label].append(measure(scene))
    pvalues = {name: stats.kruskal(*groups).pvalue for name, groups in measured.items()}
    assert min(pvalues.values()) > 1e-3 / len(pvalues), pvalues


def _main_colour(channel: int, scene: Scene) -> float:
    return float(scene.pixels[scene.owners == 1][:, channel].mean())


MEASURES = {
    "red of the image": lambda scene: scene.pixels[:, :, 0].mean(),
    "green of the image": lambda scene: scene.pixels[:, :, 1].mean(),
    "blue of the image": lambda scene: scene.pixels[:, :, 2].mean(),
    "red of the object": lambda scene: _main_colour(0, scene),
    "green of the object": lambda scene: _main_colour(1, scene),
    "blue of the object": lambda scene: _main_colour(2, scene),
    "across": lambda scene: np.nonzero(scene.owners == 1)[1].mean(),
    "down": lambda scene: np.nonzero(scene.owners == 1)[0].mean(),
    "number of objects": lambda scene: len(scene.classes),
}


def test_size_tells_little_of_the_class(many: list[Scene]):
    """Filled area is drawn alike for all; a sprawling shape loses a little more of it at the border."""
    areas = [[float(np.mean(scene.owners == 1)) for scene in many if scene.label == number] for number in range(12)]
    means = [np.mean(group) for group in areas]
    assert max(means) / min(means) < 1.1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"train": 0}, "--train 0"), ({"test": 11}, "--test 11"), ({"size": 8}, "--size 8"), ({"seed": -1}, "--seed -1")],
)
def test_values_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, int], words: str):
    with pytest.raises(ValueError, match=words):
        make_scenes(tmp_path / "set", **({"train": 12, "test": 12, "size": 32, "seed": 0} | wrong))
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written = Counter[str]()
    save = Image.Image.save

    def fail_at_the_fifth(self: Image.Image, *arguments: Any, **options: Any) -> None:
        written["files"] += 1
        if written["files"] == 5:
            raise OSError(28, "No space left on device")
        save(self, *arguments, **options)

    monkeypatch.setattr(Image.Image, "save", fail_at_the_fifth)
    with pytest.raises(OSError, match="No space left"):
        make_scenes(tmp_path / "set", train=12, test=12, size=32, seed=0, processes=1)
    assert not list(tmp_path.iterdir())
