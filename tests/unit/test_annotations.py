"""COCO files of make-scenes and of other people's tools: what is read, and what is said about the rest."""

import json

import numpy as np
import pytest
from PIL import Image

from openjepa.data.annotations import open_coco
from openjepa.data.decode import DecodeError
from openjepa.data.scenes.scene import CLASSES, render_scene


def write_coco(folder, images, annotations, categories=({"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}), **more):
    """A folder `train` of black images with a COCO file beside it; an image without "there" has no file."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for row in images:
        if row.pop("there", True):
            path = folder / "train" / row["file_name"].replace("\\", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (row.pop("real_width", 20), 10)).save(path)
    content = {"images": list(images), "annotations": list(annotations), "categories": list(categories)} | more
    (folder / "annotations" / "train.json").write_text(json.dumps(content))
    return str(folder / "train")


def image(number, name, **more):
    return {"id": number, "file_name": name, "width": 20, "height": 10, **more}


def annotation(number, image_id, category_id=3, bbox=(2, 3, 4, 5), **more):
    return {"id": number, "image_id": image_id, "category_id": category_id, "bbox": list(bbox), **more}


def test_scenes_come_back_as_they_were_drawn(scenes):
    source = open_coco(str(scenes / "test"), 3)
    assert (source.categories, source.category_ids, source.unused) == (CLASSES, list(range(1, len(CLASSES) + 1)), None)
    for index in (0, 5, len(source) - 1):
        scene = render_scene(0, "test", source.image_ids[index] - 1, 32)
        objects, pixels = source.objects[index], source.load_checked(index)
        assert np.array_equal(pixels, scene.pixels)
        assert objects.labels.tolist() == scene.classes
        for number, (mask, box, area) in enumerate(zip(objects.masks(), objects.boxes, objects.areas, strict=True), start=1):
            assert np.array_equal(mask, scene.owners == number)
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert area == mask.sum()


def test_a_file_of_other_tools_is_read_and_what_cannot_be_used_is_counted(tmp_path):
    spec = write_coco(
        tmp_path,
        [
            image(7, "deep/er/a.png"), image(5, "b.png"), image(11, "none.png", there=False), image(12, "gone.png", there=False),
            image(20, "win\\c.png"), image(5, "again.png"), {"id": 8, "file_name": "nosize.png"},
        ],
        [
            annotation(0, 7, bbox=(1.5, 2.25, 3.5, 4.0), segmentation=[[2, 3, 6, 3, 6, 8]], area=8.0),
            annotation(1, 7, 90, iscrowd=1, segmentation={"size": [10, 20], "counts": [50, 100, 50]}),
            annotation(2, 7, 90, bbox=(15, 5, 50, 50)),  # goes beyond the image
            annotation(3, 7, bbox=(4, 4, 0, 3)), annotation(4, 7, bbox=(30, 0, 3, 3)), annotation(5, 7, bbox=(1, 2, 3)),
            annotation(6, 7, 4), annotation(7, 99), annotation(8, 11), annotation(9, 7, bbox=(1, 2, float("nan"), 2)),
            annotation(10, 8, segmentation={"size": [10, 20], "counts": [50]}),
        ],
    )  # fmt: skip
    source = open_coco(spec, 3)
    assert source.image_ids == [7, 5, 20, 8]
    assert [source.path(index).removeprefix(spec) for index in range(4)] == [
        "/deep/er/a.png", "/b.png", "/win/c.png", "/nosize.png",
    ]  # fmt: skip
    first = source.objects[0]
    assert first.boxes.tolist() == [[1.5, 2.25, 5.0, 6.25], [2, 3, 6, 8], [15, 5, 20, 10]]
    assert (first.labels.tolist(), first.crowd_mask.tolist()) == ([0, 1, 1], [False, True, False])
    assert first.areas.tolist() == [8.0, 20.0, 25.0]
    assert first.masks().sum((1, 2))[1:].tolist() == [100, 0]
    assert [len(objects) for objects in source.objects] == [3, 0, 0, 1]
    assert source.objects[3].size == (10, 20)  # from the file itself
    assert [source.category_ids[label] for label in first.labels] == [3, 90, 90]
    line = source.unused
    assert line is not None and "\n" not in line
    for words in (
        "2 images that are missing (first: none.png)", "1 images whose id another has (first: again.png)",
        "2 boxes without area in the image (first: annotation 3)", "2 annotations without a box of four numbers",
        "1 annotations of unknown categories (first: annotation 6)", "1 annotations of images that are not listed",
    ):  # fmt: skip
        assert words in line
    with_masks = open_coco(spec, 3, need_masks=True)
    assert [len(objects) for objects in with_masks.objects] == [2, 0, 0, 0]
    assert "2 annotations without a usable mask" in with_masks.unused


def test_classes_are_matched_by_name(tmp_path):
    train = open_coco(write_coco(tmp_path / "a", [image(1, "a.png")], [annotation(1, 1)]), 3)
    others = ({"id": 4, "name": "dog"},)
    test = open_coco(write_coco(tmp_path / "b", [image(1, "a.png")], [annotation(1, 1, 4)], others), 3).with_categories(train)
    assert (test.categories, test.objects[0].labels.tolist()) == (["cat", "dog"], [1])
    assert test.category_ids[1] == 4 and test.category_ids[0] not in (3, 4)  # 3 might be anything in the test's file
    with pytest.raises(ValueError, match=r"has classes that .* lacks: cat; it has dog"):
        train.with_categories(open_coco(write_coco(tmp_path / "c", [image(1, "a.png")], [annotation(1, 1, 4)], others), 3))


def test_an_image_of_another_size_is_refused(tmp_path):
    source = open_coco(write_coco(tmp_path, [image(1, "a.png", real_width=30)], [annotation(1, 1)]), 3)
    with pytest.raises(DecodeError, match="is 10 x 30 px, its annotations are 10 x 20"):
        source.load_checked(0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"), ("[]", "needs the lists images, annotations, categories"),
        ('{"images": [], "annotations": []}', "needs the lists"),
        ('{"images": [], "annotations": [], "categories": []}', "has no categories"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "lists 0 images and 0 annotations"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}', "two categories"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_one_line(tmp_path, content, words):
    (tmp_path / "train").mkdir()
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(ValueError, match=words) as caught:
        open_coco(str(tmp_path / "train"), 3)
    assert "\n" not in str(caught.value)


def test_without_annotations_it_says_where_it_looked(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"none of annotations/train.json, annotations/instances_train.json"):
        open_coco(str(tmp_path / "train"), 3)
