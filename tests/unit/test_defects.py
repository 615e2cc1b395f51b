"""Scenes with a defect: what changes, where, and that nothing else does."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from openjepa.data.defects import open_defects
from openjepa.data.label_maps import open_mapped
from openjepa.data.scenes import make
from openjepa.data.scenes.defects import KINDS, LEAST_IMAGE, has_defect, render_defect
from openjepa.data.scenes.make import make_scenes
from openjepa.data.scenes.scene import render_scene
from tests.cli.console import assert_refused, openjepa


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def flawed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set of the fixture `scenes`, with defects."""
    folder = tmp_path_factory.mktemp("flawed") / "set"
    make_scenes(folder, train=24, test=12, size=32, seed=0, defects=0.6, processes=1)
    return folder


def test_the_option_changes_no_other_file(scenes: Path, flawed: Path):
    plain, files = read_files(scenes), read_files(flawed)
    added = {name for name in files if name not in plain}
    assert all(name.startswith("defects/") for name in added)
    assert {name for name in plain if files[name] != plain[name]} == {"dataset.json"}
    tests = {Path(name).name: content for name, content in plain.items() if name.startswith("test/")}
    normal = {Path(name).name: content for name, content in files.items() if name.startswith("defects/images/normal/")}
    assert 0 < len(normal) < 12
    assert all(tests[name] == content for name, content in normal.items())  # the same bytes
    others = {Path(name).name: files[name] for name in added if "/images/" in name and "/normal/" not in name}
    assert normal.keys() | others.keys() == tests.keys() and not normal.keys() & others.keys()
    assert all(tests[name] != content for name, content in others.items())


def test_what_is_written_is_what_is_listed_and_opens(flawed: Path):
    listed = json.loads((flawed / "defects" / "defects.json").read_text())["defects"]
    source = open_defects(str(flawed / "defects"), 3)
    assert source.is_defect.sum() == len(listed)
    by_name = {row["file_name"]: row for row in listed}
    for index in range(len(source)):
        name = "/".join(Path(source.path(index)).parts[-2:])
        defect = source.read_defect(index)
        assert defect.sum() == by_name.get(name, {"area": 0})["area"]
        assert source.classes[source.labels[index]] == by_name.get(name, {"kind": "normal"})["kind"]
    maps = open_mapped(str(flawed / "defects" / "images"), 3)  # which segmentation can train on
    assert maps.map_classes[0] == "background"


def test_the_same_seed_gives_the_same_bytes_and_a_larger_share_has_the_smaller_ones(
    flawed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(make, "count_cores", lambda: 1)  # tests/unit/test_make_scenes.py has several
    openjepa("make-scenes", tmp_path / "again", "--train", "24", "--test", "12", "--size", "32", "--defects", "0.6")
    assert read_files(tmp_path / "again") == read_files(flawed)
    shares = np.array([[has_defect(5, "test", index, share) for index in range(2000)] for share in (0.0, 0.2, 0.5, 1.0)])
    assert shares.mean(1) == pytest.approx([0, 0.2, 0.5, 1], abs=0.03)
    assert (np.diff(shares.astype(int), axis=0) >= 0).all()


def test_pixels_differ_where_the_map_says_and_hardly_elsewhere():
    """A recoloured part changes no other pixel; a new outline has another shadow and another edge to its light."""
    seen = set()
    for index in range(24):
        size = 64
        plain, flawed = render_scene(3, "test", index, size), render_defect(3, "test", index, size)
        seen.add(flawed.kind)
        changed = flawed.changed > 0
        assert set(np.unique(flawed.changed)) == {0, 1 + KINDS.index(flawed.kind)}
        assert changed.mean() >= 0.7 * LEAST_IMAGE
        difference = np.abs(plain.pixels.astype(int) - flawed.pixels).max(2)
        reach = 3 if flawed.kind == "recoloured" else 2 * (size // 12) + 1
        near = np.asarray(Image.fromarray(changed).convert("L").filter(ImageFilter.MaxFilter(reach))) > 0
        assert difference[changed].mean() > 8 * difference[~changed].mean(), index
        assert (difference[~near] > 4).sum() <= 8, (index, flawed.kind)  # edges that cover less than half of a pixel
        assert (difference[changed] > 8).mean() > 0.95
        if flawed.kind == "recoloured":
            assert len(set(plain.owners[changed].tolist())) == 1  # of one object
        if flawed.kind == "missing":
            assert (plain.owners[changed] > 0).all()
    assert seen == set(KINDS)


def test_size_changes_sharpness_alone():
    for index in range(8):
        small, large = render_defect(0, "test", index, 64), render_defect(0, "test", index, 128)
        assert small.kind == large.kind
        halved = np.asarray(Image.fromarray(large.pixels).reduce(2)).astype(float)
        assert np.abs(halved - small.pixels).mean() < 8
        assert np.mean(large.changed[::2, ::2] == small.changed) > 0.97


def test_a_share_out_of_range_is_refused(tmp_path: Path):
    assert_refused(openjepa("make-scenes", tmp_path / "out", "--defects", "1.5", check=False), "--defects 1.5", "0 to 1")
    assert not list(tmp_path.iterdir())
