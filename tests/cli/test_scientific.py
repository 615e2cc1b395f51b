"""Bands, stacks, arrays and scans from the command line: trained on, evaluated, embedded and reported, with the right values.

The right values: the encoder that was trained, called on pixels that were scaled by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

from openjepa.commands import doctor
from openjepa.weights.load import load_encoder
from tests.cli.console import openjepa
from tests.cli.test_poor_data import QUICK

SIDE, FILES, NODATA = 32, 12, 7
Truth = dict[str, np.ndarray]  # by path: uint8 (channels, height, width)


def draw(number: int, shape: tuple[int, ...], most: int) -> np.ndarray:
    """Values 8 to `most`; the classes differ in brightness."""
    return np.random.default_rng(number).integers(8, most // (1 + number % 2), shape)


def level(values: np.ndarray, white: float) -> np.ndarray:
    return np.rint(np.clip(values.astype(np.float64) / white, 0, 1) * 255).astype(np.uint8)


def write_bands(folder: Path) -> Truth:
    """Five bands of 12 bits with missing pixels."""
    truth = {}
    for number in range(FILES):
        path, values = folder / "ab"[number % 2] / f"{number}.tif", draw(number, (SIDE, SIDE, 5), 4096)
        values[:3, number] = NODATA
        tag = (42113, "s", 2, f"{NODATA}\0", True)
        tifffile.imwrite(path, values.astype(np.uint16), photometric="minisblack", planarconfig="contig", extratags=[tag])
        levels = level(values, 4095)
        levels[:3, number] = 0
        truth[str(path)] = levels.transpose(2, 0, 1)
    return truth


def write_stacks(folder: Path) -> Truth:
    """Three pages of 10 bits a file."""
    truth = {}
    for number in range(FILES):
        path, values = folder / "ab"[number % 2] / f"{number}.tif", draw(number, (3, SIDE, SIDE), 1024)
        tifffile.imwrite(path, values.astype(np.uint16), photometric="minisblack")
        truth |= {f"{path}{f'#page={page + 1}' if page else ''}": level(values[page : page + 1], 1023) for page in range(3)}
    return truth


def write_arrays(folder: Path) -> Truth:
    """Four channels in front, floats within 0 to 1."""
    truth = {}
    for number in range(FILES):
        path, values = folder / "ab"[number % 2] / f"{number}.npy", draw(number, (4, SIDE, SIDE), 1000) / 1000
        np.save(path, values.astype(np.float32))
        truth[str(path)] = level(values.astype(np.float32), 1.0)
    return truth


def write_scans(folder: Path) -> Truth:
    """DICOM with a window in Hounsfield units; names without extension, and a patient."""
    pytest.importorskip("pydicom")
    from tests.unit.test_dicom import make, write

    truth = {}
    for number in range(FILES):
        path, values = folder / "ab"[number % 2] / f"IM{number:06d}", draw(number, (SIDE, SIDE), 4096).astype(np.uint16)
        stated = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 401}
        write(make(values, **stated), path)
        truth[str(path)] = level(values[None] - 1024.0 - (39.5 - 200), 400)
    return truth


@pytest.mark.parametrize(
    ("write", "channels", "flags"),
    [
        (write_bands, 5, ()),
        (write_stacks, 1, ("data.pages=all",)),
        (write_arrays, 4, ("data.layout=channels_first",)),
        (write_scans, 1, ()),
    ],
)
def test_every_command_sees_the_values_that_the_files_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Truth], channels: int, flags: tuple[str, ...]
):
    monkeypatch.setattr(doctor, "MEASURED_S", 0.1)
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
    data, run = tmp_path / "data", tmp_path / "run"
    truth = write(data)
    flags = (*flags, f"data.channels={channels}", "data.normalization=measured")
    said = [openjepa("doctor", data, *flags, "data.batch_size=8", "--sheet", tmp_path / "sheet.png")]
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    said.append(openjepa("pretrain", data, "--out", run, *QUICK, *flags, "train.length=3steps"))
    said.append(openjepa("evaluate", run, "--task", "knn", "--train", data, "--test", data))
    assert json.loads(said[-1].stdout.splitlines()[-1])["num_test"] == len(truth)
    said.append(openjepa("embed", run, data, "--out", tmp_path / "f.parquet"))
    said.append(openjepa("report", run))
    assert "no pictures" not in said[-1].stderr and 'id="seen"' in (run / "report.html").read_text()
    table = pd.read_parquet(tmp_path / "f.parquet")
    assert set(table["path"]) == set(truth)
    with torch.inference_mode():
        expected = load_encoder(run)(torch.from_numpy(np.stack([truth[path] for path in table["path"]]))).pooled
    np.testing.assert_allclose(np.stack(table["features"]), expected.numpy(), rtol=1e-4, atol=1e-5)
    for text in (*(result.stdout + result.stderr for result in said), *_texts(run)):
        assert "Zyxwvutq" not in text  # the patient of the scans


def _texts(folder: Path) -> list[str]:
    return [path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
