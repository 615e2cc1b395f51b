"""`openjepa compare`: recipes, methods, runs and other encoders side by side, by the same data, budget, seeds and tasks.

rows.py says what a row is, trials.py trains and measures, report/standings.py computes means, spreads, paired differences and
what is not equal, report/league.py writes it down. `openjepa ablate` is the brief's rows on the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openjepa.commands.rows import Budget, Entrant, read_rows
from openjepa.commands.trials import Exam, check_trials, list_trials, run_trials, share_cores
from openjepa.data.sources import name_held_out, open_source
from openjepa.evals import TASKS
from openjepa.report.league import PAGE, Words, write_league
from openjepa.report.standings import Column, Result, Standings
from openjepa.runs.folder import RunFolder


def compare(
    rows: Sequence[str],
    data: str,
    out: Path,
    *,
    tasks: str,
    budget: Budget,
    seeds: Sequence[int],
    changes: Mapping[str, Any],
    labels: str | None = None,
    test: str | None = None,
    reference: str | None = None,
    command: str = "",
    note: Callable[[str], None] = lambda _: None,
) -> str:
    """Train and measure the rows that a user names, write tables and page into OUT, and give the tables in Markdown.

    data: images that runs see without labels, unless the method needs them; labels, test: labelled images to fit on and to test
    on. tasks: names of evals.TASKS between commas, each with :LAYERS or without. reference: the row that others are compared
    with, the first if not given. Raises ValueError for what cannot be done, and OSError, Interrupted as pretrain does.
    """
    if not rows:
        raise ValueError("a comparison needs rows, as in openjepa compare mae_small simclr_small --data PHOTOS ...")
    entrants = read_rows(rows, data, changes, budget)
    if reference is not None and reference not in rows:
        raise ValueError(f"--reference {reference} is none of the rows: {', '.join(rows)}")
    exam = Exam(data, labels or data, find_test(labels or data, test), read_tasks(tasks))
    count = len(open_source(data, 3))
    trained = any(row.kind == "trained" for row in entrants)
    title = f"{len(rows)} row{'s' if len(rows) > 1 else ''} on {data}"
    summary = (f"Each run has {budget}, on {count:,} images. " if trained else "") + describe_exam(exam)
    return run_comparison(entrants, exam, seeds, out, reference or rows[0], Words(title, summary, command), note=note)


def run_comparison(
    rows: Sequence[Entrant],
    exam: Exam,
    seeds: Sequence[int],
    out: Path,
    reference: str,
    words: Words,
    *,
    jobs: int = 1,
    note: Callable[[str], None] = lambda _: None,
) -> str:
    """Every row with every seed; tables and page after each seed of all rows. jobs: runs at the same time."""
    trials = list_trials(rows, exam, seeds, out, share_cores(jobs))
    check_trials(trials, note)
    RunFolder(out).check_place()
    rounds = range(1, len(seeds) + 1) if jobs == 1 else [len(seeds)]
    ends = {len(list_trials(rows, exam, seeds[:count], out)) for count in rounds}
    results: list[Result] = []
    text = ""
    for result in run_trials(trials, note, jobs):
        results.append(result)
        if len(results) in ends:
            names = [row.name for row in rows]
            results.sort(key=lambda found: (found.seed or 0, names.index(found.row)))
            text = write_league(Standings(results, exam.columns, reference), words, out)
    note(f"{out / PAGE}: the same as a page, with pictures")
    return text


def describe_exam(exam: Exam) -> str:
    """What rows are measured with, in a sentence."""
    titles = ", ".join(column.title for column in exam.columns)
    return f"Measured by {titles}: fitted on {exam.labels}, tested on {exam.test}."


def find_test(labels: str, test: str | None) -> str:
    """The test images that are named, or those that belong to the labelled ones. ValueError where none are known."""
    held_out = test or name_held_out(labels)
    if held_out is None:
        raise ValueError(f"no test images are known for {labels}; name them with --test")
    return held_out


def read_tasks(words: str) -> tuple[Column, ...]:
    """Columns from words such as knn,linear,linear:4. ValueError for a task that is none, or is named twice."""
    columns = []
    for word in words.split(","):
        task, colon, layers = word.strip().partition(":")
        if task not in TASKS:
            raise ValueError(f"no task {task!r}; there are {', '.join(TASKS)}")
        if colon and not (layers.isdecimal() and int(layers) >= 1):
            raise ValueError(f"task {word} is not TASK:LAYERS, as in linear:4")
        columns.append(Column(task, int(layers) if colon else 1))
    if len(set(columns)) < len(columns):
        raise ValueError(f"--tasks {words} names a task twice")
    return tuple(columns)


def read_seeds(words: str) -> list[int]:
    """Seeds from words such as 0,1,2. ValueError for anything else."""
    seeds = [int(word) for word in words.split(",") if word.strip().isdecimal()]
    if len(seeds) != len(words.split(",")) or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds {words} is not a list of different whole numbers, as 0,1,2")
    return seeds
