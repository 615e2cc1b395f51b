"""Speed of the loader on one core: a folder of JPEGs, or a pack of it, to training batches; one JSON line for each figure.

    python benchmarks/loader.py [--rounds 5] [--batch 32] [--only small]

Compared with torchvision as most people use it: ImageFolder (Pillow), RandomResizedCrop, flip, ToTensor, default collation. Both
load in turn (A B A B), in one process and one thread; the figure is images per second of CPU time, median over rounds, so that
other work on the machine counts little. The ratio is the median of the rounds' own, its spread their smallest and largest.

The JPEGs are written first, at fixed seeds, from mosaics of the embedded sample images under texture and grain; quality 90,
4:2:0. How fast a JPEG can be decoded at all hangs on its bytes, and photographs of one size differ by a factor of three, so 12
megapixels come in three weights. Ours includes the masks of every batch; theirs has none to draw.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import platform
import shlex
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module, resources
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from unittest import mock

import numpy as np
import simplejpeg
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from openjepa.data import views
from openjepa.data.batch import MAIN
from openjepa.data.decode import Decoded, Picture
from openjepa.data.loader import GroupSettings, StreamSettings, training_batches
from openjepa.data.pack import write_pack
from openjepa.data.sample import SIDE_PX, load_sample
from openjepa.data.sources import open_source
from openjepa.data.views import ViewPlan, evaluation_view, training_views
from openjepa.recipe.views import Mask, ViewGroup

VIEW_PX = 224
SETS = {  # width, height, grain in grey levels, number of files
    "small": (500, 375, 4.5, 128),
    "large light": (4000, 3000, 1.0, 6),
    "large": (4000, 3000, 2.5, 6),
    "large heavy": (4000, 3000, 4.0, 6),
}
QUALITY = 90
PACK_PX = 384  # the default of `openjepa pack`
WAIT_STEPS = 20
Rates = tuple[list[float], list[float]]


def draw_photo(width: int, height: int, grain: float, generator: np.random.Generator) -> Image.Image:
    """A mosaic of a few sample images blown up, tinted, under a texture of many small ones and grain."""
    down = int(generator.integers(2, 5))
    mosaic = Image.fromarray(_mosaic(down, down * width // height + 1, generator)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    texture = _mosaic(height // SIDE_PX + 1, width // SIDE_PX + 1, generator)[:height, :width]
    dark, light = generator.uniform(0, 200, (2, 3)).astype(np.float32)
    pixels = dark + (light - dark) * (np.asarray(mosaic, np.float32) / 255)[:, :, None]
    pixels += 5 * grain * (texture / np.float32(255) - np.float32(0.4))[:, :, None]
    pixels += grain * generator.standard_normal((height, width, 1), np.float32)
    pixels += grain / 2 * generator.standard_normal((height, width, 3), np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _mosaic(down: int, across: int, generator: np.random.Generator) -> np.ndarray:
    images, _ = load_sample("train")
    tiles = images[generator.integers(len(images), size=(down, across))]
    return tiles.transpose(0, 2, 1, 3).reshape(down * SIDE_PX, across * SIDE_PX)


def write_set(folder: Path, width: int, height: int, grain: float, num_files: int) -> float:
    """Write a set of JPEGs as one class; gives the mean size of a file in bytes."""
    (folder / "photos").mkdir(parents=True)
    for number in range(num_files):
        photo = draw_photo(width, height, grain, np.random.default_rng([0, number]))
        photo.save(folder / "photos" / f"{number:04d}.jpg", quality=QUALITY, subsampling="4:2:0")
    return statistics.mean(file.stat().st_size for file in folder.rglob("*.jpg"))


def our_batches(data: str, batch: int, workers: int = 0) -> Iterator[object]:
    """Batches of the loader: random crops and flips, uint8."""
    group = GroupSettings(MAIN, ViewGroup(mask=Mask()), (VIEW_PX, VIEW_PX), (VIEW_PX // 16, VIEW_PX // 16))
    settings = StreamSettings((group,), batch, workers, seed=0)
    return training_batches(open_source(data, 3), settings, start_step=0, total_steps=10**6)


def their_batches(data: str, batch: int) -> Iterator[object]:
    """Batches of torchvision's ImageFolder, float."""
    crop = transforms.RandomResizedCrop(VIEW_PX, scale=ViewGroup().crop_scale)
    chain = transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.ToTensor()])
    loader = DataLoader(ImageFolder(data, chain), batch, shuffle=True)
    while True:
        yield from loader


def compare(ours: Iterator[object], theirs: Iterator[object], batch: int, steps: int, rounds: int) -> Rates:
    """Images per second of CPU time of two loaders in turn, for each round."""
    rates: Rates = ([], [])
    for loader in (ours, theirs):
        next(loader)  # files into the page cache, memory into the process
    for _ in range(rounds):
        for loader, kept in zip((ours, theirs), rates, strict=True):
            start = time.process_time()
            for _ in islice(loader, steps):
                pass
            kept.append(steps * batch / (time.process_time() - start))
    return rates


def measure_difference(folder: Path) -> dict[str, float | None]:
    """How far views of reduced JPEGs are from those of whole ones, in grey levels of 255; and peak signal to noise in dB."""
    source, size = open_source(str(folder), 3), (VIEW_PX, VIEW_PX)
    training, evaluation = [], []
    for index in range(min(len(source), 6)):
        reduced, whole = source.open(index), Decoded(source.load(index))
        training += [training_difference(reduced, whole, VIEW_PX, draw) for draw in range(4)]
        evaluation.append(evaluation_view(reduced, size).astype(np.float64) - evaluation_view(whole, size))
    return summarize("training", training) | summarize("evaluation", evaluation)


def measure_margins(margin: float) -> dict[str, float | None]:
    """The same on scikit-learn's two photographs, 640 x 427 and sharp to the pixel, for another views.OVERSAMPLING."""
    source = open_source(str(Path(str(resources.files("sklearn.datasets"))) / "images"), 3)
    with mock.patch.object(views, "OVERSAMPLING", margin):
        found = [
            training_difference(source.open(index), Decoded(source.load(index)), side, draw)
            for index in range(len(source))
            for side in (48, 64, 96, 112)
            for draw in range(20)
        ]
    return summarize("training", [error for error in found if error.any()])


def training_difference(reduced: Picture, whole: Picture, side: int, seed: int) -> np.ndarray:
    """A random view of one image minus the same view of the other."""
    shown = [
        training_views(image, [ViewPlan(ViewGroup(), (side, side), np.random.default_rng(seed))])[0] for image in (reduced, whole)
    ]
    return shown[0].astype(np.float64) - shown[1]


def summarize(kind: str, errors: list[np.ndarray]) -> dict[str, float | None]:
    """Mean and largest difference, and the lowest peak signal to noise, None where nothing differs."""
    worst = max(float((error**2).mean()) for error in errors)
    return {
        f"{kind}_mean_abs": round(statistics.mean(float(abs(error).mean()) for error in errors), 3),
        f"{kind}_max_abs": max(float(abs(error).max()) for error in errors),
        f"{kind}_lowest_psnr_db": round(10 * math.log10(255**2 / worst), 1) if worst else None,
    }


def measure_decoders(folder: Path, reduction: int, rounds: int) -> dict[str, float]:
    """Milliseconds of CPU time to decode a file, fastest round, with every library at hand."""

    def use_pillow(data: bytes) -> object:
        with Image.open(io.BytesIO(data)) as image:
            image.draft(None, (image.width // reduction, image.height // reduction))
            return np.array(image)

    def use_simplejpeg(data: bytes) -> object:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        return simplejpeg.decode_jpeg(data, min_factor=reduction, min_height=height // reduction, min_width=width // reduction)

    def use_torchvision(data: bytes) -> object:
        return torchvision.io.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))

    def use_opencv(data: bytes) -> object:
        cv2 = import_module("cv2")
        flag = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
        return cv2.imdecode(np.frombuffer(data, np.uint8), flag[reduction])

    def use_imagecodecs(data: bytes) -> object:
        return import_module("imagecodecs").jpeg8_decode(data)

    decoders: dict[str, Callable[[bytes], object]] = {"pillow": use_pillow, "simplejpeg": use_simplejpeg, "opencv": use_opencv}
    if reduction == 1:
        decoders |= {"torchvision": use_torchvision, "imagecodecs": use_imagecodecs}
    files = [file.read_bytes() for file in sorted(folder.rglob("*.jpg"))]
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, decode in decoders.items():
            try:
                start = time.process_time()
                for data in files:
                    decode(data)
            except ImportError:
                continue
            times.setdefault(name, []).append(1000 * (time.process_time() - start) / len(files))
    return {name: round(min(found), 3) for name, found in times.items()}


def measure_wait(data: str, batch: int) -> float:
    """Share of the time that steps twice as long as a batch takes to make wait for the only worker."""
    batches = our_batches(data, batch)
    next(batches)
    start = time.perf_counter()
    for _ in islice(batches, 3):
        pass
    step_s = 2 * (time.perf_counter() - start) / 3
    batches = our_batches(data, batch, workers=1)
    next(batches)
    waited, start = 0.0, time.perf_counter()
    for _ in range(WAIT_STEPS):
        time.sleep(step_s)
        before = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - before
    batches.close()  # type: ignore[attr-defined]
    return waited / (time.perf_counter() - start)


def name_cpu() -> str:
    """The processor's name as Linux gives it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def print_line(figure: str, unit: str, **values: object) -> None:
    """One figure as a line of JSON."""
    packages = ("numpy", "torch", "torchvision", "pillow", "simplejpeg")
    about = {
        "command": f"python {shlex.join(sys.argv)}",
        "cpu": name_cpu(),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in packages},
    }
    print(json.dumps({"figure": figure, "unit": unit} | values | about), flush=True)


def print_comparison(figure: str, rates: Rates, **values: object) -> None:
    """Rates of two loaders, and the first over the second."""
    ratios = [ours / theirs for ours, theirs in zip(*rates, strict=True)]
    print_line(
        figure,
        "images/s of one core's CPU time",
        value=round(statistics.median(rates[0]), 1),
        compared_with=round(statistics.median(rates[1]), 1),
        ratio=round(statistics.median(ratios), 2),
        ratio_spread=[round(min(ratios), 2), round(max(ratios), 2)],
        rounds=len(ratios),
        **values,
    )


def measure_set(name: str, folder: Path, batch: int, rounds: int) -> None:
    """All figures of one set."""
    width, height, grain, num_files = SETS[name]
    photos = folder / name.replace(" ", "-")
    file_bytes = write_set(photos, width, height, grain, num_files)
    about = {"file_kb": round(file_bytes / 1000, 1), "bits_per_pixel": round(8 * file_bytes / (width * height), 2)}
    what = f"{name} JPEGs, {width} x {height}"
    batch = batch if name == "small" else 8
    steps = 8 if name == "small" else 2
    rates = compare(our_batches(str(photos), batch), their_batches(str(photos), batch), batch, steps, rounds)
    print_comparison(f"{what}: ours over torchvision's", rates, batch=batch, **about)
    packed = folder / f"{photos.name}-packed"
    write_pack(open_source(str(photos), 3), packed, PACK_PX)
    for other, slower in (("ours", our_batches(str(photos), batch)), ("torchvision's", their_batches(str(photos), batch))):
        rates = compare(our_batches(str(packed), batch), slower, batch, steps, rounds)
        print_comparison(f"{what}: a pack of size {PACK_PX} over {other} from JPEGs", rates, batch=batch, **about)
    print_line(f"{what}: views of reduced JPEGs against whole ones", "grey levels", **measure_difference(photos))
    for reduction in (1,) if name == "small" else (1, 4, 8):
        print_line(f"{what}: decoding to 1/{reduction}", "ms a file", **measure_decoders(photos, reduction, rounds))
    wait = measure_wait(str(photos), batch)
    print_line(f"{what}: wait for one worker, steps twice as long as loading", "share of the time", value=round(wait, 4))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="JPEG folder to training batches on one core.")
    parser.add_argument("--rounds", type=int, default=5, help="how often both loaders have their turn")
    parser.add_argument("--batch", type=int, default=32, help="images in a batch of the small set")
    parser.add_argument(
        "--only", choices=[*SETS, "margins"], help="one set of JPEGs, or the resolution that reduced decoding keeps"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in SETS:
            if options.only in (None, name):
                measure_set(name, Path(folder), options.batch, options.rounds)
    for margin in (1, 1.5, 2, 3):
        if options.only in (None, "margins"):
            print_line(f"photographs decoded to {margin} times the view: views", "grey levels", **measure_margins(margin))


if __name__ == "__main__":
    main()
