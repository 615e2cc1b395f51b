"""One scale for a whole set, from the values that its images hold, and the same one for everything computed from a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from openjepa.data.depth import settle
from openjepa.data.fingerprint import stamp
from openjepa.data.inspect import describe_pages, look_at
from openjepa.data.left_out import describe_left_out
from openjepa.data.pack import write_pack
from openjepa.data.reading import Reading, reading_of
from openjepa.data.sources import open_source
from openjepa.recipe.sections import Data


def write(folder: Path, arrays: list[np.ndarray], extension: str) -> str:
    folder.mkdir()
    for number, array in enumerate(arrays):
        file = folder / f"{number}{extension}"
        if extension == ".npy":
            np.save(file, array)
        elif extension == ".tif":
            tifffile.imwrite(file, array, photometric="minisblack")
        else:
            Image.fromarray(array).save(file)
    return str(folder)


def settle_folder(folder: str, channels: int = 1, **told: object):
    settings = Data(channels=channels, **told)
    return settle(settings, open_source(folder, channels, reading_of(settings)))


@pytest.mark.parametrize("extension", [".png", ".tif", ".npy"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_unsigned_values_are_shown_by_the_bits_they_use(tmp_path, extension, bits):
    generator = np.random.default_rng(bits)
    arrays = [generator.integers(0, 2**bits * 0.9, (9, 8)).astype(np.uint16) for _ in range(6)]
    arrays[0][0, 0] = 2**bits * 0.9
    settings, source, lines = settle_folder(write(tmp_path / "a", arrays, extension))
    assert (settings.white_level, settings.black_level, settings.nodata) == (2**bits - 1, 0, None)
    assert f"data.white_level={2**bits - 1}" in lines[0]
    for index, array in enumerate(arrays):
        assert abs(source.load(index)[:, :, 0] - array / (2**bits - 1) * 255).max() <= 0.5
    assert settle(settings, source)[0] == settings  # a recipe that states it is not measured again


def test_floats_and_signed_values_share_one_scale_that_outliers_do_not_move(tmp_path):
    generator = np.random.default_rng(0)
    arrays = [generator.normal(200 * number, 100, (60, 60)).astype(np.float32) for number in range(5)]
    arrays[2][0, 0] = 1e9
    arrays[1][:3, :3] = np.nan
    arrays[3][:6, :6] = -9999
    settings, source, lines = settle_folder(write(tmp_path / "a", arrays, ".tif"))
    known = np.concatenate([array[np.isfinite(array) & (array != -9999)] for array in arrays])
    low, high = np.percentile(known, [0.1, 99.9])
    assert settings.nodata == -9999
    assert settings.black_level == pytest.approx(low, abs=0.02 * (high - low))
    assert settings.white_level == pytest.approx(high, abs=0.02 * (high - low))
    assert f"{45 / 18000:.2%}" in lines[-1]
    assert (source.load(3)[:6, :6] == 0).all() and (source.load(1)[:3, :3] == 0).all()
    means = [source.load(index).mean() for index in range(5)]
    assert means == sorted(means)  # no image is stretched by itself


def test_shares_of_white_and_eight_bits_stay_as_they_are(tmp_path):
    generator = np.random.default_rng(0)
    shares = [generator.random((9, 9)).astype(np.float32) * 0.5 for _ in range(3)]
    assert settle_folder(write(tmp_path / "a", shares, ".npy"))[0].white_level == 1
    bytes_ = write(tmp_path / "b", [generator.integers(0, 50, (9, 9), dtype=np.uint8)] * 3, ".png")
    settings, source, lines = settle_folder(bytes_)
    assert (settings.white_level, lines) == (None, []) and source.load(0).max() < 50


def test_a_pack_says_by_which_scale_it_was_made(tmp_path):
    arrays = [np.full((9, 9), 900 + number, np.uint16) for number in range(4)]
    _, source, _ = settle_folder(write(tmp_path / "a", arrays, ".png"))
    write_pack(source, tmp_path / "pack", 32)
    settings, packed, _ = settle_folder(str(tmp_path / "pack"))
    assert settings.white_level == 1023
    np.testing.assert_array_equal(packed.load(2), source.load(2))


def test_features_kept_by_one_scale_are_not_those_of_another(tmp_path):
    source = open_source(write(tmp_path / "a", [np.zeros((4, 4), np.uint16)] * 2, ".png"), 1)
    assert stamp(source) != stamp(replace(source, reading=Reading(white=4095.0)))


def test_pages_and_layout(tmp_path):
    pages = np.random.default_rng(0).integers(0, 255, (3, 8, 8), dtype=np.uint8)
    stacks = write(tmp_path / "a", [pages, pages[::-1]], ".tif")
    assert len(open_source(stacks, 1)) == 2 and "data.pages=all" in describe_pages(open_source(stacks, 1))[0]
    every = open_source(stacks, 1, Reading(pages="all"))
    assert len(every) == 6 and describe_pages(every) == [] and len({every.path(index) for index in range(6)}) == 6
    np.testing.assert_array_equal(np.stack([every.load(index)[:, :, 0] for index in range(6)]), [*pages, *pages[::-1]])
    front = write(tmp_path / "b", [np.zeros((12, 32, 40), np.uint8)] * 2, ".npy")
    with pytest.raises(ValueError, match=r"channels-first: add data.layout=channels_first"):
        look_at(front)
    told = Reading(layout="channels_first")
    assert (look_at(front, told).channels, look_at(front, told).side_px) == (12, 32)
    assert open_source(front, 12, told).load(0).shape == (32, 40, 12)


def test_files_that_are_passed_over_are_counted(tmp_path):
    folder = write(tmp_path / "a", [np.zeros((4, 4), np.uint8)] * 2, ".png")
    for number in range(30):
        (tmp_path / "a" / f"{number}.jxl").touch()
    (tmp_path / "a" / "notes.txt").touch()
    (line,) = describe_left_out(open_source(folder, 1))
    assert line == "passed over 31 files beside 2 images; 30 of them images that may be missed: 30 .jxl (JPEG XL), 1 .txt"
