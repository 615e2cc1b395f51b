"""What became of a run, and whether the verdict on it was right: what health_bed.py and verdicts.py count by.

*Learned* is a 20-NN accuracy at least MARGIN points above that of the same encoder untrained, *worse* at least so much below,
*no better* in between; *diverged* is for each program to tell. Fixed before any verdict was looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

MARGIN = 5.0  # points of 20-NN accuracy, in per cent
OUTCOMES = ("learned", "no better", "worse", "diverged")
WARNINGS = ("not learning yet", "collapsing", "collapsed", "diverging")
LABELS = ("healthy", *WARNINGS, "too early")


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
