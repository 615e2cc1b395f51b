"""TIFF of every kind: what tests/tiff_writer.py wrote and tifffile reads is what is shown, or it is refused by name.

The rule that says what is to be shown is written again here, from the module docstring of openjepa/data/raster.py.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tifffile

from openjepa.data.decode import DecodeError, open_image, read_header
from openjepa.data.reading import Reading
from openjepa.data.tiff import list_pages
from tests.tiff_writer import DEFLATE, LZW, NONE, PACKBITS, make_tiff

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE = 0, 1, 2, 3
TYPES = ("?", "u1", "u2", "u4", "i1", "i2", "i4", "f4", "f8")
KINDS = {  # (photometric, bands, extra samples)
    "white is zero": (WHITE_IS_ZERO, 1, ()), "black is zero": (BLACK_IS_ZERO, 1, ()), "palette": (PALETTE, 1, ()),
    "grey + alpha": (BLACK_IS_ZERO, 2, (2,)), "2 bands": (BLACK_IS_ZERO, 2, ()), "2 bands, named extra": (BLACK_IS_ZERO, 2, (0,)),
    "rgb": (RGB, 3, ()), "rgb + alpha": (RGB, 4, (2,)), "rgb + premultiplied": (RGB, 4, (1,)), "rgb + extra": (RGB, 4, (0,)),
    "rgb + untagged": (RGB, 4, ()), "rgb + 2": (RGB, 5, (0, 0)), "5 bands": (BLACK_IS_ZERO, 5, (0, 0, 0, 0)),
    "5 untagged bands": (BLACK_IS_ZERO, 5, ()),
}  # fmt: skip
HEIGHT, WIDTH = 6, 7


def draw(kind: str, dtype: str) -> np.ndarray:
    _, bands, _ = KINDS[kind]
    generator = np.random.default_rng(bands)
    shape = (HEIGHT, WIDTH, bands)
    if dtype == "?":
        return generator.random(shape) < 0.5
    if dtype.startswith("f"):
        return generator.random(shape).astype(dtype)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    samples = generator.integers(low, high, shape, endpoint=True, dtype=dtype)
    samples[0, 0], samples[0, 1] = low, high
    return samples


def levels_of(samples: np.ndarray) -> np.ndarray:
    """0 to 255 as floats: by the type's own white, or from the smallest to the largest value that is shown."""
    if samples.dtype == np.bool_:
        return samples * 255.0
    values = samples.astype(np.float64)
    own = {"u1": 255, "u2": 65535, "f4": 1, "f8": 1}.get(samples.dtype.str[1:])
    low, high = (0, own) if own else (values.min(), values.max())
    return (values - low) / (high - low) * 255


def shown(kind: str, samples: np.ndarray, colours: np.ndarray, channels: int) -> np.ndarray | None:
    """What a kind shows in grey or RGB, (H, W, channels); None where nothing says it."""
    photometric, _, extra = KINDS[kind]
    if kind in ("2 bands", "2 bands, named extra", "5 bands", "5 untagged bands"):
        return None
    if photometric == PALETTE and samples.dtype not in (np.bool_, np.uint8):
        return None
    if photometric == PALETTE:
        picture = colours[samples[..., 0].astype(int)] / 257.0
    else:
        num_colours = 3 if photometric == RGB else 1
        picture = levels_of(samples[..., :num_colours])
        picture = 255 - picture if photometric == WHITE_IS_ZERO else picture
        if extra and extra[0]:
            stored = samples[..., num_colours:].astype(np.float64)
            alpha = np.clip(stored / (1 if samples.dtype.kind in "fb" else np.iinfo(samples.dtype).max), 0, 1)
            if extra[0] == 1:
                picture = np.clip(np.divide(picture, alpha, out=np.zeros_like(picture), where=alpha > 0), 0, 255)
            picture = picture * alpha + 255 * (1 - alpha)
    if channels == 1 and picture.shape[2] == 3:
        return picture @ np.array([[0.299], [0.587], [0.114]])
    return picture.repeat(3, axis=2) if channels > picture.shape[2] else picture


WRITTEN = list(itertools.product("<>", (NONE, DEFLATE, LZW, PACKBITS)))


def sweep():
    """Every case: kind, type, planes, byte order, compression."""
    for kind, dtype in itertools.product(KINDS, TYPES):
        for planar in (1, 2) if KINDS[kind][1] > 1 else (1,):
            yield [(kind, dtype, planar, *written) for written in WRITTEN]


def check(folder: Path, kind: str, dtype: str, planar: int, order: str, compression: int) -> str:
    """ "shown" or "refused", after what is shown has been compared with what was written."""
    photometric, _, extra = KINDS[kind]
    samples = draw(kind, dtype)
    colours = np.random.default_rng(9).integers(0, 65536, (2 if dtype == "?" else 256, 3))
    file = folder / "a.tif"
    file.write_bytes(
        make_tiff(
            samples, photometric=photometric, planar=planar, order=order, compression=compression, extra=extra,
            colours=colours if photometric == PALETTE else None,
        )
    )  # fmt: skip
    where = (kind, dtype, planar, order, compression)
    if dtype != "?" and compression != LZW:  # which tifffile reads without help: the writer is right
        with tifffile.TiffFile(file) as written:
            theirs = written.pages[0].asarray(squeeze=False)
        expected = samples.transpose(2, 0, 1)[:, None, :, :, None] if planar == 2 else samples[None, None]
        np.testing.assert_array_equal(theirs, expected)
    results = set()
    for channels in (1, 3):
        expected = shown(kind, samples, colours, channels)
        try:
            pixels = open_image(str(file), channels).decode()
        except DecodeError as error:
            if "bands" not in error.reason and not error.reason.startswith("is a TIFF of"):
                raise
            results.add("refused")
            continue
        assert expected is not None, (where, "shown, though no tag says how")
        tolerance = 2.6 if len(extra) and extra[0] else 1.6  # rounding, of alpha and of grey from colour too
        assert abs(pixels - expected).max() <= tolerance, where
        assert read_header(str(file)).size == pixels.shape[:2]
        results.add("shown")
    assert len(results) == 1, where
    return results.pop()


def test_every_kind_is_the_true_picture_or_refused_by_name(tmp_path):
    """Each kind, type and planes once, byte orders and compressions in turn; benchmarks/tiff_sweep.py tries all 1,800."""
    cases = [written[3 * number % len(written)] for number, written in enumerate(sweep())]
    refused = {case[:2] for case in cases if check(tmp_path, *case) == "refused"}
    unnamed = {"2 bands", "2 bands, named extra", "5 bands", "5 untagged bands"}
    assert refused == {(kind, dtype) for kind, dtype in itertools.product(KINDS, TYPES) if (
        kind in unnamed or (dtype == "?" and KINDS[kind][1] > 1) or (kind == "palette" and dtype not in ("?", "u1"))
    )}  # fmt: skip


def write(folder: Path, samples: np.ndarray, photometric: int, **how: object) -> str:
    (folder / "a.tif").write_bytes(make_tiff(samples, photometric=photometric, **how))
    return str(folder / "a.tif")


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("bands", [2, 4, 5, 12])
@pytest.mark.parametrize("planar", [1, 2])
def test_bands_are_given_as_they_are_where_as_many_channels_are_asked_for(tmp_path, dtype, bands, planar):
    generator = np.random.default_rng(0)
    samples = (generator.random((5, 4, bands)) * (1 if dtype == "f4" else np.iinfo(dtype).max)).astype(dtype)
    photometric = RGB if bands == 4 else BLACK_IS_ZERO
    file = write(tmp_path, samples, photometric, planar=planar, compression=DEFLATE)
    assert abs(open_image(file, bands).decode() - levels_of(samples)).max() <= 0.51
    assert read_header(file).size == (5, 4) and read_header(file).channels == (3 if bands == 4 else bands)


@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO])
@pytest.mark.parametrize("dtype", ["u2", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_white_level_scales_and_clips_every_type(tmp_path, photometric, dtype, order):
    samples = np.array([[[0], [1000], [4095], [9000]]], dtype)
    file = write(tmp_path, samples, photometric, order=order)
    levels = open_image(file, 1, Reading(white=4095.0)).decode()[0, :, 0]
    expected = np.clip(samples[0, :, 0] / 4095 * 255, 0, 255)
    assert abs(levels - (255 - expected if photometric == WHITE_IS_ZERO else expected)).max() <= 0.5
    below = open_image(file, 1, Reading(white=2000.0, black=500.0)).decode()[0, :, 0]
    expected = np.clip((samples[0, :, 0].astype(float) - 500) / 1500 * 255, 0, 255)
    assert abs(below - (255 - expected if photometric == WHITE_IS_ZERO else expected)).max() <= 0.5


@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO])
def test_missing_pixels_are_the_darkest_and_change_nothing_else(tmp_path, photometric):
    samples = np.linspace(3, 700, 40, dtype=np.float32).reshape(5, 8, 1)
    whole = open_image(write(tmp_path, samples, photometric), 1).decode()
    least = float(np.finfo(np.float32).min)
    for value, nodata, reading in (
        (np.nan, "", Reading()), (np.inf, "", Reading()), (-9999, "-9999", Reading()), (least, repr(least), Reading()),
        (-1, "", Reading(nodata=-1.0)),
    ):  # fmt: skip
        holed = samples.copy()
        holed[1:3, 2:5] = value
        levels = open_image(write(tmp_path, holed, photometric, nodata=nodata), 1, reading).decode()
        is_hole = np.zeros((5, 8, 1), bool)
        is_hole[1:3, 2:5] = True
        assert (levels[is_hole] == 0).all()
        np.testing.assert_array_equal(levels[~is_hole], whole[~is_hole])
    rgb = np.full((2, 2, 3), 9, np.uint8)
    rgb[0, 0], rgb[1, 1] = 255, (255, 255, 9)
    assert open_image(write(tmp_path, rgb, RGB, nodata="255"), 3).decode().tolist() == [
        [[0] * 3, [9] * 3],
        [[9] * 3, [255, 255, 9]],
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("dtype", "planar"), [("u1", 1), ("u2", 2)])
def test_orientation(tmp_path, orientation, dtype, planar):
    samples = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (3, 5, 3), dtype=dtype)
    turned = open_image(write(tmp_path, samples, RGB, planar=planar, orientation=orientation), 3)
    upright = open_image(write(tmp_path, samples, RGB, planar=planar), 3).decode()
    turn = {
        1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).transpose(1, 0, 2), 8: np.rot90,
    }[orientation]  # fmt: skip
    np.testing.assert_array_equal(turned.decode(), turn(upright))
    assert turned.size == turn(upright).shape[:2]


@pytest.mark.parametrize("compression", [NONE, DEFLATE, LZW, PACKBITS])
@pytest.mark.parametrize("predictor", [1, 2])
def test_strips_and_predictors(tmp_path, compression, predictor):
    if predictor == 2 and compression in (NONE, PACKBITS):
        pytest.skip("a predictor goes with LZW and deflate")
    samples = np.random.default_rng(0).integers(0, 65535, (11, 30, 3), dtype=np.uint16)
    file = write(tmp_path, samples, RGB, compression=compression, predictor=predictor, rows_per_strip=4)
    assert abs(open_image(file, 3).decode() - samples / 257).max() <= 0.5


@pytest.mark.parametrize("compression", [NONE, DEFLATE, LZW])
@pytest.mark.parametrize(("dtype", "bands"), [("u2", 1), ("u2", 3), ("f8", 1)])
def test_what_is_cut_short_is_refused(tmp_path, compression, dtype, bands):
    samples = (np.random.default_rng(0).random((40, 40, bands)) * 60000).astype(dtype)
    data = make_tiff(samples, photometric=RGB if bands == 3 else BLACK_IS_ZERO, compression=compression)
    # the tags stand at the end: move the pixels' place beyond it instead
    place = data.index(np.array([273, 4], "<u2").tobytes()) + 8
    broken = data[:place] + (len(data) - 100).to_bytes(4, "little") + data[place + 4 :]
    (tmp_path / "a.tif").write_bytes(broken)
    with pytest.raises(DecodeError):
        open_image(str(tmp_path / "a.tif"), 3).decode()


def test_pages(tmp_path):
    pages = np.random.default_rng(0).integers(0, 255, (4, 6, 5, 3), dtype=np.uint8)
    file = tmp_path / "a.tif"
    with tifffile.TiffWriter(file) as writer:
        for page in pages:
            writer.write(page, photometric="rgb")
        writer.write(pages[0, :2, :2], photometric="rgb")  # a thumbnail
    assert list_pages(str(file)) == [0, 1, 2, 3]
    for number in range(4):
        np.testing.assert_array_equal(open_image(str(file), 3, page_idx=number).decode(), pages[number])


def test_compressions_that_no_codec_reads_are_named(tmp_path):
    samples = np.zeros((4, 4, 3), np.uint16)
    data = bytearray(make_tiff(samples, photometric=RGB, planar=2))
    place = data.index(np.array([259, 3], "<u2").tobytes()) + 8
    data[place : place + 2] = (34887).to_bytes(2, "little")  # LERC
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(DecodeError, match=r"3 bands in planes of 16 bits, unsigned, compression LERC .*openjepa\[tiff\]"):
        open_image(str(tmp_path / "a.tif"), 3)


def test_deep_pages_of_pillow_itself(tmp_path):
    """A single deep band comes from Pillow, whose pixels must be tifffile's."""
    for dtype in ("u2", "f4", "i2"):
        samples = np.random.default_rng(0).integers(0, 30000, (9, 8)).astype(dtype)
        tifffile.imwrite(tmp_path / "a.tif", samples)
        read = tifffile.imread(tmp_path / "a.tif")
        levels = open_image(str(tmp_path / "a.tif"), 1, Reading(white=30000.0)).decode()[:, :, 0]
        assert abs(levels - read / 30000 * 255).max() <= 0.5
