"""Charts of a run: loss, schedules, gradient norm, health and accuracies, each as inline SVG with its words beside it.

A chart takes rows of metrics.jsonl as they are. A value that is missing, null or not finite leaves a gap in its line and is
counted in the chart's note; a chart of which no row has a value is not made (the page says so in words).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator, ScalarFormatter

from openjepa.report import svg
from openjepa.report.tables import Curves, ProbeTable
from openjepa.report.words import TONES
from openjepa.runs.folder import Row

SMOOTH_FRAC = 0.05  # share of a run that the smoothed loss averages over
CURVE_COLOURS = {"context": 1, "random": 2, "pixels": 3, "target": 4}  # lines of the page, by encoder
MOST_TICKS = 6  # labels along an axis of labels per class
MAX_LABEL = 24  # letters; a longer name is cut in the chart and whole in the table
PALE = {"too early", "collapsing"}  # labels drawn paler than the other one of their colour
PALE_ALPHA = 0.4
STRIP = (1.03, 1.09)  # bottom and top of the verdicts' strip, above an axis from 0 to 1
LOWEST_EXPLAINED = -0.5  # an untrained predictor may be far below; the axis stops here so that the rest stays readable

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Chart:
    """A drawn chart: its title, SVG element, key (CSS class and words of each line) and a note on what it means."""

    title: str
    svg: str
    key: list[tuple[str, str]]
    note: str = ""


@dataclass(frozen=True)
class Line:
    """A line of a chart over steps, in the page's colour `number` (1 to 4); a faint one lies behind."""

    label: str
    steps: Values
    values: Values
    number: int = 1
    is_faint: bool = False


@dataclass(frozen=True)
class Mark:
    """A stretch of a run with one verdict: its label, its first measured step, and the first of the next stretch or the last."""

    label: str
    first_step: float
    end_step: float

    @property
    def tone(self) -> str:
        """good, bad or open, as the page colours the verdict."""
        return TONES.get(self.label, "open")

    @property
    def is_pale(self) -> bool:
        """Whether a stronger verdict shares the colour."""
        return self.label in PALE


@dataclass(frozen=True)
class Plan:
    """What a chart shows: (metric, its word in the key) per line, and how its axis runs."""

    name: str
    title: str
    metrics: tuple[tuple[str, str], ...]
    note: str
    threshold_words: str = ""
    is_log: bool = False
    bottom: float | None = None
    top: float | None = None
    is_marked: bool = False
    needs: str = ""  # the group of recipe keys without which there is nothing to measure


HEALTH_PLANS = (
    Plan("rank", "Effective rank", (("effective_rank_pooled", "pooled"), ("effective_rank_patches", "patches")),
         "How many directions the features use (RankMe). A fall towards 1 is collapse.", "healthy from", bottom=0.0,
         is_marked=True),
    Plan("explained", "Explained variance of the targets", (("explained_variance", "explained variance"),),
         "1 is a perfect prediction, 0 no better than the mean target.", "knows next to nothing below", top=1.0,
         needs="views.main.mask"),
    Plan("cosine", "Cosine between images", (("image_cosine", "mean cosine"),),
         "1: all images look alike to the encoder.", "collapsed above", top=1.0),
    Plan("std", "Feature standard deviation", (("feature_std", "standard deviation"),),
         "Spread of the pooled features over images, mean over their dimensions.", bottom=0.0),
    Plan("variance", "Feature variance", (("feature_variance", "variance"),),
         "Mean variance of the pooled features over images.", "warns below", is_log=True, is_marked=True),
    Plan("drift", "Context-target drift", (("context_target_drift", "1 - cosine"),),
         "How far the context encoder has moved from its running average, the target encoder.", bottom=0.0,
         needs="method.momentum"),
)  # fmt: skip
TRAINING_PLANS = (
    Plan("regularizer", "Regulariser", (("regularizer", "regulariser"),), "The anti-collapse term, without its weight."),
    Plan(
        "pairs",
        "Pairs found",
        (("pairs_found", "share of views"),),
        "How often the other view of an image is the most similar one of the batch.",
        bottom=0.0,
        top=1.0,
    ),
    Plan(
        "entropy",
        "Entropy of assignments",
        (("teacher_entropy", "of a view"), ("usage_entropy", "of the batch's mean")),
        "Of the target's assignments to prototypes, as a share of the largest. Both at 1: they tell nothing; both at 0: "
        "one prototype has everything.",
        bottom=0.0,
        top=1.0,
    ),
    Plan(
        "patch_entropy",
        "Entropy of patches' assignments",
        (("patch_teacher_entropy", "of a patch"), ("patch_usage_entropy", "of the batch's mean")),
        "As of views, for the patches of large views.",
        bottom=0.0,
        top=1.0,
    ),
    Plan(
        "assignment_kl",
        "Disagreement about assignments",
        (("assignment_kl", "nats"),),
        "The loss between views without the target's own entropy (KL divergence); 0 in either collapse.",
        bottom=0.0,
    ),
    Plan(
        "centre",
        "Norm of the centre",
        (("centre_norm", "of views"), ("patch_centre_norm", "of patches")),
        "Of the moving mean of the target's outputs.",
        bottom=0.0,
    ),
    Plan(
        "alignment",
        "Alignment",
        (("alignment", "squared distance"),),
        "Between the vectors of two views of an image, on the unit sphere: 0 are the same, 2 are orthogonal.",
        bottom=0.0,
    ),
    Plan(
        "uniformity",
        "Uniformity",
        (("uniformity", "log potential"),),
        "Of the vectors of different images: 0 are all the same, -4 are spread evenly.",
        top=0.0,
    ),
    Plan(
        "target_std",
        "Spread of the targets",
        (("target_std", "standard deviation"),),
        "Of targets over patches, mean over their dimensions; 0: all are alike.",
        bottom=0.0,
    ),
    Plan(
        "train_accuracy",
        "Accuracy on training views",
        (("train_accuracy", "accuracy"),),
        "Of the classifier, before the step.",
        bottom=0.0,
        top=1.0,
    ),
    Plan("gradient", "Gradient norm", (("grad_norm", "gradient norm"),), "Before clipping.", "warns above", is_log=True),
)
PROBE_PLANS = (
    Plan("probe", "20-NN accuracy during training", (("knn", "this encoder"), ("knn_random_encoder", "random encoder"),
                                                     ("knn_raw_pixels", "raw pixels")),
         "Context encoder, on the labelled images given to the run."),
)  # fmt: skip
SCHEDULE_PLANS = (
    Plan("lr", "Learning rate", (("lr", "learning rate"),), "", bottom=0.0),
    Plan("decay", "Weight decay", (("weight_decay", "weight decay"),), "", bottom=0.0),
    Plan("momentum", "Momentum of the target encoder", (("momentum", "momentum"),), ""),
    Plan(
        "teacher_temperature",
        "Temperature of the target",
        (("teacher_temperature", "temperature"),),
        "What the target's outputs are divided by: the lower, the sharper.",
        bottom=0.0,
    ),
)


def draw_loss(rows: Sequence[Row]) -> Chart | None:
    """The training loss as logged and smoothed; None if no row has one."""
    raw = _line(rows, "loss", "each logged step")
    if raw is None:
        return None
    width = max(int(len(rows) * SMOOTH_FRAC), 1)
    lines = [Line("each logged step", raw.steps, raw.values, 1, is_faint=True)]
    if width > 1:
        lines.append(Line(f"mean of {width} logged steps", raw.steps, smooth(raw.values, width), 1))
    else:
        lines = [Line("loss", raw.steps, raw.values, 1)]
    moves = any("momentum" in row for row in rows)
    note = "Targets of an encoder move as it learns, so the loss may rise in a good run." if moves else ""
    plan = Plan("loss", "Training loss", (), note)
    return _draw(plan, lines, None)


def draw_plans(plans: Sequence[Plan], rows: Sequence[Row], thresholds: Mapping[str, float]) -> list[Chart]:
    """The charts of those plans that the rows have values for; thresholds are keyed by metric."""
    charts = []
    for plan in plans:
        lines = []
        for number, (metric, word) in enumerate(plan.metrics, start=1):
            line = _line(rows, metric, word, number)
            lines += [line] if line is not None else []
        if lines:
            marks = mark_verdicts(rows) if plan.is_marked else []
            charts.append(_draw(plan, lines, thresholds.get(plan.metrics[0][0]), marks))
    return charts


def mark_verdicts(rows: Sequence[Row]) -> list[Mark]:
    """The stretches of equal labels among health rows, in order."""
    labelled = [(float(row["step"]), str(row["label"])) for row in rows if "label" in row and "step" in row]
    starts = [place for place in range(len(labelled)) if place == 0 or labelled[place][1] != labelled[place - 1][1]]
    ends = [*(labelled[place][0] for place in starts[1:]), labelled[-1][0]] if labelled else []
    return [Mark(labelled[place][1], labelled[place][0], end) for place, end in zip(starts, ends, strict=True)]


def name_unmeasured(plans: Sequence[Plan], rows: Sequence[Row]) -> list[str]:
    """Titles, in lower case, of the charts that the rows have no value for."""
    return [plan.title.lower() for plan in plans if all(_line(rows, metric, word) is None for metric, word in plan.metrics)]


def draw_accuracies(table: ProbeTable, name: str) -> Chart | None:
    """Every accuracy of a probe table as a dot with its interval, encoders below one another; None if there are none.

    Scores of other kinds, as of few labels or corrupted images, do not stand on one axis with them.
    """
    rows = [
        (key, label, [[score for score in cell if score.main == "accuracy"] for cell in cells])
        for key, label, cells in table.rows
        if any(score.main == "accuracy" for cell in cells for score in cell)
    ]
    if not rows:
        return None
    figure, axes = svg.new_axes((4.2, 0.7 + 0.42 * len(rows)))
    spread = 0.26
    key = []
    for number, (_, column) in enumerate(table.columns):
        colour = svg.LINES[number % len(svg.LINES)]
        found = [(place, score) for place, (_, _, cells) in enumerate(rows) for score in cells[number]]
        for place, score in found:
            height = place + spread * (number - (len(table.columns) - 1) / 2)
            if score.low is not None and score.high is not None:
                axes.hlines(height, 100 * score.low, 100 * score.high, color=colour, linewidth=1.6)
            axes.plot(100 * score.value, height, "o", color=colour, markersize=4.5)
        key += [(f"line-{number % len(svg.LINES) + 1}", column)] if found else []
    axes.set_yticks(range(len(rows)), [label[:MAX_LABEL] for _, label, _ in rows])
    for text in axes.get_yticklabels():
        text.set_parse_math(False)  # an encoder's name comes from a file
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=svg.GRID, linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel("accuracy, per cent", color=svg.MUTED, fontsize=svg.FONT_POINTS)
    return Chart("Accuracy with its interval", svg.to_svg(figure, name, "accuracies of the table beside, with intervals"), key)


def draw_curves(curves: Curves, name: str) -> Chart:
    """Mean accuracy against labels per class on a log axis, a line for each encoder in a band that is its interval."""
    figure, axes = svg.new_axes()
    key = []
    for place, (encoder, label, points) in enumerate(curves.lines):
        number = CURVE_COLOURS.get(encoder, place % len(svg.LINES) + 1)
        counts = [point.labels for point in points]
        low, high = [100 * point.low for point in points], [100 * point.high for point in points]
        axes.fill_between(counts, low, high, color=svg.LINES[number - 1], alpha=0.15, linewidth=0)
        axes.plot(counts, [100 * point.mean for point in points], "o-", color=svg.LINES[number - 1], linewidth=1.5, markersize=4)
        key.append((f"line-{number}", label[:MAX_LABEL]))
    if curves.target is not None:
        axes.axhline(100 * curves.target, color=svg.ALARM, linewidth=1.0, linestyle=(0, (4, 3)))
        key.append(("alarm", f"asked for {100 * curves.target:.1f} %"))
    axes.set_xscale("log")
    every = sorted({point.labels for _, _, points in curves.lines for point in points})
    # 1, 2, 5, 10 ... stand too close for a label each
    shown = every if len(every) <= MOST_TICKS else [count for count in every if math.log10(count).is_integer()] + every[-1:]
    axes.set_xticks(shown, [svg.short_number(float(count)) for count in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(every[0] / 1.2, every[-1] * 1.2)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel("labels per class", color=svg.MUTED, fontsize=svg.FONT_POINTS)
    axes.set_ylabel("per cent", color=svg.MUTED, fontsize=svg.FONT_POINTS)
    ends = ", ".join(f"{label} reaches {points[-1].mean:.1%} with {points[-1].labels:,}" for _, label, points in curves.lines)
    note = "Mean over draws of the labelled images, and its 95 % interval."
    return Chart(curves.title, svg.to_svg(figure, name, f"accuracy against labels per class: {ends}"), key, note)


def smooth(values: Values, width: int) -> Values:
    """Centred mean over `width` values, shorter at both ends; values that are not finite are left out of it."""
    if width < 2:
        return values
    finite = np.isfinite(values)
    ones = np.ones(width)
    middle = slice((width - 1) // 2, (width - 1) // 2 + len(values))
    total = np.convolve(np.where(finite, values, 0.0), ones)[middle]
    count = np.convolve(finite.astype(np.float64), ones)[middle]
    means: Values = np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
    return means


def _line(rows: Sequence[Row], metric: str, label: str, number: int = 1) -> Line | None:
    """The metric over steps, NaN where a row's value is not a finite number; None if no row has it."""
    pairs = [(row["step"], row[metric]) for row in rows if metric in row and "step" in row]
    values = np.array([value if isinstance(value, int | float) else math.nan for _, value in pairs], dtype=np.float64)
    values[~np.isfinite(values)] = np.nan
    if not np.isfinite(values).any():
        return None
    return Line(label, np.array([step for step, _ in pairs], dtype=np.float64), values, number)


def _draw(plan: Plan, lines: Sequence[Line], threshold: float | None, marks: Sequence[Mark] = ()) -> Chart:
    figure, axes = svg.new_axes()
    for line in lines:
        padded = np.pad(np.isfinite(line.values), 1)
        alone_idx = np.flatnonzero(padded[1:-1] & ~padded[:-2] & ~padded[2:])  # between gaps, where a line would show nothing
        axes.plot(line.steps, line.values, color=svg.LINES[line.number - 1], linewidth=0.7 if line.is_faint else 1.5,
                  alpha=0.4 if line.is_faint else 1.0, marker="o", markersize=4, markevery=alone_idx.tolist())  # fmt: skip
    svg.label_steps(axes)
    _set_range(axes, plan, lines, threshold)
    key = [(f"line-{line.number}" + (" faint" if line.is_faint else ""), line.label) for line in lines]
    if threshold is not None:
        axes.axhline(threshold, color=svg.ALARM, linewidth=1.0, linestyle=(0, (4, 3)))
        key.append(("alarm", f"{plan.threshold_words} {threshold:.3g}"))
    key += _draw_marks(axes, marks, lines[0])
    gaps = sum(int(np.isnan(line.values).sum()) for line in lines if not line.is_faint)
    note = plan.note + (f" {gaps} value{'s are' if gaps > 1 else ' is'} missing or not finite." if gaps else "")
    if plan.name == "explained" and min(np.nanmin(line.values) for line in lines) < LOWEST_EXPLAINED:
        note += f" The axis stops at {LOWEST_EXPLAINED:g}."
    note += " Above, the verdict; a dot where it changed." if len(marks) > 1 else ""
    label = f"{plan.title} over steps: " + ", ".join(f"{line.label} ends at {_last(line.values):.3g}" for line in lines)
    return Chart(plan.title, svg.to_svg(figure, plan.name, label), key if len(key) > 1 else [], note.strip())


def _set_range(axes: Axes, plan: Plan, lines: Sequence[Line], threshold: float | None) -> None:
    """A range that shows lines and threshold, does not zoom into rounding noise, and keeps ticks few."""
    everything = np.concatenate([line.values[np.isfinite(line.values)] for line in lines])
    low, high = float(everything.min()), float(everything.max())
    if plan.name == "explained":
        low = max(low, LOWEST_EXPLAINED)
    shown = [low, high] + [value for value in (threshold, plan.bottom, plan.top) if value is not None]
    low, high = min(shown), max(shown)
    if plan.is_log and high > 10 * low > 0:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.5, high * 1.5)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: svg.short_number(value)))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 30 * low else (1.0, 2.0, 5.0), numticks=6))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_locator(LogLocator(subs=(), numticks=2))
    else:
        plain = ScalarFormatter(useOffset=False)
        plain.set_scientific(False)
        size = max(abs(high), abs(low)) or 1.0
        span = high - low if high - low > 1e-6 * size else 0.2 * size
        axes.set_ylim(low - (0.0 if low == plan.bottom else 0.05 * span), high + 0.05 * span)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(plain)


def _draw_marks(axes: Axes, marks: Sequence[Mark], line: Line) -> list[tuple[str, str]]:
    """A strip above the curve in the verdict's colours, and a point on the curve where it changed; gives what the key says.

    A point takes the nearest value before it, if the one measured there is missing.
    """
    colours = {"good": svg.GOOD, "bad": svg.ALARM, "open": svg.MUTED}
    key: dict[str, str] = {}
    finite = np.isfinite(line.values)
    for number, mark in enumerate(marks):
        colour, alpha = colours[mark.tone], PALE_ALPHA if mark.is_pale else 1.0
        axes.axvspan(mark.first_step, mark.end_step, *STRIP, color=colour, alpha=alpha, linewidth=0, clip_on=False)
        known_idx = np.flatnonzero(finite & (line.steps <= mark.first_step))
        if number > 0 and len(known_idx):
            axes.plot(mark.first_step, line.values[known_idx[-1]], "o", color=colour, markersize=5.5, zorder=3)
        key.setdefault(mark.label, f"mark {mark.tone}" + (" pale" if mark.is_pale else ""))
    return [(css, label[:MAX_LABEL]) for label, css in key.items()]


def _last(values: Values) -> float:
    return float(values[np.isfinite(values)][-1])
