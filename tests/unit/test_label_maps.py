"""Label maps of folders and of COCO masks."""

import numpy as np
import pytest
from PIL import Image

from openjepa.data.annotations import Objects
from openjepa.data.label_maps import IGNORED, open_mapped, paint
from openjepa.data.scenes.scene import CLASSES, render_scene


def write_maps(root, maps, *, split="training", size=None):
    """ADE20K's layout: a random image and the given map for every name."""
    for name, values in maps.items():
        picture = np.zeros((*(size or values.shape), 3), np.uint8)
        for kind, pixels, ending in (("images", picture, ".jpg"), ("annotations", values, ".png")):
            path = (root / kind / split / name).with_suffix(ending)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return str(root / "images" / split)


def as_map(*rows):
    return np.array(rows, np.uint8)


def test_maps_of_ade20ks_layout(tmp_path):
    spec = write_maps(tmp_path, {"x/a": as_map([0, 7, 255], [7, 7, 150]), "b": as_map([0, 0], [7, 0])})
    source = open_mapped(spec, 3)
    assert (source.map_classes, source.background, len(source)) == (["background", "7", "150"], 0, 2)
    order = [source.path(index).removeprefix(spec) for index in range(2)]
    assert order == ["/b.jpg", "/x/a.jpg"]
    assert source.read_map(1).tolist() == [[0, 1, IGNORED], [1, 1, 2]]
    ade = open_mapped(spec, 3, ignore_zero=True)
    assert (ade.map_classes, ade.background) == (["7", "150"], None)
    assert ade.read_map(1).tolist() == [[IGNORED, 0, IGNORED], [0, 0, 1]]


def test_the_other_layouts_and_a_named_folder(tmp_path):
    maps = {"a": as_map([0, 7])}
    inside = tmp_path / "inside"
    write_maps(inside, maps, split="")
    assert open_mapped(str(inside), 3).map_classes == ["background", "7"]
    spec = write_maps(tmp_path, maps)
    (tmp_path / "annotations").rename(tmp_path / "elsewhere")
    assert open_mapped(spec, 3, str(tmp_path / "elsewhere" / "training")).read_map(0).tolist() == [[0, 1]]


def test_palettes_and_bits_are_class_numbers(tmp_path):
    spec = write_maps(tmp_path, {"a": as_map([0, 3]), "b": as_map([0, 1])})
    palette = Image.fromarray(as_map([0, 3]), "P")
    palette.putpalette([9, 9, 9] * 256)
    palette.save(tmp_path / "annotations" / "training" / "a.png")
    Image.fromarray(as_map([0, 1]).astype(bool)).save(tmp_path / "annotations" / "training" / "b.png")
    source = open_mapped(spec, 3)
    assert [source.read_map(index).tolist() for index in range(2)] == [[[0, 2]], [[0, 1]]]


def test_images_without_a_map_are_counted(tmp_path):
    spec = write_maps(tmp_path, {"a": as_map([0, 1]), "b": as_map([0, 1])})
    (tmp_path / "annotations" / "training" / "a.png").unlink()
    source = open_mapped(spec, 3)
    assert len(source) == 1
    assert source.unused == f"1 images of {spec} have no label map (first: {spec}/a.jpg)"


@pytest.mark.parametrize(
    ("values", "size", "words"),
    [
        (np.zeros((4, 4, 3), np.uint8), (4, 4), "a.png: is a picture of mode RGB"),
        (np.full((4, 4), 300, np.uint16), (4, 4), "a.png: has the value 300"),
        (as_map([1, 2]), (2, 2), r"a.png: is 1 x 2 px, and its image .*a.jpg is 2 x 2"),
        (as_map([255]), None, "every pixel is ignored"),
    ],
)
def test_maps_that_are_none_are_one_line(tmp_path, values, size, words):
    with pytest.raises(ValueError, match=words) as caught:
        open_mapped(write_maps(tmp_path, {"a": values}, size=size), 3)
    assert "\n" not in str(caught.value)


def test_a_wrong_layout_says_what_was_looked_for(tmp_path):
    spec = write_maps(tmp_path, {"a": as_map([0, 1])})
    (tmp_path / "annotations" / "training" / "a.png").rename(tmp_path / "annotations" / "training" / "z.png")
    with pytest.raises(ValueError, match=r"no image of .* has a label map in .*: a.png would be the first"):
        open_mapped(spec, 3)
    (tmp_path / "images").rename(tmp_path / "photos")
    with pytest.raises(ValueError, match=r"has no annotations: .* or keep label maps as ROOT/images"):
        open_mapped(str(tmp_path / "photos"), 3)


def test_scenes_are_painted_as_they_were_drawn(scenes):
    source = open_mapped(str(scenes / "test"), 3)
    assert source.map_classes == ["background", *CLASSES]
    for index in range(4):
        scene = render_scene(0, "test", int(source.path(index)[-10:-4]) - 1, 32)
        assert np.array_equal(source.read_map(index), np.array([0, *(number + 1 for number in scene.classes)])[scene.owners])
    with pytest.raises(ValueError, match="drop --ignore-zero"):
        open_mapped(str(scenes / "test"), 3, ignore_zero=True)


def test_small_objects_lie_over_large_ones_and_crowds_are_ignored():
    def run(first, last):
        return {"size": [1, 6], "counts": [first, last - first, 6 - last]}

    runs = [run(1, 2), run(0, 3), run(2, 5)]
    objects = Objects(
        (1, 6), np.zeros((3, 4), np.float32), np.array([4, 7, 8]), np.array([False, False, True]), np.ones(3, np.float32), runs
    )
    assert paint(objects).tolist() == [[8, 5, 8, IGNORED, IGNORED, 0]]
