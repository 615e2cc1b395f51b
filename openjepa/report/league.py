"""A comparison as people read it: two tables in Markdown, one self-contained page, every single score as Parquet.

Names come from users and files: Jinja2 escapes them on the page, matplotlib in its SVG, and a bar in one does not end a cell of
a Markdown table.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from matplotlib.ticker import MaxNLocator
from pyarrow import parquet

from openjepa.evals import TASKS
from openjepa.report import svg
from openjepa.report.figures import MAX_LABEL, Chart
from openjepa.report.page import mark_chart, open_template
from openjepa.report.standings import (
    PLAIN,
    SCORE,
    Column,
    Standings,
    list_scores,
    list_unequal,
    mean_and_spread,
    show_amount,
)
from openjepa.runs.atomic import whole, write_atomic

TABLE, PAGE, SCORES = "table.md", "compare.html", "results.parquet"
HEADINGS = {
    "steps": "steps",
    "images_seen": "images seen",
    "epochs": "epochs",
    "minutes": "minutes",
    "images_per_s": "images/s",
    "peak_memory_gb": "peak GB",
}
NOTES = (
    "Scores are means over seeds in per cent, ± their standard deviation; a single one has none.",
    "A difference is taken seed by seed, and its spread is its own; a row without seeds goes with every seed of the other.",
    "Probes draw with one seed in all rows, so spread is of training, not of the choice of test images.",
    "Speed is images a second while training, data included; peak memory is that of the whole process without data workers, "
    "so with libraries that earlier rows loaded, or of the GPU.",
    "Checked says how far the method was compared with its paper: docs/fidelity.md.",
)


@dataclass(frozen=True)
class Words:
    """What a page says of a comparison beside its numbers. extra: further columns, a cell for some rows each."""

    title: str
    summary: str
    command: str = ""
    extra: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def write_league(standings: Standings, words: Words, out: Path) -> str:
    """Write table.md, compare.html and results.parquet, each whole or not at all; gives the Markdown."""
    text = to_markdown(standings, words)
    write_atomic(out / TABLE, text)
    write_atomic(out / PAGE, to_html(standings, words).encode("utf-8", "backslashreplace"))
    scores = list_scores(standings.results)
    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    columns = [(name, kinds[kind]) for name, kind in ({"row": str, "seed": int} | SCORE | PLAIN).items()]
    with whole(out / SCORES) as temporary:
        parquet.write_table(pa.Table.from_pylist(scores, schema=pa.schema(columns)), temporary)
    return text


def to_markdown(standings: Standings, words: Words) -> str:
    """The two tables, and what is not equal."""
    parts = [words.title, words.summary, _to_table(*list_rows(standings, words.extra))]
    if runs := list_runs(standings):
        parts += ["What the runs took:", _to_table(*runs)]
    if len(standings.rows) > 1:
        parts += [f"Differences from {standings.reference}, seed by seed:", _to_table(*list_differences(standings))]
    unequal = list_unequal(standings)
    parts.append("Not equal:\n" + "\n".join(f"- {line}" for line in unequal) if unequal else "All else is equal.")
    return "\n\n".join(part for part in parts if part) + "\n"


def list_rows(standings: Standings, extra: Mapping[str, Mapping[str, str]] | None = None) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the table of scores. extra: further columns."""
    head = ["", *(column.title for column in standings.columns), "seeds", "verdicts", "checked", *(extra or {})]
    rows = []
    for row in standings.rows:
        cells = [row, *(mean_and_spread(standings.values(row, column)) for column in standings.columns)]
        cells += [str(len(standings.of(row))), standings.verdicts(row), standings.fact(row, "checked")]
        rows.append([*cells, *(column.get(row, "") for column in (extra or {}).values())])
    return head, rows


def list_runs(standings: Standings) -> tuple[list[str], list[list[str]]] | None:
    """Headings and cells of the table of what runs took, as means over seeds; None where no row is a run."""
    rows = []
    for row in standings.rows:
        found = {name: standings.amounts(row, name) for name in HEADINGS}
        cells = [show_amount(name, statistics.mean(amounts)) if amounts else "" for name, amounts in found.items()]
        rows += [[row, *cells]] if any(cells) else []
    return (["", *HEADINGS.values()], rows) if rows else None


def list_differences(standings: Standings) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the table of paired differences and speeds."""
    head = ["", *(column.title for column in standings.columns), "pairs", "times as fast"]
    rows = []
    for row in (row for row in standings.rows if row != standings.reference):
        speeds = standings.speeds(row)
        cells = [mean_and_spread(standings.differences(row, column), "+.1f") for column in standings.columns]
        rows.append([row, *cells, str(len(standings.pairs(row))), f"{statistics.mean(speeds):.2f}" if speeds else ""])
    return head, rows


def _to_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    lines += ["| " + " | ".join(_escape(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _escape(cell: str) -> str:
    return " ".join(cell.replace("\\", "\\\\").replace("|", "\\|").split())


def to_html(standings: Standings, words: Words) -> str:
    """The page: tables, a picture of each task, what is not equal, and what each row is."""
    known = sorted({name for result in standings.results for name in result.facts} & PLAIN.keys(), key=list(PLAIN).index)
    facts = [(row, [(name.replace("_", " "), _word_fact(standings, row, name)) for name in known]) for row in standings.rows]
    charts = [draw_scores(standings, column, f"scores-{place}") for place, column in enumerate(standings.columns)]
    behind = [draw_differences(standings, column, f"differences-{place}") for place, column in enumerate(standings.columns)]
    values: dict[str, Any] = {
        "words": words,
        "scores": list_rows(standings, words.extra),
        "runs": list_runs(standings),
        "differences": list_differences(standings) if len(standings.rows) > 1 else None,
        "reference": standings.reference,
        "charts": [mark_chart(chart) for chart in charts if chart],
        "behind": [mark_chart(chart) for chart in behind if chart],
        "unequal": list_unequal(standings),
        "missing": [f"{row}: {column.title}" for row, column in standings.missing()],
        "notes": NOTES,
        "facts": [(row, [(name, value) for name, value in pairs if value]) for row, pairs in facts],
        "files": (TABLE, SCORES),
    }
    return open_template("league.html").render(**values)


def _word_fact(standings: Standings, row: str, name: str) -> str:
    found = standings.amounts(row, name) if PLAIN[name] in (int, float) else []
    return show_amount(name, statistics.mean(found)) if found else standings.fact(row, name)


def draw_scores(standings: Standings, column: Column, name: str) -> Chart | None:
    """A column's scores: a large dot for each row's mean, its spread as a line, a small dot for each seed."""
    found = {row: standings.values(row, column) for row in standings.rows}
    trained = {result.row for result in standings.results if result.facts.get("kind") == "trained"}
    colours = {row: 1 if row in trained else 2 for row in found}
    units = {str(record.get("unit", "")) for result in standings.results if (record := result.records.get(column))}
    axis = next(iter(units), "") or f"{TASKS[column.task].title}, per cent"
    key = [(f"line-{colour}", words) for colour, words in ((1, "trained here"), (2, "measured")) if colour in colours.values()]
    return _draw_dots(column.title, found, colours, axis, name, key)


def draw_differences(standings: Standings, column: Column, name: str) -> Chart | None:
    """The same of the differences from the reference."""
    found = {row: standings.differences(row, column) for row in standings.rows if row != standings.reference}
    return _draw_dots(column.title, found, dict.fromkeys(found, 1), "points", name, [], origin=True)


def _draw_dots(
    title: str,
    found: Mapping[str, Sequence[float]],
    colours: Mapping[str, int],
    axis: str,
    name: str,
    key: list[tuple[str, str]],
    origin: bool = False,
) -> Chart | None:
    """Rows below one another. origin: with a line at 0."""
    if not any(found.values()):
        return None
    figure, axes = svg.new_axes((4.2, 0.7 + 0.3 * len(found)))
    for place, (row, values) in enumerate(found.items()):
        colour = svg.LINES[colours[row] - 1]
        if len(values) > 1:
            mean, spread = statistics.mean(values), statistics.stdev(values)
            axes.hlines(place, mean - spread, mean + spread, color=colour, linewidth=1.6)
            axes.plot(values, [place] * len(values), "o", color=colour, markersize=2.5, alpha=0.5, markeredgewidth=0)
        if values:
            axes.plot(statistics.mean(values), place, "o", color=colour, markersize=5)
    if origin:
        axes.axvline(0, color=svg.MUTED, linewidth=1.0)
    axes.set_yticks(range(len(found)), [row if len(row) <= MAX_LABEL else f"{row[: MAX_LABEL - 1]}…" for row in found])
    for text in axes.get_yticklabels():
        text.set_parse_math(False)  # a row's name is a user's
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=svg.GRID, linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel(axis, color=svg.MUTED, fontsize=svg.FONT_POINTS)
    label = f"{title}: " + ", ".join(f"{row} {mean_and_spread(values)}" for row, values in found.items())
    return Chart(title, svg.to_svg(figure, name, label), key)
