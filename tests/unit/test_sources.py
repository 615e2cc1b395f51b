"""Folders, specs, the embedded sample and the idx files."""

from __future__ import annotations

import gzip
import json
import os
import struct
from importlib import resources
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openjepa.data.decode import DecodeError
from openjepa.data.sample import read_index
from openjepa.data.sources import canonical_spec, open_source, spread
from tests.messy_folder import CLASSES, build_messy_folder


def put(path: Path, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 3), level).save(path)


def test_folder_lists_images_by_path_at_any_depth_and_nothing_else(tmp_path):
    names = ["b/2.PNG", "a/x/y/z/1.jpeg", "a/1.jpg", "a.png/1.TIF", "b/10.webp", "b/3.bmp", "c d/é.gif"]
    for name in names:
        put(tmp_path / name)
    for name in (".hidden/1.png", "b/.2.png"):
        put(tmp_path / name)
    for name in ("b/1.txt", "b/png", "b/2.png.bak"):
        (tmp_path / name).write_text("no image")
    source = open_source(str(tmp_path), 3)
    assert [os.path.relpath(source.path(i), tmp_path) for i in range(len(source))] == sorted(names)
    assert all(source.load(i).shape == (3, 4, 3) and source.load(i).dtype == np.uint8 for i in range(len(source)))


def test_first_level_folders_are_classes_only_if_every_image_lies_in_one(tmp_path):
    for name in ("dog/1.png", "cat/old/1.png", "cat/2.png", "ant/1.png"):
        put(tmp_path / name)
    (tmp_path / "emu").mkdir()
    (tmp_path / "readme.txt").write_text("a file beside the classes is no image")
    source = open_source(str(tmp_path), 1)
    assert source.classes == ["ant", "cat", "dog"]  # not emu, which has no images
    assert source.labels is not None and source.labels.dtype == np.int64
    shown = {os.path.relpath(source.path(i), tmp_path).split(os.sep)[0] for i in range(4)}
    assert shown == {"ant", "cat", "dog"}
    for i in range(4):
        assert source.classes[source.labels[i]] == os.path.relpath(source.path(i), tmp_path).split(os.sep)[0]
    put(tmp_path / "stray.png")
    source = open_source(str(tmp_path), 1)
    assert source.labels is None and source.classes == []


def test_links_are_followed_but_never_in_circles(tmp_path):
    put(tmp_path / "data/a/1.png", 11)
    put(tmp_path / "elsewhere/2.png", 22)
    (tmp_path / "data/a/up").symlink_to(tmp_path / "data")
    (tmp_path / "data/a/self.png").symlink_to(tmp_path / "data/a/self.png")
    (tmp_path / "data/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/a/link.png").symlink_to(tmp_path / "elsewhere/2.png")
    (tmp_path / "data/a/broken.png").symlink_to(tmp_path / "gone.png")
    source = open_source(str(tmp_path / "data"), 1)
    levels = {}
    for i in range(len(source)):
        try:
            levels[os.path.relpath(source.path(i), tmp_path / "data")] = int(source.load(i)[0, 0, 0])
        except DecodeError as error:
            levels[os.path.relpath(source.path(i), tmp_path / "data")] = error.reason[:11]
    assert levels == {
        "a/1.png": 11, "a/link.png": 22, "b/2.png": 22, "a/broken.png": "[Errno 2] N", "a/self.png": "[Errno 40] "
    }  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nowhere", "there is no nowhere; DATA is a folder"),
        ("file.txt", "file.txt is a file"),
        ("empty", "empty holds no images: no files"),
        ("texts", "texts holds no images: 4 files, 2 .txt, 1 without extension, 1 .wav"),
        ("sample:validation", "sample:validation does not end in :train or :test"),
        ("sample:", "there is no sample:"),
        ("fashion-mnist:empty", "fashion-mnist:empty does not end in :train or :test"),
        ("fashion-mnist:empty:train", "empty has no train-images-idx3-ubyte.gz and no train-images-idx3-ubyte"),
    ],
)
def test_user_mistakes_are_one_line(tmp_path, monkeypatch, spec, words):
    monkeypatch.chdir(tmp_path)
    Path("file.txt").write_text("")
    Path("empty/.hidden").mkdir(parents=True)
    Path("texts/deep").mkdir(parents=True)
    for name in ("a.txt", "deep/b.TXT", "c.wav", "Makefile"):
        Path("texts", name).write_text("")
    with pytest.raises(ValueError, match=f"^{words}") as caught:
        open_source(spec, 3)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_not_utf8_can_be_read_and_shown(tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        with open(name, "wb") as file:
            Image.new("L", (2, 2), 7).save(file, "PNG")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    source = open_source(str(tmp_path), 1)
    assert source.load(0)[0, 0, 0] == 7
    assert source.path(0).encode().endswith(b"/caf\\xe9.png")


def test_messy_folder_reads_all_but_the_truncated(tmp_path):
    messy = build_messy_folder(tmp_path, num_good=60)
    source = open_source(str(tmp_path), 3)
    failed, sizes = [], set()
    for i in range(len(source)):
        try:
            image = source.load(i)
        except DecodeError as error:
            failed.append(Path(error.path))
        else:
            sizes.add(image.shape)
    assert sorted(failed) == sorted(messy.truncated)
    assert len(source) == messy.num_good + 2
    assert source.classes == list(CLASSES)
    assert {(1, 1, 3), (1500, 2000, 3)} <= sizes
    assert len({Path(source.path(i)).suffix for i in range(len(source))}) >= 10


@pytest.mark.parametrize(("part", "per_class"), [("train", 1000), ("test", 200)])
def test_sample_is_balanced_and_grey(part, per_class):
    source = open_source(f"sample:{part}", 1)
    assert len(source) == 10 * per_class
    assert np.bincount(source.labels).tolist() == [per_class] * 10
    assert source.classes[0] == "T-shirt/top" and source.classes[9] == "Ankle boot" and len(source.classes) == 10
    assert source.load(0).shape == (28, 28, 1)
    assert source.path(5) == f"sample:{part}[5]"
    colour = open_source(f"sample:{part}", 3).load(17)
    assert colour.shape == (28, 28, 3) and np.ptp(colour, axis=2).max() == 0
    np.testing.assert_array_equal(colour[:, :, :1], source.load(17))
    assert (open_source(f"sample:{part}", 4).load(17)[:, :, 3] == 255).all()
    with pytest.raises(ValueError, match="1 to 4 channels"):
        open_source(f"sample:{part}", 5)


@pytest.mark.parametrize("part", ["train", "test"])
def test_sample_equals_the_original_files(part, shared):
    folder = shared / "data" / "fashion-mnist"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    sample, original = open_source(f"sample:{part}", 1), open_source(f"fashion-mnist:{folder}:{part}", 1)
    chosen = read_index()[part]["original_idx"]
    assert len(set(chosen)) == len(chosen) == len(sample) > 0
    assert len(original) == {"train": 60_000, "test": 10_000}[part]
    for i, j in enumerate(chosen):
        assert np.array_equal(sample.load(i), original.load(j)), (i, j)
    np.testing.assert_array_equal(sample.labels, original.labels[chosen])
    assert sample.classes == original.classes


def test_sample_is_small_and_has_its_licence():
    folder = resources.files("openjepa.data.sample")
    sizes = {item.name: len(item.read_bytes()) for item in folder.iterdir() if item.is_file()}
    assert "Zalando" in (folder / "LICENSE").read_text("utf-8")
    assert sum(sizes.values()) < 6e6


def write_idx(folder: Path, num_images: int = 6, labels: bytes = b"\0\1\2\3\4\5", extra: bytes = b"", suffix: str = "") -> None:
    images = struct.pack(">4B3I", 0, 0, 8, 3, 6, 2, 3) + bytes(range(6 * num_images)) + extra
    for name, data in (
        ("t10k-images-idx3-ubyte", images),
        ("t10k-labels-idx1-ubyte", struct.pack(">4BI", 0, 0, 8, 1, len(labels)) + labels),
    ):
        (folder / (name + suffix)).write_bytes(gzip.compress(data) if suffix else data)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_plain_and_gzipped(tmp_path, suffix):
    write_idx(tmp_path, suffix=suffix)
    source = open_source(f"fashion-mnist:{tmp_path}:test", 1)
    assert source.load(2)[:, :, 0].tolist() == [[12, 13, 14], [15, 16, 17]]
    assert source.labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_damaged_idx_files_are_refused(tmp_path):
    def refuse(words: str) -> None:
        with pytest.raises(ValueError, match=words):
            open_source(f"fashion-mnist:{tmp_path}:test", 1)

    write_idx(tmp_path, num_images=5)
    refuse(r"\(6, 2, 3\), 36 bytes; found 30")
    write_idx(tmp_path, extra=b"x")
    refuse("found more")
    write_idx(tmp_path, labels=b"\0\1\2")
    refuse("has 6 images, but t10k-labels-idx1-ubyte has 3 labels")
    write_idx(tmp_path, labels=b"\0\1\2\3\4\x0c")
    refuse("label 12; Fashion-MNIST's are 0 to 9")
    write_idx(tmp_path, suffix=".gz")
    whole = (tmp_path / "t10k-images-idx3-ubyte.gz").read_bytes()
    for data in (whole[: len(whole) // 2], whole[:10], b"", b"not gzip at all", gzip.compress(b"\0\0\x0d\3" + bytes(50))):
        (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(data)
        refuse("t10k-images-idx3-ubyte.gz is (damaged|not an idx file)")


def test_class_names_are_those_of_the_paper():
    assert json.dumps(read_index()["classes"]) == (
        '["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]'
    )


def test_the_same_data_has_one_name_however_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    written = ["photos", "photos/", "./photos", "link", "photos/../photos", "~/photos", str(tmp_path / "photos")]
    assert {canonical_spec(spec) for spec in written} == {str(tmp_path.resolve() / "photos")}
    assert canonical_spec("sample:train") == "sample:train" != canonical_spec("sample:test")
    parts = {canonical_spec(f"fashion-mnist:{folder}:test") for folder in written}
    assert parts == {f"fashion-mnist:{tmp_path.resolve() / 'photos'}:test"}


def test_a_class_folder_that_is_not_utf8_has_a_printable_name(tmp_path):
    for name in (b"caf\xe9", b"dog"):
        folder = os.fsencode(tmp_path) + b"/" + name
        os.mkdir(folder)
        Image.new("L", (4, 4)).save(os.fsdecode(folder + b"/1.png"))
    source = open_source(str(tmp_path), 1)
    assert source.classes == ["caf\\xe9", "dog"]
    assert all(name.encode("utf-8") for name in source.classes)
    assert source.open(0).decode().shape == (4, 4, 1)


def test_spread_is_even_and_has_both_ends():
    assert spread(10, 4).tolist() == [0, 3, 6, 9]
    for count in (0, 1, 2, 7, 100):
        for most in (1, 2, 5, 300):
            chosen = spread(count, most).tolist()
            assert len(chosen) == min(count, most) == len(set(chosen))
            gaps = {after - before for before, after in pairwise(chosen)}
            assert not gaps or max(gaps) - min(gaps) <= 1
            assert most < 2 or not chosen or (chosen[0], chosen[-1]) == (0, count - 1)
