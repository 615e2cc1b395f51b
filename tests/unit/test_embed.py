"""The Parquet file: read back with pyarrow and pandas, written whole or not at all, in several row groups."""

import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

import openjepa
from openjepa.commands import embed
from openjepa.commands.embed import write_features
from openjepa.data.decode import Decoded, DecodeError
from openjepa.data.sources import open_source
from openjepa.evals.features import RawPixels, extract_features
from tests.unit.test_features import FlatSource

PIXELS = RawPixels((8, 8), 1)
ABOUT = {"encoder_name": "context", "run": "runs/first"}


def test_rows_are_path_label_and_features(tmp_path):
    source = FlatSource(10, {3}, [0] * 5 + [1] * 5)
    path = tmp_path / "new" / "features.parquet"
    written = write_features(path, PIXELS, source, **ABOUT, batch_size=4)
    assert (written.num_images, written.width) == (9, 64)
    assert [name for name, _ in written.skipped] == ["flat/3.png"]
    table = parquet.read_table(path)
    kept = [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert table.schema.field("features").type == pa.list_(pa.float32(), 64)
    assert table.column("path").to_pylist() == [f"flat/{index}.png" for index in kept]
    assert table.column("label").to_pylist() == ["dark"] * 4 + ["light"] * 5
    assert np.array_equal(np.stack(pd.read_parquet(path)["features"]), extract_features(PIXELS, source).rows)
    about = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert about["openjepa.encoder"] == "context"
    assert about["openjepa.run"] == "runs/first"
    assert about["openjepa.data"] == os.path.abspath("flat")
    assert about["openjepa.version"] == openjepa.__version__


def test_without_classes_labels_are_null(tmp_path):
    write_features(tmp_path / "features.parquet", PIXELS, FlatSource(), **ABOUT)
    labels = parquet.read_table(tmp_path / "features.parquet").column("label")
    assert labels.type == pa.string()
    assert labels.null_count == 10


def test_row_groups_change_nothing(tmp_path, monkeypatch):
    source = open_source("sample:test", 1)
    encoder = RawPixels((28, 28), 1)
    monkeypatch.setattr(embed, "ROWS_PER_GROUP", 600)
    write_features(tmp_path / "features.parquet", encoder, source, **ABOUT)
    file = parquet.ParquetFile(tmp_path / "features.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [768, 768, 464]
    features = np.stack(file.read().column("features").to_numpy())
    assert np.array_equal(features, extract_features(encoder, source).rows)


def test_another_extension_is_refused_before_any_work(tmp_path):
    for name in ("features.npz", "features", "features.parquet.gz"):
        with pytest.raises(ValueError, match="features are written as Parquet; end the name in .parquet"):
            write_features(tmp_path / name, PIXELS, FlatSource(), **ABOUT)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_s_name_is_refused(tmp_path):
    (tmp_path / "features.parquet").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        write_features(tmp_path / "features.parquet", PIXELS, FlatSource(), **ABOUT)


def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="File exists"):
        write_features(tmp_path / "file" / "features.parquet", PIXELS, FlatSource(), **ABOUT)


class Dying(FlatSource):
    def open(self, index):
        return Decoded(self.load(index))

    def load(self, index):
        if index == 8:
            raise OSError(28, "No space left on device")
        return super().load(index)


@pytest.mark.parametrize("source", [Dying(), FlatSource(3, {0, 1, 2})])
def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path, monkeypatch, source):
    monkeypatch.setattr(embed, "ROWS_PER_GROUP", 2)
    path = tmp_path / "features.parquet"
    path.write_text("the old file")
    with pytest.raises((OSError, DecodeError)):
        write_features(path, PIXELS, source, **ABOUT, batch_size=2)
    assert path.read_text() == "the old file"
    assert list(tmp_path.iterdir()) == [path]
