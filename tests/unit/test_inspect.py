"""A look at data: sizes and colour of folders, arrays and packs, compared with what was written into them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openjepa.data.decode import EXTENSIONS, DecodeError, open_image, read_header
from openjepa.data.inspect import look_at
from openjepa.data.pack import write_pack
from openjepa.data.sources import folder, open_source
from tests.messy_folder import build_messy_folder


def write_images(folder: Path, count: int, mode: str, kind: str = "png", size: tuple[int, int] = (40, 30)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        grey = Image.fromarray(generator.integers(0, 256, (size[1], size[0]), dtype=np.uint8))
        colour = Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        image = {"L": grey, "grey RGB": grey.convert("RGB"), "RGB": colour, "P": colour.quantize(8), "I;16": grey}[mode]
        if mode == "I;16":
            image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
        image.save(folder / f"{mode.replace(' ', '-')}-{number}.{kind}")


@pytest.mark.parametrize(
    ("modes", "channels"),
    [(["L"], 1), (["I;16"], 1), (["grey RGB"], 1), (["L", "grey RGB"], 1), (["RGB"], 3), (["P"], 3), (["L", "RGB"], 3)],
)
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_channels_are_what_the_images_show(tmp_path: Path, modes: list[str], channels: int, kind: str) -> None:
    for mode in modes:
        if kind == "jpg" and mode in ("P", "I;16"):
            pytest.skip("JPEG has no such mode")
        write_images(tmp_path, 5, mode, kind)
    found = look_at(str(tmp_path))
    assert (found.num_images, found.num_looked_at, found.channels, found.side_px) == (
        5 * len(modes),
        5 * len(modes),
        channels,
        30,
    )


def test_the_side_is_the_median_of_all_files(tmp_path: Path) -> None:
    for number, size in enumerate([(10, 100), (20, 30), (500, 300), (64, 64), (70, 90)]):
        write_images(tmp_path / str(number), 1, "RGB", size=size)
    assert look_at(str(tmp_path)).side_px == int(np.median([10, 20, 300, 64, 70]))


@pytest.mark.parametrize("number", [1, 3, 5])
def test_arrays_keep_their_channels(tmp_path: Path, number: int) -> None:
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).integers(0, 256, (24, 32, number), dtype=np.uint8))
    found = look_at(str(tmp_path))
    assert (found.channels, found.side_px) == (number, 24)


def test_arrays_in_memory_and_packs(tmp_path: Path) -> None:
    found = look_at("sample:train")
    assert (found.num_images, found.side_px, found.channels, found.num_looked_at) == (10_000, 28, 1, 200)
    for mode, channels in (("L", 1), ("RGB", 3), ("grey RGB", 3)):
        write_images(tmp_path / mode, 6, mode)
        write_pack(open_source(str(tmp_path / mode), channels), tmp_path / f"{mode} packed", 384)
        folder, packed = look_at(str(tmp_path / mode)), look_at(str(tmp_path / f"{mode} packed"))
        assert folder == packed


def test_few_files_are_looked_at_and_fewer_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, 300, "RGB", size=(4, 4))
    opened = []

    def count(path: str, *how: object) -> object:
        opened.append(path)
        return open_image(path, *how)

    monkeypatch.setattr(folder, "open_image", count)
    found = look_at(str(tmp_path))
    assert found.num_images == 300 and found.num_looked_at == 200
    assert len(opened) == 1  # the first one shows colour, and that settles it


def test_a_messy_folder_is_looked_at_and_one_of_damaged_files_refused(tmp_path: Path) -> None:
    build_messy_folder(tmp_path / "messy", 60)
    found = look_at(str(tmp_path / "messy"))
    assert found.num_images == 62 and found.num_looked_at >= 60 and found.channels == 3
    (tmp_path / "bad").mkdir()
    for name in ("one.png", "two.jpg", "three.npy"):
        (tmp_path / "bad" / name).write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of 3 images looked at can be read"):
        look_at(str(tmp_path / "bad"))


def test_headers_agree_with_the_decoded_image(tmp_path: Path) -> None:
    build_messy_folder(tmp_path, 60)
    checked = 0
    for path in tmp_path.rglob("*"):
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."):
            header = read_header(str(path))
            try:
                size = open_image(str(path), 3).size
            except DecodeError:
                continue
            assert header.size == size  # a turned photo's too
            checked += 1
    assert checked >= 55
    with pytest.raises(DecodeError):
        read_header(io.__file__)
