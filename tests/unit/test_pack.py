"""Packs: the same images in another form, whole or not at all, and damage is refused in one line."""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from openjepa.data import pack
from openjepa.data.decode import DecodeError
from openjepa.data.loader import evaluation_batches
from openjepa.data.pack import write_pack
from openjepa.data.sources import open_source
from openjepa.training.build import make_batches
from tests.messy_folder import build_messy_folder, draw_picture
from tests.models import small_recipe


def make_folder(path: Path, sizes: list[tuple[int, int]], name: str = "{}.jpg") -> Path:
    for number, size in enumerate(sizes):
        file = path / ("odd", "even")[number % 2 == 0] / name.format(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        draw_picture("stripes", size, np.random.default_rng(number)).save(file)
    return path


def make_pack(source_path: Path, out: Path, size_px: int = 100, channels: int = 3, workers: int = 0) -> Path:
    write_pack(open_source(str(source_path), channels), out, size_px, workers)
    return out


def batches_of(path: Path) -> list[bytes]:
    """Of views with all changes of colour."""
    colour = {"colour": 0.8, "grey": 0.2, "blur": 0.5, "solarize": 0.2}
    recipe = small_recipe(data__image_size=48, data__channels=3, data__batch_size=7, views__main=colour, train__seed=1)
    batches = make_batches(recipe, open_source(str(path), 3), 0, 4)
    return [batch.views["main"].images.numpy().tobytes() for batch in batches]


def refuse(path: Path, *words: str, channels: int = 3) -> None:
    with pytest.raises(ValueError, match=f"^{path}") as caught:
        open_source(str(path), channels)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A pack of five images."""
    return make_pack(make_folder(tmp_path / "photos", [(50, 40), (40, 50), (60, 60), (30, 35), (41, 43)]), tmp_path / "packed")


def test_small_images_give_the_same_batches_bit_for_bit(tmp_path):
    photos = tmp_path / "photos"
    messy = build_messy_folder(photos, num_good=60)
    for file in (*messy.truncated, *photos.rglob("image 008*")):  # unreadable, and larger than what is kept
        file.unlink()
    packed = make_pack(photos, tmp_path / "packed", size_px=120, workers=2)
    folder, pack_source = open_source(str(photos), 3), open_source(str(packed), 3)
    assert len(pack_source) == len(folder) == 59
    assert pack_source.classes == folder.classes and pack_source.labels.tolist() == folder.labels.tolist()
    assert [pack_source.path(i) for i in range(59)] == [folder.path(i) for i in range(59)]
    for i in range(59):
        np.testing.assert_array_equal(pack_source.load(i), folder.load(i))
    assert batches_of(packed) == batches_of(photos)
    (one, other) = (next(evaluation_batches(source, (48, 48)))[0] for source in (folder, pack_source))
    assert one.equal(other)


def test_a_pack_in_colour_is_also_shown_in_grey(small, tmp_path):
    grey = [open_source(str(path), 1) for path in (small, tmp_path / "photos")]
    for i in range(5):
        np.testing.assert_array_equal(grey[0].load(i), grey[1].load(i))
    only_grey = make_pack(tmp_path / "photos", tmp_path / "grey", channels=1)
    np.testing.assert_array_equal(open_source(str(only_grey), 1).load(3), grey[1].load(3))
    refuse(only_grey, "holds images of 1 channels", "--channels 3")


@pytest.mark.parametrize(("size", "expected"), [((300, 200), (100, 150)), ((200, 300), (150, 100)), ((99, 5000), (5000, 99))])
def test_large_images_shrink_in_proportion_and_small_ones_stay(tmp_path, size, expected):
    photos = make_folder(tmp_path / "photos", [size], "{}.png")
    image = open_source(str(make_pack(photos, tmp_path / "packed")), 3).load(0)
    assert image.shape == (*expected, 3)
    with Image.open(photos / "even" / "0.png") as whole:
        shrunk = np.asarray(whole.resize(expected[::-1], Image.Resampling.BILINEAR)).astype(int)
    assert abs(image - shrunk).max() <= 1


def test_unreadable_images_are_left_out_and_listed(tmp_path):
    messy = build_messy_folder(tmp_path / "photos", num_good=20)
    packed = write_pack(open_source(str(messy.path), 3), tmp_path / "packed", 100)
    assert (packed.num_images, packed.num_skipped) == (20, 2)
    lines = (tmp_path / "packed" / "skipped.txt").read_text().splitlines()
    assert {line.split("\t")[0] for line in lines} == {str(file) for file in messy.truncated}
    assert packed.num_bytes == (tmp_path / "packed" / "pixels.bin").stat().st_size
    for file in (tmp_path / "photos").rglob("*.*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(DecodeError, match="none of 22 images can be read"):
        write_pack(open_source(str(messy.path), 3), tmp_path / "other", 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "photos"]


def test_a_pack_without_classes_has_none(tmp_path):
    draw_picture("discs", (20, 20), np.random.default_rng(0)).save(tmp_path / "a.png")
    source = open_source(str(make_pack(tmp_path, tmp_path / "packed")), 3)
    assert source.labels is None and source.classes == []


def test_damage_is_refused(small):
    table, pixels = (small / "pack.parquet").read_bytes(), (small / "pixels.bin").read_bytes()
    for data, words in ((pixels[:-1], "pixels.bin has"), (pixels + b"x", "pixels.bin has"), (b"", "pixels.bin has 0 bytes")):
        (small / "pixels.bin").write_bytes(data)
        refuse(small, "damaged pack", words, "openjepa pack")
    (small / "pixels.bin").unlink()
    refuse(small, "damaged pack", "pixels.bin")
    (small / "pixels.bin").write_bytes(pixels)
    for data in (table[:-1], table[: len(table) // 2], b"", b"PAR1"):
        (small / "pack.parquet").write_bytes(data)
        refuse(small, "damaged pack")


def test_no_changed_byte_of_the_table_goes_unnoticed_or_crashes(small):
    whole = open_source(str(small), 3)
    table = (small / "pack.parquet").read_bytes()
    for place in range(0, len(table), 5):
        (small / "pack.parquet").write_bytes(table[:place] + bytes([table[place] ^ 0x55]) + table[place + 1 :])
        try:
            source = open_source(str(small), 3)
        except ValueError:
            continue
        # a byte that says nothing about the images
        assert source.paths == whole.paths and source.labels.tolist() == whole.labels.tolist()
        assert [source.load(i).tobytes() for i in range(len(source))] == [whole.load(i).tobytes() for i in range(5)]


def test_sizes_that_do_not_fit_together_are_refused(small):
    table = pq.read_table(small / "pack.parquet")
    for column, change in (("offset", 1), ("height", 1), ("width", -41)):
        values = table[column].to_numpy().copy()
        values[2] += change
        place = table.schema.get_field_index(column)
        pq.write_table(table.set_column(place, column, [values]), small / "pack.parquet")
        refuse(small, "damaged pack", "sizes")


def test_nothing_is_overwritten(small, tmp_path):
    before = {file.name: file.read_bytes() for file in small.iterdir()}
    with pytest.raises(ValueError, match=f"^{small} exists already"):
        make_pack(tmp_path / "photos", small)
    assert {file.name: file.read_bytes() for file in small.iterdir()} == before


def test_a_failure_leaves_nothing_and_the_next_attempt_starts_anew(small, tmp_path, monkeypatch):
    out = tmp_path / "again"
    left = tmp_path / ".again.packing"
    left.mkdir()
    (left / "pixels.bin").write_bytes(b"what a killed attempt wrote")

    def run_full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", run_full)
        with pytest.raises(OSError, match="No space left"):
            make_pack(tmp_path / "photos", out)
    assert not out.exists() and not left.exists()
    left.mkdir()
    (left / "pixels.bin").write_bytes(b"what a killed attempt wrote")
    make_pack(tmp_path / "photos", out)
    assert (out / "pixels.bin").read_bytes() == (small / "pixels.bin").read_bytes() and not left.exists()


def test_two_processes_do_not_pack_to_one_place(small, tmp_path):
    growing = tmp_path / ".again.packing"
    growing.mkdir()
    with (growing / "pixels.bin").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another openjepa pack is writing"):
            make_pack(tmp_path / "photos", tmp_path / "again")
    assert growing.exists()


def test_a_full_disk_is_noticed_before_anything_is_written(small, tmp_path, monkeypatch):
    needed = sum(image.size for image in map(open_source(str(small), 3).load, range(5)))
    for free, enough in ((int(needed * 1.06), True), (int(needed * 1.04), False)):
        monkeypatch.setattr(pack.shutil, "disk_usage", lambda _path, free=free: shutil._ntuple_diskusage(0, 0, free))
        out = tmp_path / f"with {free}"
        if enough:
            make_pack(tmp_path / "photos", out)
        else:
            with pytest.raises(ValueError, match="free; choose another place or a smaller --size"):
                make_pack(tmp_path / "photos", out)
        assert out.exists() == enough
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_a_worker_that_does_not_inherit_the_map_is_not_sent_the_pixels(small):
    source = open_source(str(small), 3)
    data = pickle.dumps(source)
    assert len(data) < 500
    np.testing.assert_array_equal(pickle.loads(data).load(2), source.load(2))  # noqa: S301
