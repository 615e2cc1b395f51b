"""The run folder: where a run's files lie and what they hold. Standard library only, so that any tool can read it.

RUN/run.json        resolved recipe, data, total steps, versions, git state, hardware, mean and std
RUN/recipe.yaml     the resolved recipe, for `--recipe RUN/recipe.yaml`
RUN/metrics.jsonl   one JSON object a line, each with "step"; rows of kind "train", "health" and "probe"
RUN/verdict.json    the latest verdict on whether the run is learning
RUN/skipped.txt     unreadable image files, one a line: path, tab, reason
RUN/left_out.txt    files of the data's folder that are of no kind that is read, one a line; none if there are none
RUN/checkpoints/    step-NNNNNNNN.safetensors, each with a small .json beside it
RUN/evals/*.json    one record per evaluation: encoder, task, layers, data, seed, scores with intervals
RUN/predictions/    what a detector found in test images: COCO JSON and pictures, a folder for each test set
RUN/cache/          features that evaluations have computed; may be deleted
RUN/report.html     the report; RUN/events.out.tfevents.* for TensorBoard

JSON has no NaN and no infinity: they are written as the strings "NaN", "Infinity" and "-Infinity", and read as numbers again.
A text that looks like one of them gets a "~" in front. The bare NaN that version 0.1 wrote is read as well.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openjepa.runs.atomic import write_atomic
from openjepa.runs.paths import quoted, user_path

Row = dict[str, Any]
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
ESCAPE = "~"


def to_json(value: Any, indent: int | None = None) -> str:
    """The value as JSON that any parser takes; `from_json` is the inverse, tuples apart, which become lists."""
    return json.dumps(_escape(value), indent=indent, allow_nan=False)


def from_json(text: str) -> Any:
    """The value of JSON that `to_json` wrote. ValueError if it is not JSON."""
    try:
        return _unescape(json.loads(text))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _escape(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str):
        return ESCAPE + value if value.lstrip(ESCAPE) in NON_FINITE else value
    if isinstance(value, dict):
        return {key: _escape(item) for key, item in value.items()}
    return [_escape(item) for item in value] if isinstance(value, list | tuple) else value


def _unescape(value: Any) -> Any:
    if isinstance(value, str):
        return NON_FINITE[value] if value in NON_FINITE else value[1:] if value.lstrip(ESCAPE) in NON_FINITE else value
    if isinstance(value, dict):
        return {key: _unescape(item) for key, item in value.items()}
    return [_unescape(item) for item in value] if isinstance(value, list) else value


def write_json(path: Path, value: Row) -> None:
    """Write a JSON object atomically, indented for people."""
    write_atomic(path, to_json(value, indent=1) + "\n")


def read_json(path: Path) -> Row:
    """Read a JSON object; ValueError names the file if it is not one."""
    try:
        value = from_json(path.read_text("utf-8"))
    except ValueError as error:  # of the encoding, too
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return value


class RunFolder:
    """A run's files under one path. Nothing is created until `create`."""

    def __init__(self, path: str | Path) -> None:
        self.path = user_path(path)
        self.run_json = self.path / "run.json"
        self.recipe_yaml = self.path / "recipe.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.verdict_json = self.path / "verdict.json"
        self.skipped = self.path / "skipped.txt"
        self.left_out = self.path / "left_out.txt"
        self.checkpoints = self.path / "checkpoints"
        self.evals = self.path / "evals"
        self.predictions = self.path / "predictions"
        self.cache = self.path / "cache"
        self.report = self.path / "report.html"

    def check_place(self) -> None:
        """OSError if the folder cannot be created and written there. Creates nothing."""
        nearest = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(f"no run folder fits below {nearest}, which is a file; choose another --out")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(f"{nearest} is not yours to write; choose another --out")

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.run_json.is_file()

    def create(self) -> None:
        """Make the folders. Raises OSError where the path cannot be written."""
        for folder in (self.path, self.checkpoints, self.evals):
            folder.mkdir(parents=True, exist_ok=True)

    def require(self) -> None:
        """ValueError unless a run was started here."""
        if not self.exists():
            raise ValueError(
                f"{quoted(self.path)} is not a run folder: it has no run.json; `openjepa pretrain DATA --out "
                f"{shlex.quote(str(self.path))}` makes one"
            )

    def read_run(self) -> Row:
        """The contents of run.json."""
        self.require()
        return read_json(self.run_json)

    def append_metrics(self, row: Row) -> None:
        """Add a line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(to_json(row) + "\n")

    def read_metrics(self, kind: str | None = None) -> list[Row]:
        """Rows of metrics.jsonl in order of step, of one kind ("train", "health", "probe") or of all."""
        return [row for row in self._rows() if kind in (None, row["kind"])]

    def drop_metrics_from(self, step: int) -> None:
        """Forget rows at or after a step: a resumed run writes them again."""
        if self.metrics.exists():
            rows = [row for row in self._rows() if row["step"] < step]
            write_atomic(self.metrics, "".join(to_json(row) + "\n" for row in rows))

    def write_eval(self, name: str, record: Row) -> Path:
        """Write evals/NAME.json and give its path."""
        self.evals.mkdir(parents=True, exist_ok=True)
        path = self.evals / f"{name}.json"
        write_json(path, record)
        return path

    def _rows(self) -> Iterator[Row]:
        if not self.metrics.exists():
            return
        for line in self.metrics.read_text("utf-8").splitlines():
            try:
                row = from_json(line)
            except ValueError:
                continue  # a line cut off by a kill; a resume drops and rewrites from the checkpoint's step
            if isinstance(row, dict) and isinstance(row.get("kind"), str) and isinstance(row.get("step"), int):
                yield row  # others are damaged, too
