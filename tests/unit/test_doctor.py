"""What doctor says of images: sizes from headers alone, and unreadable files counted once they are decoded."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openjepa.commands import doctor
from openjepa.data.sources import open_source
from openjepa.recipe.files import load_recipe
from openjepa.training.build import StepTime
from openjepa.training.memory import MemoryLine
from tests.messy_folder import build_messy_folder


def test_sizes_take_no_pixels(tmp_path: Path):
    """Files cut off behind their headers: nothing could be decoded, and every size is known, a turned photo's upright."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 100, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, more in (("a.png", {}), ("b.jpg", {}), ("c.jpg", {"exif": turned}), ("d.bmp", {})):
        Image.fromarray(pixels).save(tmp_path / name, **more)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    lines = list(doctor.describe_data(open_source(str(tmp_path), 3), np.arange(4)))
    assert any("40 x 40 to 100 x 100 px, median 40 x 100, of 4 looked at" in line for line in lines)


def test_unreadable_files_are_counted_and_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    build_messy_folder(tmp_path / "photos", num_good=60)
    monkeypatch.setattr(doctor, "measure_step", lambda *_: StepTime(1.0, 0.0))
    monkeypatch.setattr(doctor, "fit_memory", lambda *_: MemoryLine(1e9, 1e6))
    lines = list(doctor.examine(str(tmp_path / "photos"), load_recipe("demo")))
    (line,) = (line for line in lines if "cannot be read" in line)
    assert line.startswith("2 of 62 looked at") and str(tmp_path / "photos") in line
