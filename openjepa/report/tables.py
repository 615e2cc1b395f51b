"""Tables of the report: the probe table from evals/*.json, and the facts of a run from run.json.

Numbers are the records' own, rounded to a tenth of a point; nothing is recomputed. Records of other training or test data
go into tables of their own, because their scores do not compare; each task and number of layers is a column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from openjepa.evals import TASKS
from openjepa.runs.folder import Row

ENCODERS = {"pixels": "Raw pixels", "random": "Random encoder", "context": "Context encoder", "target": "Target encoder"}
TRAINED = {"classification": "Fine-tuned", "detection": "Box AP", "instances": "Mask AP"}  # which train, so no rows of TASKS
TITLES = {name: task.title for name, task in TASKS.items()} | TRAINED
CLASSIFIERS = {"linear": "logistic regression", "knn": "neighbours"}
ALWAYS = (("knn", 1), ("linear", 1))  # columns that every table has

Column = tuple[str, int]  # a task and a number of layers


@dataclass(frozen=True)
class Score:
    """A task's main score with its interval; None where the record holds none.

    In [0, 1], or a number of `unit`. note: what the record puts beside it. is_open, is_end_open: the number is not reached, and
    the value or the interval's end is the most that was tried.
    """

    value: float
    low: float | None
    high: float | None
    seed: Any = None
    main: str = "accuracy"
    unit: str = ""
    note: str = ""
    is_open: bool = False
    is_end_open: bool = False

    @property
    def shown(self) -> str:
        """The value in per cent, to a tenth, or as a number of its unit."""
        return f"{100 * self.value:.1f} %" if not self.unit else f"{_say_more(self.is_open)}{self.value:,.0f} {self.unit}"

    @property
    def interval(self) -> str:
        """The interval, or nothing."""
        if self.low is None or self.high is None:
            return ""
        if not self.unit:
            return f"{100 * self.low:.1f} to {100 * self.high:.1f}"
        return f"{self.low:,.0f} to {_say_more(self.is_end_open)}{self.high:,.0f}"


def _say_more(is_open: bool) -> str:
    return "more than " if is_open else ""


class CurvePoint(NamedTuple):
    """The mean accuracy of some draws of so many labels per class, with its interval."""

    labels: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Curves:
    """Accuracy against labels per class: a line for each encoder (key, name, points). target: one that all ask for."""

    title: str
    lines: list[tuple[str, str, list[CurvePoint]]]
    target: float | None = None


@dataclass(frozen=True)
class ProbeTable:
    """Scores by encoder (rows) and column on one pair of training and test data."""

    train: str
    test: str
    sizes: str
    columns: list[tuple[Column, str]]
    rows: list[tuple[str, str, list[list[Score]]]]
    warnings: list[str]
    curves: list[Curves]

    def find(self, encoder: str, column: Column) -> Score | None:
        """The score of an encoder, the first of several seeds; None if it was not evaluated."""
        place = [key for key, _ in self.columns].index(column)
        for name, _, cells in self.rows:
            if name == encoder and cells[place]:
                return cells[place][0]
        return None


def check_record(record: Row) -> str | None:
    """Why an evaluation record cannot be shown, or None if it can."""
    main = record.get("main", "accuracy")
    missing = [key for key in ("encoder", "task", main) if key not in record]
    if missing:
        return f"it lacks {', '.join(missing)}"
    if not _is_number(record[main]):
        return f"its {main} is {record[main]!r}"
    interval = record.get("interval")
    if interval is not None and not (isinstance(interval, list) and len(interval) == 2 and all(map(_is_number, interval))):
        return f"its interval is {interval!r}"
    return None


def read_version_0_1(record: Row) -> Row:
    """A record as today's are: version 0.1 called a task a protocol."""
    return {"task": record["protocol"], **record} if "protocol" in record and "task" not in record else record


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def tabulate_probes(records: Sequence[Row], has_target: bool = True) -> list[ProbeTable]:
    """One table for each training and test data, in order of first appearance. has_target: of the run's method."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for record in records:
        train, test = (str(record.get(f"{part}_path", _name_data(record, part))) for part in ("train", "test"))
        groups.setdefault((train, test), []).append(record)
    expected = [encoder for encoder in ENCODERS if has_target or encoder != "target"]
    return [_tabulate(_name_data(group[0], "train"), _name_data(group[0], "test"), group, expected) for group in groups.values()]


def _name_data(record: Row, part: str) -> str:
    """Training or test data as the user called them."""
    return str(record.get(part, "not recorded"))


def _tabulate(train: str, test: str, records: list[Row], expected: list[str]) -> ProbeTable:
    tasks = list(TITLES)
    found = sorted(
        {_column_of(record) for record in records} | set(ALWAYS),
        key=lambda column: (tasks.index(column[0]) if column[0] in tasks else len(tasks), column),
    )
    encoders = list(dict.fromkeys([*expected, *(str(record["encoder"]) for record in records)]))
    rows = []
    for encoder in encoders:
        cells = [
            [_score(record) for record in records if (record["encoder"], _column_of(record)) == (encoder, column)]
            for column in found
        ]
        rows.append((encoder, ENCODERS.get(encoder, encoder), cells))
    columns = [(column, _name_column(column, records)) for column in found]
    return ProbeTable(train, test, _sizes(records), columns, rows, _warnings(records), _curves(records, encoders))


def _curves(records: list[Row], encoders: list[str]) -> list[Curves]:
    """Learning curves of the records that hold any, by task, layers and classifier; the first of several seeds."""
    found: dict[tuple[Column, str], dict[str, list[CurvePoint]]] = {}
    targets: dict[tuple[Column, str], set[float]] = {}
    for record in records:
        curves = record.get("curves")
        for method, read in curves.items() if isinstance(curves, dict) else ():
            points = _read_points(read)
            if points:
                place = _column_of(record), str(method)
                found.setdefault(place, {}).setdefault(str(record["encoder"]), points)
                targets.setdefault(place, set()).add(record["target"] if _is_number(record.get("target")) else math.nan)
    drawn = []
    for (column, method), lines in found.items():
        title = f"{_name_column(column, records)}: accuracy by {CLASSIFIERS.get(method, method)}"
        target = targets[column, method].pop() if len(targets[column, method]) == 1 else math.nan
        named = [(encoder, ENCODERS.get(encoder, encoder), lines[encoder]) for encoder in encoders if encoder in lines]
        drawn.append(Curves(title, named, target if math.isfinite(target) else None))
    return drawn


def _read_points(points: Any) -> list[CurvePoint]:
    """The points of a record's curve, none of one that is damaged."""
    try:
        read = [CurvePoint(point["labels_per_class"], point["mean"], *point["interval"]) for point in points]
    except (TypeError, KeyError):
        return []
    return read if all(_is_number(value) for point in read for value in point) and all(p.labels > 0 for p in read) else []


def _column_of(record: Row) -> Column:
    return str(record["task"]), int(record.get("layers", 1))


def _name_column(column: Column, records: list[Row]) -> str:
    """A column's heading; k-NN says the k that its records agree on."""
    task, layers = column
    title = TITLES.get(task, task)
    counts = {(record.get("hyper_parameters") or {}).get("k") for record in records if record["task"] == task}
    if task == "knn" and counts not in (set(), {None}):
        title = f"{counts.pop()}-NN" if len(counts) == 1 else "k-NN"
    return title if layers == 1 else f"{title}, last {layers} layers"


def _warnings(records: list[Row]) -> list[str]:
    """What the evaluations warned of, each once, with whose evaluation it was."""
    found: list[str] = []
    for record in records:
        encoder = str(record["encoder"])
        whose = f"{ENCODERS.get(encoder, encoder)}, {_name_column(_column_of(record), records)}"
        found += [f"{whose}: {warning}" for warning in record.get("warnings") or []]
    return list(dict.fromkeys(found))


def _score(record: Row) -> Score:
    interval = record.get("interval")
    low, high = (None, None) if interval is None else map(float, interval)
    main, unit, note = (str(record.get(name, usual)) for name, usual in (("main", "accuracy"), ("unit", ""), ("note", "")))
    is_open, is_end_open = (record.get(name) is False for name in ("is_reached", "end_is_reached"))
    return Score(float(record[main]), low, high, record.get("seed"), main, unit, note, is_open, is_end_open)


def _sizes(records: list[Row]) -> str:
    """How many images the probes were trained and tested on, where all records agree."""
    words = []
    for key, verb in (("num_train", "training"), ("num_test", "test")):
        counts = {record.get(key) for record in records}
        if len(counts) == 1 and isinstance(count := counts.pop(), int):
            words.append(f"{count:,} {verb} images")
    return ", ".join(words)


def list_facts(run: Row, train_rows: Sequence[Row], num_skipped: int) -> list[tuple[str, str]]:
    """What ran, on what, when and how fast, as (name, words) pairs; what is not recorded is said to be so."""
    parameters = run.get("num_parameters") or {}
    versions, hardware = run.get("versions") or {}, run.get("hardware") or {}
    return [
        ("Data", f"{run.get('data', 'not recorded')}" + (f", {run['num_images']:,} images" if "num_images" in run else "")),
        ("Steps", _steps(run, train_rows)),
        ("Time", _time(run)),
        ("Speed", _speed(run, train_rows)),
        ("Parameters", ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in parameters.items()) or "not recorded"),
        ("Channel mean", _numbers(run.get("mean"))),
        ("Channel standard deviation", _numbers(run.get("std"))),
        ("Steps left out", _skipped_steps(train_rows)),
        ("Unreadable files", f"{num_skipped:,}" if num_skipped else "none"),
        ("Code", _git(run)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or "not recorded"),
        ("Hardware", _hardware(hardware)),
    ]


def _steps(run: Row, rows: Sequence[Row]) -> str:
    total = run.get("total_steps")
    last = f"last logged step {rows[-1]['step']:,}" if rows else "no step logged yet"
    return f"{total:,} planned, {last}" if isinstance(total, int) else last


def _time(run: Row) -> str:
    started, finished = run.get("started"), run.get("finished")
    if not started:
        return "not recorded"
    if not finished:
        return f"started {started}, not finished"
    try:
        minutes = (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds() / 60
    except (ValueError, TypeError):
        return f"{started} to {finished}"
    return f"{minutes:.1f} minutes, {started} to {finished}"


def _speed(run: Row, rows: Sequence[Row]) -> str:
    words = []
    rates = sorted(row["images_per_s"] for row in rows if isinstance(row.get("images_per_s"), int | float))
    if rates:
        words.append(f"{rates[len(rates) // 2]:,.0f} images/s (median)")
    shares = sorted(row["fraction_of_peak"] for row in rows if isinstance(row.get("fraction_of_peak"), int | float))
    if shares:
        words.append(f"{100 * shares[len(shares) // 2]:.0f} % of the peak of matrix products")
    if (wait := median_wait(rows)) is not None:
        words.append(f"{100 * wait:.0f} % of the time waiting for data")
    if isinstance(step_ms := run.get("measured_step_ms"), int | float):
        words.append(f"{step_ms:,.0f} ms a step when timed at the start")
    return "; ".join(words) or "not recorded"


def median_wait(rows: Sequence[Row]) -> float | None:
    """Median share of the time that training waited for data, or None if it was not logged."""
    waits = sorted(row["data_wait_frac"] for row in rows if isinstance(row.get("data_wait_frac"), int | float))
    return waits[len(waits) // 2] if waits else None


def _skipped_steps(rows: Sequence[Row]) -> str:
    count = rows[-1].get("skipped_steps") if rows else None
    return "not recorded" if count is None else f"{count:,} (loss or gradient not finite)" if count else "none"


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:.3f}" for value in values) if values else "not recorded"


def _git(run: Row) -> str:
    git = run.get("git")
    if not git:
        return "not in a git repository" if "git" in run else "not recorded"
    return f"commit {git.get('commit', 'not recorded')}" + (", with uncommitted changes" if git.get("dirty") else "")


def _hardware(hardware: Row) -> str:
    words = [str(hardware[key]) for key in ("device", "cpu") if hardware.get(key)]
    if hardware.get("num_cores"):
        words.append(f"{hardware['num_cores']} cores")
    if hardware.get("memory_gb"):
        words.append(f"{hardware['memory_gb']:.0f} GB memory")
    return ", ".join(words) or "not recorded"
