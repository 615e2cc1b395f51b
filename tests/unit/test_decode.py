"""Every kind of image file ends as the right uint8 pixels, or as a DecodeError and nothing else."""

from __future__ import annotations

import copy
import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from openjepa.data.decode import EXTENSIONS, MAX_PIXELS, DecodeError, open_image, read_header
from openjepa.data.reading import Reading
from tests.messy_folder import WRITERS, draw_picture


def decode_image(path, channels):
    return open_image(path, channels).decode()


def decode(tmp_path: Path, image: Image.Image, name: str, channels: int = 3, **options: object) -> np.ndarray:
    image.save(tmp_path / name, **options)
    pixels = decode_image(str(tmp_path / name), channels)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == channels
    return pixels


def row(*values: float, dtype: type) -> Image.Image:
    return Image.fromarray(np.array([values], dtype))


def test_alpha_is_composited_over_white(tmp_path):
    image = Image.new("RGBA", (3, 1))
    image.putdata([(0, 0, 0, 0), (0, 0, 0, 128), (200, 100, 0, 255)])
    assert decode(tmp_path, image, "a.png").tolist() == [[[255] * 3, [127] * 3, [200, 100, 0]]]
    assert decode(tmp_path, image.convert("LA"), "b.png", 1)[0, :2].tolist() == [[255], [127]]


def test_alpha_is_kept_for_two_and_four_channels(tmp_path):
    image = Image.new("RGBA", (2, 1))
    image.putdata([(9, 9, 9, 40), (200, 100, 0, 255)])
    assert decode(tmp_path, image, "a.png", 4).tolist() == [[[9, 9, 9, 40], [200, 100, 0, 255]]]
    assert decode(tmp_path, image, "a.png", 2)[0, 0].tolist() == [9, 40]
    assert decode(tmp_path, Image.new("L", (1, 1), 5), "b.png", 2).tolist() == [[[5, 255]]]
    assert decode(tmp_path, Image.new("RGB", (1, 1), (1, 2, 3)), "c.png", 4).tolist() == [[[1, 2, 3, 255]]]


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_palette_with_a_transparent_colour(tmp_path, name):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    assert decode(tmp_path, image, name).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    assert decode(tmp_path, image, name, transparency=1).tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]


def test_a_transparent_colour_without_alpha_or_palette(tmp_path):
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    image.putpixel((1, 0), (1, 2, 3))
    assert decode(tmp_path, image, "a.png", transparency=(1, 2, 3)).tolist() == [[[10, 20, 30], [255] * 3]]


def test_one_bit(tmp_path):
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    for name in ("a.png", "a.tif", "a.bmp"):
        assert decode(tmp_path, image, name, 1).tolist() == [[[0], [255]]]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, name):
    levels = np.arange(256)
    image = Image.fromarray((levels[None] * 257).astype(np.uint16))
    assert decode(tmp_path, image, name, 1)[0, :, 0].tolist() == levels.tolist()
    dark = row(0, 200, 255, dtype=np.uint16)  # a dark picture stays dark
    assert decode(tmp_path, dark, name, 3)[0, :, 0].tolist() == [0, 1, 1]


def test_big_endian_sixteen_bits(tmp_path):
    header = struct.pack(">2sHI", b"MM", 42, 8)
    tags = [
        (256, 3, 2),
        (257, 3, 1),
        (258, 3, 16),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8 + 2 + 8 * 12 + 4),
        (278, 3, 1),
        (279, 4, 4),
    ]
    entries = b"".join(
        struct.pack(">HHI", tag, kind, 1) + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
        for tag, kind, value in tags
    )
    file = tmp_path / "a.tif"
    file.write_bytes(header + struct.pack(">H", len(tags)) + entries + bytes(4) + struct.pack(">HH", 257 * 3, 257 * 200))
    with Image.open(file) as image:
        assert image.mode == "I;16B"
    assert decode_image(str(file), 1)[0, :, 0].tolist() == [3, 200]


def test_deeper_grey(tmp_path):
    assert decode(tmp_path, row(0, 257, 65535, dtype=np.int32), "a.tif", 1)[0, :, 0].tolist() == [0, 1, 255]
    assert decode(tmp_path, row(-100, 20, 155, dtype=np.int32), "a.tif", 1)[0, :, 0].tolist() == [0, 120, 255]
    assert decode(tmp_path, row(0, 0.2, 1, dtype=np.float32), "a.tif", 1)[0, :, 0].tolist() == [0, 51, 255]
    assert decode(tmp_path, row(0, 20, 200, dtype=np.float32), "a.tif", 1)[0, :, 0].tolist() == [0, 20, 200]
    assert decode(tmp_path, row(0, 400, 1020, dtype=np.float32), "a.tif", 1)[0, :, 0].tolist() == [0, 100, 255]
    assert decode(tmp_path, row(7e5, 7e5, dtype=np.float32), "a.tif", 1)[0, :, 0].tolist() == [0, 0]
    assert decode(tmp_path, row(0, np.nan, 1, dtype=np.float32), "a.tif", 1)[0, :, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("CMYK", "a.jpg"),
        ("CMYK", "a.tif"),
        ("YCbCr", "a.jpg"),
        ("LAB", "a.tif"),
        ("RGB", "a.webp"),
        ("RGB", "a.bmp"),
        ("L", "a.jpg"),
    ],
)
def test_colour_spaces_show_the_same_colours(tmp_path, mode, name):
    colours = [(0, 0, 0), (255, 255, 255), (200, 40, 40), (40, 160, 60), (60, 60, 200), (128, 128, 128)]
    for colour in [(grey, grey, grey) for grey in (0, 90, 255)] if mode == "L" else colours:
        image = Image.new("RGB", (16, 16), colour)
        if mode == "LAB":
            image = ImageCms.profileToProfile(
                image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
            )
        else:
            image = image.convert(mode)
        middle = decode(tmp_path, image, name)[8, 8].astype(int)
        tolerance = 8 if mode == "LAB" else 4  # 8-bit LAB is coarse
        assert abs(middle - colour).max() <= tolerance, (mode, colour, middle)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, name, orientation):
    picture = draw_picture("squares", (24, 40), np.random.default_rng(orientation))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name.endswith("webp") else {}
    pixels = decode(tmp_path, picture, name, exif=exif, **options)
    with Image.open(tmp_path / name) as stored:
        stored.load()
        expected = np.asarray(ImageOps.exif_transpose(stored))
    assert pixels.shape[:2] == ((24, 40) if orientation >= 5 else (40, 24))
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("L", 3), ("RGB", 1), ("CMYK", 3), ("RGB", 4)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}, {"keep_rgb": True}])
def test_jpegs_are_decoded_as_pillow_does(tmp_path, mode, channels, options):
    for size in ((90, 70), (33, 47), (9, 1)):
        picture = draw_picture("stripes", size, np.random.default_rng(0)).convert(mode)
        pixels = decode(tmp_path, picture, "a.jpg", channels, **({} if "keep_rgb" in options and mode != "RGB" else options))
        with Image.open(tmp_path / "a.jpg") as stored:
            expected = np.asarray(stored.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
        np.testing.assert_array_equal(pixels.squeeze(), expected.squeeze())


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("L", 3), ("CMYK", 3)])
def test_reduced_jpegs_are_box_averages(tmp_path, mode, channels, orientation):
    """The inverse DCT of the low coefficients is nearly the mean of each square, in the file's upright position."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = draw_picture("discs", (320, 240), np.random.default_rng(3)).convert(mode)
    picture.save(tmp_path / "a.jpg", quality=95, exif=exif)
    image = open_image(str(tmp_path / "a.jpg"), channels)
    exact = image.decode()
    assert image.size == exact.shape[:2] == ((320, 240) if orientation == 6 else (240, 320))
    for reduction in (2, 4, 8):
        reduced = image.decode(reduction)
        assert reduced.shape == (image.size[0] // reduction, image.size[1] // reduction, channels)
        boxes = exact.reshape(reduced.shape[0], reduction, reduced.shape[1], reduction, channels).mean((1, 3))
        assert abs(reduced - boxes).mean() < 1.5


@pytest.mark.parametrize("number", range(len(WRITERS)))
def test_the_size_is_known_before_the_pixels(tmp_path, number):
    extension, encode = WRITERS[number]
    file = tmp_path / f"a{extension}"
    file.write_bytes(encode(draw_picture("squares", (37, 53), np.random.default_rng(number))))
    image = open_image(str(file), 3)
    assert image.size == image.decode().shape[:2] == decode_image(str(file), 3).shape[:2] == (53, 37)


def test_damaged_jpegs_are_read_and_refused_as_by_pillow(tmp_path):
    """The faster decoder must neither accept what Pillow refuses nor show other pixels."""
    data = WRITERS[0][1](draw_picture("discs", (60, 50), np.random.default_rng(0)))
    generator = np.random.default_rng(1)
    read = 0
    for _ in range(300):
        damaged = bytearray(data)
        for place in generator.integers(20, len(data), 3):
            damaged[place] = generator.integers(256)
        (tmp_path / "a.jpg").write_bytes(damaged[: int(len(data) * generator.uniform(0.8, 1.2))])
        try:
            with Image.open(tmp_path / "a.jpg") as stored:
                expected = np.asarray(stored.convert("RGB"))
        except Exception:
            with pytest.raises(DecodeError):
                decode_image(str(tmp_path / "a.jpg"), 3)
        else:
            if "exif" not in stored.info and expected.size < 1e6:
                read += 1
                np.testing.assert_array_equal(decode_image(str(tmp_path / "a.jpg"), 3), expected)
    assert 50 < read < 250


def test_a_broken_exif_block_does_not_matter(tmp_path):
    pixels = decode(tmp_path, Image.new("RGB", (4, 4), (50, 50, 50)), "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    assert pixels.shape == (4, 4, 3) and abs(pixels.astype(int) - 50).max() <= 2


def test_only_the_first_of_several_pictures(tmp_path):
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    for name, options in (
        ("a.gif", {}),
        ("a.tif", {}),
        ("a.webp", {"lossless": True}),
        ("a.png", {}),
        ("a.jpg", {"format": "MPO"}),
    ):
        pixels = decode(tmp_path, red, name, save_all=True, append_images=[blue], **options)
        assert abs(pixels[4, 4].astype(int) - [255, 0, 0]).max() <= 2, name


def test_tiny(tmp_path):
    for name in ("a.jpg", "a.png", "a.webp", "a.bmp", "a.tif", "a.gif"):
        assert decode(tmp_path, Image.new("RGB", (1, 1), (9, 9, 9)), name).shape == (1, 1, 3)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def make_png(width: int, height: int, data: bytes = bytes(100), depth: int = 8, colour: int = 0, extra: bytes = b"") -> bytes:
    """A PNG file as RFC 2083 lays it out; data: rows of samples, each with a filter byte in front."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(data)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def pack_samples(samples: np.ndarray, depth: int) -> bytes:
    """Samples (H, W, C) as rows of a PNG."""
    rows = samples.reshape(len(samples), -1)
    if depth >= 8:
        packed = [row.astype(">u2" if depth == 16 else np.uint8).tobytes() for row in rows]
    else:
        packed = [np.packbits((row[:, None] >> np.arange(depth)[::-1]) & 1).tobytes() for row in rows]
    return b"".join(b"\0" + row for row in packed)


GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # PNG's colour types
NUM_SAMPLES = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
PNG_KINDS = [(GREY, depth) for depth in (1, 2, 4, 8, 16)] + [(PALETTE, depth) for depth in (1, 2, 4, 8)]
PNG_KINDS += [(kind, depth) for kind in (RGB, GREY_ALPHA, RGB_ALPHA) for depth in (8, 16)]
PNG_CASES = [(*kind, False) for kind in PNG_KINDS]
PNG_CASES += [(*kind, True) for kind in PNG_KINDS if kind[0] not in (GREY_ALPHA, RGB_ALPHA)]


def compose(colour: np.ndarray, alpha: np.ndarray, channels: int) -> np.ndarray:
    """Colour (H, W, 1 or 3) and alpha (H, W, 1), 0 to 255: over white for 1 and 3 channels, with alpha for 2 and 4."""
    if channels in (1, 3):
        colour = (colour * alpha + 255 * (255 - alpha)) / 255
    if channels <= 2 and colour.shape[2] == 3:
        colour = colour @ np.array([[0.299], [0.587], [0.114]])
    if channels >= 3 and colour.shape[2] == 1:
        colour = colour.repeat(3, axis=2)
    return colour if channels in (1, 3) else np.concatenate([colour, alpha], axis=2)


@pytest.mark.parametrize(("kind", "depth", "has_transparency"), PNG_CASES)
def test_every_kind_of_png_shows_the_values_that_were_written(tmp_path, kind, depth, has_transparency):
    generator = np.random.default_rng(kind + depth)
    most = 2**depth - 1
    samples = generator.integers(0, most + 1, (6, 9, NUM_SAMPLES[kind]))
    extra = b""
    if kind == PALETTE:
        palette, palette_alpha = generator.integers(0, 256, (most + 1, 3)), np.full((most + 1, 1), 255)
        extra += png_chunk(b"PLTE", palette.astype(np.uint8).tobytes())
        if has_transparency:
            palette_alpha[: most // 2 + 1] = generator.integers(0, 256, (most // 2 + 1, 1))
            extra += png_chunk(b"tRNS", palette_alpha[: most // 2 + 1].astype(np.uint8).tobytes())
        colour, alpha = palette[samples[..., 0]], palette_alpha[samples[..., 0]]
    else:
        scaled = samples * (255 / most)
        has_alpha = kind in (GREY_ALPHA, RGB_ALPHA)
        colour, alpha = (scaled[..., :-1], scaled[..., -1:]) if has_alpha else (scaled, np.full((6, 9, 1), 255.0))
        if has_transparency:
            samples[1:3, 2:5] = key = np.array([most // 3, most // 2, most // 5])[: NUM_SAMPLES[kind]]
            samples[4, 4] = key ^ 1  # nearly the same: in 16 bits the low byte alone tells it from the key
            colour, alpha = samples * (255 / most), np.where((samples == key).all(axis=2, keepdims=True), 0.0, 255.0)
            extra += png_chunk(b"tRNS", key.astype(">u2").tobytes())
    file = tmp_path / "a.png"
    file.write_bytes(make_png(9, 6, pack_samples(samples, depth), depth, kind, extra))
    tolerance = 2.0 if depth == 16 else 1.0  # of 16-bit samples Pillow keeps the high byte; grey and composites are rounded
    for channels in (1, 2, 3, 4):
        pixels = decode_image(str(file), channels)
        assert abs(pixels - compose(colour, alpha, channels)).max() < tolerance, channels


@pytest.mark.parametrize("pillow_limit", [Image.MAX_IMAGE_PIXELS, None])
def test_decompression_bombs_are_refused_unread(tmp_path, monkeypatch, pillow_limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)  # someone's program may have switched Pillow's own check off
    file = tmp_path / "bomb.png"
    file.write_bytes(make_png(MAX_PIXELS // 2 + 1, 2))
    with pytest.raises(DecodeError, match="pixels"):
        decode_image(str(file), 3)
    file.write_bytes(make_png(10, 10))
    with pytest.raises(DecodeError):  # its pixels end early
        decode_image(str(file), 3)


@pytest.mark.parametrize("number", range(len(WRITERS)))
def test_truncated_files_are_refused(tmp_path, number):
    extension, encode = WRITERS[number]
    data = encode(draw_picture("stripes", (90, 70), np.random.default_rng(number)))
    file = tmp_path / f"a{extension}"
    for keep in (0, 3, len(data) // 4, len(data) // 2):
        file.write_bytes(data[:keep])
        with pytest.raises(DecodeError) as caught:
            decode_image(str(file), 3)
        assert "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_other_things_under_an_image_name(tmp_path):
    file = tmp_path / "a.jpg"
    with pytest.raises(DecodeError, match="No such file"):
        decode_image(str(tmp_path / "gone.jpg"), 3)
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(DecodeError):
        decode_image(str(tmp_path / "folder.jpg"), 3)
    array = io.BytesIO()
    np.save(array, np.zeros((2, 2), np.uint8))
    dicom = bytes(128) + b"DICM" + bytes(40)
    for data, word in (
        (b"", "empty"), (bytes(900), "zeros"), (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><title>404</title>", "HTML"), (b"<html><body>", "HTML"), (b"<?xml version='1.0'?><Error/>", "XML"),
        (b"<svg/>", "SVG"), (b'{"message": "not found"}', "JSON"), (b"hello world", "text file"), (dicom, "DICOM"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"), (b"P6 1 1 255 abc", "Netpbm"), (b"%PDF-1.7", "PDF"),
        (b"RIFF\0\0\0\0WAVE", "RIFF"), (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"), (b"\0\0\0\x1cftypisom", "video"),
        (b"\0\0\0\x18ftypcrx ", "CR3"), (b"\xff\x0a\0\0", "JPEG XL"), (b"8BPS\0\1", "Photoshop"), (array.getvalue(), r"\.npy"),
        (pickle.dumps([1]), "pickle"), (b"SIMPLE  =   T", "FITS"), (b"\x89HDF\r\n\x1a\n", "HDF5"), (b"PK\3\4", "ZIP"),
        (b"\1\2\3\xfe" * 9, "01 02 03 fe"), (b"\0\5\x16\7\0\2", "Mac's"), (b"\xff\xd8\xff\xe0", "damaged JPEG"),
    ):  # fmt: skip
        file.write_bytes(data)
        for read in (lambda: decode_image(str(file), 3), lambda: read_header(str(file))):
            with pytest.raises(DecodeError, match=word) as caught:
                read()
            assert "\n" not in caught.value.reason and len(caught.value.reason) < 200


@pytest.mark.parametrize("name", [name for name in ("a.avif", "a.jp2") if name[1:] in EXTENSIONS])
def test_modern_formats_are_read_where_pillow_can(tmp_path, name):
    picture = draw_picture("discs", (40, 24), np.random.default_rng(0))
    options = {"quality": 95} if name == "a.avif" else {"irreversible": False}
    pixels = decode(tmp_path, picture, name, **options)
    assert abs(pixels.astype(int) - np.asarray(picture)).mean() < 8
    assert read_header(str(tmp_path / name)).size == (24, 40)


def flawed_pngs() -> list[bytes]:
    """Sound pixels among damaged chunks that they do not need."""
    wrong = b"\0\0\0\x09" + b"tEXt" + b"Comment\0a" + b"\1\2\3\4"
    profile = png_chunk(b"iCCP", b"sRGB\0\0" + b"no zlib stream")
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000)))
    exif = b"\0\0\0\x04eXIfMM\0*" + bytes(4)
    return [wrong, profile, bomb, exif, wrong + profile]


@pytest.mark.parametrize("number", range(len(flawed_pngs())))
@pytest.mark.parametrize("is_behind", [False, True])
def test_flaws_around_the_pixels_of_a_png_do_not_matter(tmp_path, number, is_behind):
    samples = np.random.default_rng(0).integers(0, 256, (6, 9, 3))
    whole = make_png(9, 6, pack_samples(samples, 8), 8, RGB)
    place = whole.index(b"IEND") - 4 if is_behind else whole.index(b"IDAT") - 4
    file = tmp_path / "a.png"
    file.write_bytes(whole[:place] + flawed_pngs()[number] + whole[place:])
    np.testing.assert_array_equal(decode_image(str(file), 3), samples)
    assert read_header(str(file)).size == (6, 9)
    pixels_flawed = bytearray(whole)
    pixels_flawed[whole.index(b"IDAT") + 12] ^= 255
    file.write_bytes(pixels_flawed)
    with pytest.raises(DecodeError):
        decode_image(str(file), 3)


@pytest.mark.parametrize("kind", [GREY, RGB, GREY_ALPHA, RGB_ALPHA])
@pytest.mark.parametrize("has_transparency", [False, True])
def test_a_white_level_shows_all_bits_of_a_png(tmp_path, kind, has_transparency):
    """Values of 12 bits in samples of 16: the alpha keeps the full range of its own."""
    if has_transparency and kind in (GREY_ALPHA, RGB_ALPHA):
        return
    samples = np.random.default_rng(kind).integers(0, 4096, (6, 9, NUM_SAMPLES[kind]))
    has_alpha = kind in (GREY_ALPHA, RGB_ALPHA)
    colour = (samples[..., :-1] if has_alpha else samples) / 4095 * 255
    if has_alpha:
        samples[..., -1] *= 16
    alpha = samples[..., -1:] / 65535 * 255 if has_alpha else np.full((6, 9, 1), 255.0)
    extra = b""
    if has_transparency:
        key = samples[2, 3]
        extra, alpha = (
            png_chunk(b"tRNS", key.astype(">u2").tobytes()),
            np.where((samples == key).all(2, keepdims=True), 0.0, 255.0),
        )
    file = tmp_path / "a.png"
    file.write_bytes(make_png(9, 6, pack_samples(samples, 16), 16, kind, extra))
    for channels in (1, 2, 3, 4):
        pixels = open_image(str(file), channels, Reading(white=4095.0)).decode()
        assert abs(pixels - compose(colour, alpha, channels)).max() < 1.7, channels


def test_arrays_of_any_number_of_channels(tmp_path):
    file = str(tmp_path / "a.npy")
    for shape, channels in (((4, 3, 5), 5), ((4, 3, 1), 1), ((4, 3), 1), ((4, 3, 12), 12)):
        array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        np.save(file, array)
        np.testing.assert_array_equal(decode_image(file, channels), array.reshape(4, 3, channels))
        with pytest.raises(DecodeError, match=r"data.channels"):
            decode_image(file, channels + 6)
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(DecodeError, match="5 channels can only be read from .npy"):
        decode_image(str(tmp_path / "a.png"), 5)


@pytest.mark.parametrize("dtype", ["u2", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 3), (6, 5, 12)])
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_arrays_of_any_type_and_layout(tmp_path, dtype, shape, layout):
    array = np.random.default_rng(0).integers(0, 4000, shape).astype(dtype)
    file = str(tmp_path / "a.npy")
    np.save(file, array.transpose(2, 0, 1) if layout == "channels_first" and array.ndim == 3 else array)
    channels = shape[2] if len(shape) == 3 else 1
    reading = Reading(white=4095.0, layout=layout)
    assert read_header(file, reading) == ((6, 5), channels, str(array.dtype))
    levels = open_image(file, channels, reading).decode()
    assert abs(levels - array.reshape(6, 5, channels) / 4095 * 255).max() <= 0.5
    if channels == 12:
        np.save(file, np.zeros((12, 40, 40), dtype))
        with pytest.raises(DecodeError, match=r"looks channels-first: data.layout=channels_first data.channels=12"):
            open_image(file, 12)


def test_arrays_are_never_unpickled_and_their_headers_not_believed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    file = tmp_path / "a.npy"
    for array in (np.array([Trap()], object), np.zeros((2, 2, 3), complex), np.zeros(3, np.uint8)):
        np.save(file, array, allow_pickle=True)
        with pytest.raises(DecodeError):
            decode_image(str(file), 3)
    file.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DecodeError):
        decode_image(str(file), 3)
    assert not (tmp_path / "sprung").exists()
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6, 3)})
    file.write_bytes(buffer.getvalue())
    with pytest.raises(DecodeError):
        decode_image(str(file), 3)


@settings(max_examples=150, deadline=None)
@given(
    number=st.integers(0, len(WRITERS) - 1),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12),
    channels=st.sampled_from([1, 3, 4]),
)
def test_damaged_bytes_give_pixels_or_a_decode_error(tmp_path_factory, number, changes, channels):
    extension, encode = WRITERS[number]
    data = bytearray(encode(draw_picture("discs", (20, 16), np.random.default_rng(0))))
    for place, value in changes:
        data[int(place**2 * len(data))] = value  # headers more often than pixels
    file = tmp_path_factory.getbasetemp() / f"damaged{extension}"
    file.write_bytes(data)
    try:
        pixels = decode_image(str(file), channels)
    except DecodeError as error:
        pixels = None
        refusal = copy.copy(error)  # as pickle makes it anew on its way from a worker process
    if pixels is None:
        assert refusal.path == str(file) and refusal.reason and str(refusal).startswith(f"{file}: ")
    else:
        assert pixels.dtype == np.uint8 and pixels.shape[2] == channels
