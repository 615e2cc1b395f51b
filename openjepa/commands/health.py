"""`openjepa health RUN`: the verdicts that a run's recorded measurements give, by the rules of today.

Rows of older versions, which lack newer metrics, are judged without them, and that is said.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from openjepa.health.verdict import RunFacts, Verdict, judge, replay
from openjepa.runs.folder import Row, RunFolder

NEEDED = ("step", "effective_rank_pooled")
ALSO_JUDGED = ("loss", "explained_variance", "image_cosine", "skipped_in_a_row")


def replay_verdicts(run: str | Path, every: bool = False) -> list[str]:
    """A line where the verdict changes, or at every measurement, and the present one last.

    ValueError if the folder holds no run, or the run no measurement that can be judged.
    """
    folder = RunFolder(run)
    run_json = folder.read_run()
    facts, total_steps = RunFacts.read(run_json), run_json.get("total_steps")
    measured = folder.read_metrics("health")
    rows = [row for row in measured if all(isinstance(row.get(name), int | float) for name in NEEDED)]
    if not rows:
        if measured:
            raise ValueError(f"{folder.path} has {len(measured)} health rows, but none holds both {' and '.join(NEEDED)}")
        raise ValueError(f"{folder.path} has no health measurement yet; train it further: add --resume to its pretrain command")
    verdicts = replay(rows, facts)
    changes = [verdicts[0], *(now for before, now in pairwise(verdicts) if every or now.label != before.label)]
    gaps = _describe_gaps(measured, rows, facts)
    lines = [gaps] if gaps else []
    lines += [_describe(verdict, total_steps) for verdict in changes]
    return [*lines, f"now: {_describe(judge(rows, facts), total_steps)}"]


def _describe(verdict: Verdict, total_steps: int | None) -> str:
    share = f" ({(verdict.step + 1) / total_steps:.0%} of the run)" if total_steps else ""
    return f"step {verdict.step:,}{share}: {verdict.label}: {verdict.reason} {verdict.advice}"


def _describe_gaps(measured: list[Row], rows: list[Row], facts: RunFacts) -> str:
    """What the rows lack, in a sentence; empty if nothing. A method that predicts nothing hidden explains nothing."""
    predicts = facts.setting("method.name") is None or facts.setting("views.main.mask") is not None
    judged = [name for name in ALSO_JUDGED if predicts or name != "explained_variance"]
    missing = [name for name in judged if any(name not in row for row in rows)]
    parts = [f"judged without {', '.join(missing)}, which not every row holds"] if missing else []
    if left_out := len(measured) - len(rows):
        parts.append(f"{left_out} rows left out that hold no step or no effective rank")
    return "; ".join(parts)
