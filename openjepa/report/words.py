"""What a reader should look at, in words computed from a run's own numbers; no number here that is not in its files.

Each observation is one or two sentences and the id of the section of the page that shows it. Nothing is said of what was not
measured. Limits for saying something are ours and only choose words; the verdict itself comes from verdict.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from openjepa.report.tables import ProbeTable, Score, median_wait
from openjepa.runs.folder import Row

MAX_WAIT_FRAC = 0.2  # above this, decoding rather than arithmetic sets the pace
TONES = {"healthy": "good", "collapsed": "bad", "collapsing": "bad", "diverging": "bad"}


@dataclass(frozen=True)
class Observation:
    """Words about a run, and the section of the page that shows it."""

    words: str
    section: str


@dataclass(frozen=True)
class VerdictWords:
    """The verdict as the page says it; tone is good, bad or open."""

    label: str
    reason: str
    advice: str
    tone: str
    history: str


def word_verdict(verdict: Row | None, health_rows: Sequence[Row]) -> VerdictWords:
    """The verdict of verdict.json, or why there is none yet."""
    history = _word_history(health_rows)
    if verdict is None:
        reason = "Health was measured, but verdict.json is missing." if health_rows else "Health has not been measured yet."
        return VerdictWords("No verdict yet", reason, "Let the run go on, then write the report again.", "open", history)
    label = str(verdict.get("label", "not recorded"))
    reason, advice = (_sentence(str(verdict.get(key) or "not recorded")) for key in ("reason", "advice"))
    step = verdict.get("step")
    reason += f" (Step {step:,}.)" if isinstance(step, int) else ""
    return VerdictWords(_sentence(label, end=""), reason, advice, TONES.get(label, "open"), history)


def _word_history(rows: Sequence[Row]) -> str:
    """The labels that a run went through: "too early (step 0), healthy (steps 100 to 400)"."""
    labelled = [(str(row["label"]), row["step"]) for row in rows if "label" in row and "step" in row]
    parts = []
    for label, group in groupby(labelled, key=lambda pair: pair[0]):
        steps = [step for _, step in group]
        parts.append(f"{label} (step {steps[0]:,})" if len(steps) == 1 else f"{label} (steps {steps[0]:,} to {steps[-1]:,})")
    return ", ".join(parts)


def observe(
    tables: Sequence[ProbeTable], train_rows: Sequence[Row], health_rows: Sequence[Row], thresholds: Mapping[str, float]
) -> list[Observation]:
    """Observations in the order of the page's sections."""
    found = [words for table in tables for words in _compare_encoders(table)]
    found += _observe_health(health_rows)
    found += _observe_training(train_rows, thresholds)
    return found


def _compare_encoders(table: ProbeTable) -> list[Observation]:
    """For each column, the trained encoders against the random encoder and raw pixels."""
    found = []
    for column, title in table.columns:
        others = [(words, table.find(key, column)) for key, words in (("random", "a random encoder"), ("pixels", "raw pixels"))]
        phrases = []
        for encoder in ("context", "target"):
            trained = table.find(encoder, column)
            compared = [_compare(trained, other, words) for words, other in others if trained is not None and other is not None]
            if compared:
                phrases.append(f"the {encoder} encoder is {' and '.join(compared)}")
        if phrases:
            found.append(Observation(f"{title} on {table.test}: {'; '.join(phrases)}.", "probes"))
    return found


def _compare(trained: Score, other: Score, name: str) -> str:
    """Points above or below, and whether the intervals leave that in doubt; of a number of a unit, both numbers."""
    if trained.unit:
        return f"at {trained.shown} where {name} is at {other.shown}"
    points = 100 * (trained.value - other.value)
    if abs(points) < 0.05:
        return f"level with {name}"
    words = f"{abs(points):.1f} points {'above' if points > 0 else 'below'} {name}"
    if trained.low is None or trained.high is None or other.low is None or other.high is None:
        return words
    is_apart = trained.low > other.high or trained.high < other.low
    return words if is_apart else f"{words} with overlapping intervals"


def _observe_health(rows: Sequence[Row]) -> list[Observation]:
    found = []
    if explained := _finite(rows, "explained_variance"):
        share = explained[-1]
        words = (
            f"The predictor explains {100 * share:.0f} % of the targets' variance."
            if share > 0
            else "The predictor does no better than the mean target."
        )
        found.append(Observation(words, "curves"))
    if found_pairs := _finite(rows, "pairs_found"):
        words = f"The other view of an image is the most similar one of its batch in {100 * found_pairs[-1]:.0f} % of the cases."
        found.append(Observation(words, "curves"))
    if (own := _finite(rows, "teacher_entropy")) and (usage := _finite(rows, "usage_entropy")):
        words = (
            f"The target's assignment of a view has {100 * own[-1]:.0f} % of the largest entropy, that of a whole batch "
            f"{100 * usage[-1]:.0f} %: the first should be the lower one."
        )
        found.append(Observation(words, "curves"))
    if len(ranks := _finite(rows, "effective_rank_pooled")) > 1:
        first, last = ranks[0], ranks[-1]
        direction = "rose" if last > first else "fell"
        found.append(Observation(f"The effective rank of pooled features {direction} from {first:.1f} to {last:.1f}.", "curves"))
    return found


def _observe_training(rows: Sequence[Row], thresholds: Mapping[str, float]) -> list[Observation]:
    found = []
    limit = thresholds.get("grad_norm")
    high = [value for value in _finite(rows, "grad_norm") if limit is not None and value > limit]
    if high:
        plural = "step" if len(high) == 1 else "steps"
        words = f"The gradient norm was above {limit:g} at {len(high):,} logged {plural}, {max(high):.3g} at most."
        found.append(Observation(words, "curves"))
    if rows and (skipped := rows[-1].get("skipped_steps")):
        verb = "step was" if skipped == 1 else "steps were"
        words = f"{skipped:,} {verb} left out because the loss or its gradient was not finite."
        found.append(Observation(words, "curves"))
    wait = median_wait(rows)
    if wait is not None and wait > MAX_WAIT_FRAC:
        words = f"Training waited for data {100 * wait:.0f} % of the time; more data.workers or smaller images would speed it up."
        found.append(Observation(words, "facts"))
    return found


def _finite(rows: Sequence[Row], metric: str) -> list[float]:
    """The metric's finite values, in order."""
    values: list[Any] = [row.get(metric) for row in rows]
    return [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]


def _sentence(text: str, end: str = ".") -> str:
    """The text with a capital first letter and a full stop."""
    text = text[:1].upper() + text[1:]
    return text if not end or text.endswith((".", "!", "?")) else text + end
