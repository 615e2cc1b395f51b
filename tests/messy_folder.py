"""A folder of images as people have them, made from nothing: formats, modes and sizes mixed, in nested class folders.

Three classes that an eye tells apart (discs, stripes, squares) lie among notes, sounds and hidden files, with two
truncated images between them. What each file shows is a function of the seed.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("discs", "squares", "stripes")
SUBFOLDERS = ("", "2021/summer holiday", "phone", "Ünïcode/deep/er")
SIZES_PX = ((96, 64), (64, 96), (80, 80), (33, 47), (160, 120), (28, 28))  # width, height


@dataclass(frozen=True)
class MessyFolder:
    path: Path
    num_good: int
    truncated: list[Path]


def build_messy_folder(path: Path, num_good: int = 60, seed: int = 0) -> MessyFolder:
    """Fill a folder with num_good readable and 2 truncated images; below 38 good ones the two are more than 5 %."""
    generator = np.random.default_rng(seed)
    for number in range(num_good):
        kind = CLASSES[number % len(CLASSES)]
        size = {7: (1, 1), 8: (2000, 1500)}.get(number, SIZES_PX[generator.integers(len(SIZES_PX))])
        extension, encode = WRITERS[(number // len(CLASSES)) % len(WRITERS)] if number != 8 else (".jpg", _jpeg)
        folder = path / kind / SUBFOLDERS[generator.integers(len(SUBFOLDERS))]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"image {number:03d}{extension}").write_bytes(encode(draw_picture(kind, size, generator)))
    truncated = [path / "discs" / "half.jpg", path / "stripes" / "half.png"]
    for file, encode in zip(truncated, (_jpeg, _png), strict=True):
        data = encode(draw_picture("discs", (200, 150), generator))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data[: len(data) // 2])
    _add_other_files(path)
    return MessyFolder(path, num_good, truncated)


def draw_picture(kind: str, size: tuple[int, int], generator: np.random.Generator) -> Image.Image:
    """A shape of the class on a gradient with noise, RGB; size is (width, height)."""
    width, height = size
    down, across = np.mgrid[0:height, 0:width] / max(width, height)
    x, y, radius = generator.uniform(0.3, 0.7) * width, generator.uniform(0.3, 0.7) * height, generator.uniform(0.2, 0.35)
    right, below = across - x / max(width, height), down - y / max(width, height)
    shape = {
        "discs": right**2 + below**2 < radius**2,
        "squares": np.maximum(abs(right), abs(below)) < radius,
        "stripes": np.sin(40 * (right * np.cos(radius * 9) + below * np.sin(radius * 9))) > 0,
    }[kind]
    back, front = generator.uniform(0, 255, (2, 3))
    pixels = np.where(shape[..., None], front, back + 60 * (down + across)[..., None])
    pixels = pixels + generator.normal(0, 6, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _add_other_files(path: Path) -> None:
    (path / "notes.txt").write_text("bought film\n")
    (path / "discs" / "README.md").write_text("# discs\n")
    (path / "squares" / "Thumbs.db").write_bytes(b"\0" * 512)
    (path / "stripes" / "list.csv").write_text("name,size\n")
    with wave.open(str(path / "stripes" / "memo.wav"), "wb") as sound:
        sound.setparams((1, 1, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(800))
    (path / ".DS_Store").write_bytes(b"\0" * 64)
    (path / "discs" / "._image 000.jpg").write_bytes(b"resource fork")
    (path / ".thumbnails").mkdir(exist_ok=True)
    (path / ".thumbnails" / "small.png").write_bytes(_png(Image.new("RGB", (8, 8))))


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _jpeg(image: Image.Image) -> bytes:
    return _encode(image, "JPEG", quality=85)


def _png(image: Image.Image) -> bytes:
    return _encode(image, "PNG")


def _rotated_jpeg(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown upright after a quarter turn clockwise
    return _encode(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif)


def _with_alpha(image: Image.Image) -> Image.Image:
    alpha = np.linspace(0, 255, image.width * image.height).reshape(image.height, image.width).astype(np.uint8)
    image = image.copy()
    image.putalpha(Image.fromarray(alpha))
    return image


def _sixteen_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def _palette_png(image: Image.Image) -> bytes:
    return _encode(image.quantize(32), "PNG", transparency=0)


def _animated_gif(image: Image.Image) -> bytes:
    return _encode(image.quantize(64), "GIF", save_all=True, append_images=[Image.new("L", image.size)])


WRITERS: tuple[tuple[str, Callable[[Image.Image], bytes]], ...] = (
    (".jpg", _jpeg),
    (".JPG", lambda image: _jpeg(image.convert("L"))),
    (".png", _png),
    (".jpeg", lambda image: _encode(image.convert("CMYK"), "JPEG")),
    (".jpg", _rotated_jpeg),
    (".png", _palette_png),
    (".png", lambda image: _png(_with_alpha(image))),
    (".PNG", lambda image: _png(_sixteen_bits(image))),
    (".png", lambda image: _png(image.convert("1"))),
    (".png", lambda image: _png(image.convert("LA"))),
    (".webp", lambda image: _encode(image, "WEBP", quality=80)),
    (".webp", lambda image: _encode(_with_alpha(image), "WEBP", quality=80)),
    (".bmp", lambda image: _encode(image, "BMP")),
    (".tiff", lambda image: _encode(image, "TIFF", compression="tiff_lzw")),
    (".tif", lambda image: _encode(_sixteen_bits(image), "TIFF")),
    (".tif", lambda image: _encode(Image.fromarray(np.asarray(image.convert("L")) / np.float32(255)), "TIFF")),
    (".gif", _animated_gif),
)
