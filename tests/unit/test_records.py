"""The files of a run folder: strict JSON for any parser, and what was written comes back, NaN and infinity included."""

from __future__ import annotations

import io
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openjepa.health.verdict import RunFacts, judge
from openjepa.runs.folder import RunFolder, from_json, read_json, to_json, write_json

LOOK_ALIKES = ["NaN", "Infinity", "-Infinity", "~NaN", "~~-Infinity", "nan", "~", ""]
TEXTS = st.text() | st.sampled_from(LOOK_ALIKES)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([math.nan, math.inf, -math.inf]) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
ROWS = st.dictionaries(TEXTS, VALUES, max_size=5)


def strict(text: str) -> Any:
    """As a parser reads it that knows JSON's standard (RFC 8259) and nothing else."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def same(one: Any, other: Any) -> bool:
    """Equal in type and value, NaN equal to NaN and 0.0 not to -0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or (one == other and math.copysign(1, one) == math.copysign(1, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_any_value_is_written_as_strict_json_and_comes_back(value: Any) -> None:
    text = to_json(value)
    strict(text)
    assert same(from_json(text), value)


@settings(max_examples=60, deadline=None)
@given(st.lists(ROWS, max_size=5))
def test_any_rows_of_metrics_come_back_from_lines_of_strict_json(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = RunFolder(name)
        rows = [row | {"kind": "train", "step": step} for step, row in enumerate(rows)]
        for row in rows:
            folder.append_metrics(row)
        assert all(map(same, folder.read_metrics(), rows)) and len(folder.read_metrics()) == len(rows)
        folder.drop_metrics_from(2)  # which writes the rows again
        assert all(map(same, folder.read_metrics(), rows[:2]))
        lines = folder.metrics.read_text("utf-8").splitlines() if rows else []
        assert len(lines) == len(rows[:2])
        for line in lines:
            strict(line)


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_any_file_of_a_run_is_strict_json_and_comes_back(row: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = RunFolder(name).write_eval("record", row)
        strict(path.read_text("utf-8"))
        assert same(read_json(path), row)


def test_lines_that_version_0_1_wrote_are_read(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text('{"kind": "train", "step": 0, "loss": NaN, "lr": Infinity}\n{"kind": "train", "st')
    (row,) = folder.read_metrics()
    assert math.isnan(row["loss"]) and row["lr"] == math.inf
    folder.drop_metrics_from(9)
    assert strict(folder.metrics.read_text()) == {"kind": "train", "step": 0, "loss": "NaN", "lr": "Infinity"}


def test_pandas_reads_every_row_and_its_numbers(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step, loss in enumerate((0.5, math.nan, math.inf, -math.inf)):
        folder.append_metrics({"kind": "train", "step": step, "loss": loss})
    read = pd.read_json(io.StringIO(folder.metrics.read_text()), lines=True)
    losses = pd.to_numeric(read["loss"])
    assert losses[0] == 0.5 and math.isnan(losses[1]) and losses[2] == math.inf and losses[3] == -math.inf


def test_a_verdict_tells_nan_from_what_was_not_measured(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append_metrics({"kind": "health", "step": 0, "effective_rank_pooled": 2.0})
    absent = judge(folder.read_metrics("health"), RunFacts()).label
    folder.append_metrics({"kind": "health", "step": 1, "effective_rank_pooled": 2.0, "loss": math.nan})
    assert (absent, judge(folder.read_metrics("health"), RunFacts()).label) == ("too early", "diverging")


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\xff"])
def test_a_file_that_is_no_json_object_is_named_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="run.json") as caught:
        read_json(tmp_path / "run.json")
    assert "\n" not in str(caught.value)


def test_what_json_cannot_hold_is_an_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"step": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "run.json", {"step": {1, 2}})
    assert read_json(tmp_path / "run.json") == {"step": 1}


def test_rows_that_are_no_rows_are_passed_over(tmp_path):
    folder = RunFolder(tmp_path)
    lines = ['{"kind": "train", "step": 1}', "[]", "3", '{"kind": "train"}', '{"step": 2}', '{"kind": 3, "step": "x"}', '{"kind']
    folder.metrics.write_text("\n".join(lines))
    assert folder.read_metrics() == [{"kind": "train", "step": 1}]
    folder.drop_metrics_from(1)
    assert folder.read_metrics() == []
