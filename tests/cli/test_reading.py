"""Images of more than 8 bits and folders with other things in them, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from tests.cli.console import assert_refused, openjepa
from tests.cli.test_poor_data import QUICK


def test_twelve_bits_keep_their_levels_in_all_that_is_computed_from_a_run(tmp_path: Path):
    """The same pictures in 8 bits, scaled by hand, have the same features."""
    deep, flat = tmp_path / "deep", tmp_path / "flat"
    generator = np.random.default_rng(0)
    for folder in (deep, flat):
        folder.mkdir()
    for number in range(24):
        values = generator.integers(0, 4096, (32, 32)).astype(np.uint16)
        Image.fromarray(values).save(deep / f"{number}.png")
        Image.fromarray(np.rint(values / 4095 * 255).astype(np.uint8)).save(flat / f"{number}.png")
    run = tmp_path / "run"
    trained = openjepa("pretrain", deep, "--out", run, *QUICK, "data.workers=0")
    assert "data.white_level=4095" in trained.stderr.splitlines()[0]
    assert json.loads((run / "run.json").read_text())["recipe"]["data"]["white_level"] == 4095
    (deep / "page.jpg").write_text("<html>")
    (deep / "photo.heics").touch()
    tables = []
    for folder in (deep, flat):
        out = tmp_path / f"{folder.name}.parquet"
        told = openjepa("embed", run, folder, "--out", out)
        tables.append(pd.read_parquet(out))
        assert told.stderr.count("could not be read") == (folder == deep)
    np.testing.assert_array_equal(*(np.stack(table["features"]) for table in tables))
    assert "HTML" in (tmp_path / "deep.skipped.txt").read_text()
    assert (tmp_path / "deep.left_out.txt").read_text() == f"{deep / 'photo.heics'}\n"
    assert not (tmp_path / "flat.skipped.txt").exists()
    again = openjepa("pretrain", deep, "--out", run, "--resume", "--recipe", "demo", *QUICK[2:], check=False)
    assert "white_level" not in again.stderr  # auto keeps what the run began with


def test_a_white_level_below_black_is_refused(tmp_path: Path):
    assert_refused(
        openjepa("pretrain", "sample:train", "--out", tmp_path / "run", *QUICK, "data.white_level=-1", check=False), "black"
    )
