"""What became of a run, and whether the verdict on it was right: the rule that verdicts.py counts by.

*Learned* is a 20-NN accuracy at least MARGIN points above that of the same encoder untrained, *worse* at least so much below,
*no better* in between; *diverged* is a run that stopped, or whose features are not finite, or whose loss rose EXPLODED times
above its start. Fixed before any verdict was looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

MARGIN = 5.0  # points of 20-NN accuracy, in per cent
EXPLODED, STEPS = 10.0, 20  # the mean loss of the last steps against that of the first
OUTCOMES = ("learned", "no better", "worse", "diverged")
WARNINGS = ("not learning yet", "collapsing", "collapsed", "diverging")
LABELS = ("healthy", *WARNINGS, "too early")


def has_exploded(losses: Sequence[float]) -> bool:
    """Whether the last logged losses are far above the first."""
    return bool(losses) and fmean(losses[-STEPS:]) > EXPLODED * fmean(losses[:STEPS])


def name_outcome(gain: float) -> str:
    """The outcome of a run that has not diverged. gain: points of 20-NN accuracy over the untrained encoder."""
    return "learned" if gain >= MARGIN else "worse" if gain <= -MARGIN else "no better"


def is_right(outcome: str, label: str) -> bool:
    """Healthy for a run that learned; a word of warning, whichever, for one that did not. Too early is never right."""
    return label == "healthy" if outcome == "learned" else label in WARNINGS


def tabulate_outcomes(runs: Sequence[tuple[str, str]]) -> str:
    """Outcomes and the verdicts' labels, counted, in rows by outcome."""
    lines = ["| outcome | runs | " + " | ".join(LABELS) + " |", "|---|---:|" + "---:|" * len(LABELS)]
    for outcome in OUTCOMES:
        labels = [label for became, label in runs if became == outcome]
        lines.append(f"| {outcome} | {len(labels)} | " + " | ".join(str(labels.count(label)) for label in LABELS) + " |")
    return "\n".join(lines)
