"""What a comparison found, as numbers: means and spreads over seeds, paired differences, and what is not equal between rows.

A result is one row of the table with one seed. Spread is the standard deviation over seeds, with n - 1 in the denominator; a
difference is taken between the two runs of one seed, and carries its own. Nothing is tested for significance and no winner is
named: with three seeds the spread is for the reader to see.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from openjepa.evals import TASKS
from openjepa.runs.folder import Row

LEVEL_FRAC = 0.05  # amounts within this share of one another count as equal


class Column(NamedTuple):
    """A task, and the number of last layers that its features are of."""

    task: str
    layers: int = 1

    @property
    def title(self) -> str:
        """The heading."""
        title = TASKS[self.task].title
        return title if self.layers == 1 else f"{title}, last {self.layers} layers"


@dataclass(frozen=True)
class Result:
    """What one row gave with one seed.

    seed: None of an encoder that was measured and not trained here. facts: what it is, by the names of FACTS and AMOUNTS, as far
    as it is known. records: evaluation records by column; none of a run whose loss was no longer finite.
    """

    row: str
    seed: int | None
    facts: Row
    records: dict[Column, Row] = field(default_factory=dict)

    def value(self, column: Column) -> float | None:
        """The main score in per cent, or the number where it is one; None if it was not measured."""
        record = self.records.get(column)
        if record is None:
            return None
        return float(record[record["main"]]) * (1 if record.get("unit") else 100)


# What rows may differ in, as (name in facts, words). A fact is equal or not; amounts may be level.
FACTS = {
    "encoder": "Encoder",
    "image_size": "Image size",
    "channels": "Channels",
    "trained_on": "Training images",
    "labels": "Labels seen in training",
    "batch_size": "Batch",
    "threads": "Threads",
    "precision": "Precision",
    "device": "Device",
}
AMOUNTS = {
    "parameters": "Parameters of the encoder",
    "trained_parameters": "Parameters that are trained",
    "steps": "Steps",
    "images_seen": "Images seen",
    "epochs": "Epochs",
    "minutes": "Minutes of training",
}


class Standings:
    """Results by row, in the order in which rows come first, and the row that the others are compared with."""

    def __init__(self, results: Sequence[Result], columns: Sequence[Column], reference: str) -> None:
        self.results, self.columns, self.reference = list(results), list(columns), reference
        self.rows = list(dict.fromkeys(result.row for result in results))
        assert reference in self.rows, (reference, self.rows)

    def of(self, row: str) -> list[Result]:
        """A row's results by seed."""
        return sorted((result for result in self.results if result.row == row), key=lambda result: result.seed or 0)

    def values(self, row: str, column: Column) -> list[float]:
        """A row's scores by seed, without those that there are none of."""
        return [value for result in self.of(row) if (value := result.value(column)) is not None]

    def pairs(self, row: str) -> list[tuple[Result, Result]]:
        """A row's results, each with the reference's of the same seed; what has no seeds goes with all of the other."""
        return [
            (ours, theirs)
            for ours in self.of(row)
            for theirs in self.of(self.reference)
            if ours.seed == theirs.seed or ours.seed is None or theirs.seed is None
        ]

    def differences(self, row: str, column: Column) -> list[float]:
        """A row's scores minus the reference's, seed by seed."""
        pairs = [(ours.value(column), theirs.value(column)) for ours, theirs in self.pairs(row)]
        return [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]

    def speeds(self, row: str) -> list[float]:
        """Images a second as multiples of the reference's, seed by seed."""
        pairs = [(ours.facts.get("images_per_s"), theirs.facts.get("images_per_s")) for ours, theirs in self.pairs(row)]
        return [ours / theirs for ours, theirs in pairs if ours and theirs]

    def amounts(self, row: str, fact: str) -> list[float]:
        """A number among the facts of a row's results, of those that have it."""
        return [float(result.facts[fact]) for result in self.of(row) if result.facts.get(fact) is not None]

    def verdicts(self, row: str) -> str:
        """The verdicts on a row's runs, counted."""
        labels = [str(result.facts["verdict"]) for result in self.of(row) if result.facts.get("verdict")]
        return ", ".join(f"{labels.count(label)} {label}" for label in dict.fromkeys(labels))

    def fact(self, row: str, name: str) -> str:
        """A fact of a row in words: of its results, each way once."""
        return " or ".join(dict.fromkeys(str(found) for result in self.of(row) if (found := result.facts.get(name)) is not None))

    def missing(self) -> list[tuple[str, Column]]:
        """Rows and columns without a score."""
        return [(row, column) for row in self.rows for column in self.columns if not self.values(row, column)]


def mean_and_spread(values: Sequence[float], form: str = ".1f") -> str:
    """ "87.9 ± 0.2", a single value without a spread, and nothing of none."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{round(statistics.mean(values), 1) + 0.0:{form}}{spread}"  # + 0.0: no -0.0


def list_unequal(standings: Standings) -> list[str]:
    """What rows differ in beside what is compared, a sentence each; of rows of which it is known."""
    found = []
    for name, words in FACTS.items():
        groups: dict[str, list[str]] = {}
        for row in standings.rows:
            if fact := standings.fact(row, name):
                groups.setdefault(fact, []).append(row)
        if len(groups) > 1:
            found.append(_word_groups(words, groups, len(standings.rows)))
    for name, words in AMOUNTS.items():
        amounts = {row: statistics.mean(values) for row in standings.rows if (values := standings.amounts(row, name))}
        if amounts and max(amounts.values()) > (1 + LEVEL_FRAC) * min(amounts.values()):
            groups = {}
            for row, amount in amounts.items():
                groups.setdefault(show_amount(name, amount), []).append(row)
            found.append(_word_groups(words, groups, len(standings.rows)))
    if unknown := [row for row in standings.rows if not standings.fact(row, "trained_on")]:
        found.append(f"Not trained here, so what they have seen is not known or is nothing: {', '.join(unknown)}.")
    counts = {row: len(standings.of(row)) for row in standings.rows if standings.fact(row, "trained_on")}
    if len(set(counts.values())) > 1:
        found.append(f"Runs: {'; '.join(f'{count} ({row})' for row, count in counts.items())}.")
    return found


def _word_groups(words: str, groups: dict[str, list[str]], num_rows: int) -> str:
    """A sentence on which rows have what; the largest group, of more than two, comes last and is not listed."""
    ordered = sorted(groups.items(), key=lambda group: len(group[1]))
    parts = [f"{what} ({', '.join(rows)})" for what, rows in ordered]
    if len(ordered[-1][1]) > 2 and len(ordered[-1][1]) > len(ordered[-2][1]):
        whole = sum(map(len, groups.values())) == num_rows
        parts[-1] = f"{ordered[-1][0]} ({'all others' if whole else 'all others of which it is known'})"
    return f"{words}: {'; '.join(parts)}."


def show_amount(name: str, amount: float | None) -> str:
    """An amount as tables show it."""
    if amount is None:
        return ""
    if name in ("parameters", "trained_parameters"):
        return f"{amount / 1e6:.2f} M"
    return f"{amount:,.0f}" if amount >= 100 or name in ("steps", "images_seen") else f"{amount:.3g}"


def list_scores(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Every single score as plain values: a row for each result, task and score, with the result's facts beside it.

    A result without scores has one row, without a task.
    """
    rows = []
    for result in results:
        head = {"row": result.row, "seed": result.seed}
        tail = {name: result.facts.get(name) for name in PLAIN}
        scores = [
            {
                "task": column.task, "layers": column.layers, "score": name, "is_main": name == record["main"],
                "value": found["value"], "low": (found["interval"] or [None, None])[0],
                "high": (found["interval"] or [None, None])[1], "unit": record.get("unit", ""),
                "num_train": record["num_train"], "num_test": record["num_test"],
            }
            for column, record in result.records.items()
            for name, found in record["scores"].items()
        ]  # fmt: skip
        rows += [head | score | tail for score in scores or [dict.fromkeys(SCORE)]]
    return rows


# Columns of results.parquet, in their order, by the kind of what they hold.
SCORE = {
    "task": str, "layers": int, "score": str, "is_main": bool, "value": float, "low": float, "high": float, "unit": str,
    "num_train": int, "num_test": int,
}  # fmt: skip
PLAIN = {
    "kind": str, "method": str, "checked": str, "verdict": str, "encoder": str, "image_size": str, "channels": int,
    "parameters": int, "trained_parameters": int, "trained_on": str, "labels": str, "batch_size": int, "steps": int,
    "images_seen": int, "epochs": float, "minutes": float, "images_per_s": float, "peak_memory_gb": float, "threads": int,
    "precision": str, "device": str, "folder": str,
}  # fmt: skip
