"""matplotlib figures as inline SVG that follows the page: text stays text, colours come from the page's CSS variables.

Figures are drawn with a `Figure` of their own, never through pyplot, so nothing global changes between calls. A colour such as
INK is a placeholder that `to_svg` replaces by `var(--ink)`; the page sets it once for light and once for dark.
"""

from __future__ import annotations

import io
import re

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK, MUTED, GRID, ALARM, GOOD = "#010203", "#010204", "#010205", "#010206", "#01020b"
LINES = ("#010207", "#010208", "#010209", "#01020a")
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "rule", ALARM: "alarm", GOOD: "good"} | {
    colour: f"line-{number}" for number, colour in enumerate(LINES, start=1)
}
CHART_INCHES = (3.7, 2.1)  # about the width of a phone at a font of 8.5 points
FONT_POINTS = 8.5


def new_axes(inches: tuple[float, float] = CHART_INCHES) -> tuple[Figure, Axes]:
    """A figure with one pair of quiet axes: a baseline, horizontal rules, no box."""
    figure = Figure(figsize=inches, layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=FONT_POINTS, length=3, width=0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def label_steps(axes: Axes) -> None:
    """Whole training steps along the bottom, thousands as k."""
    low, high = axes.get_xlim()
    if high - low < 2:  # a single step
        axes.set_xlim((low + high) / 2 - 1, (low + high) / 2 + 1)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    axes.set_xlabel("step", color=MUTED, fontsize=FONT_POINTS)


def short_number(value: float) -> str:
    """950 as 950, 12000 as 12k, 1500000 as 1.5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def to_svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an <svg> element for inline use; `name` keeps its ids apart from other figures', `label` is read aloud.

    The output is deterministic and names no outside resource: prologue, metadata and namespaces (HTML needs none) are left out.
    """
    buffer = io.StringIO()
    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    text = re.sub(r"^<svg[^>]*>", f'<svg {box[0]} role="img" aria-label="{_quote(label)}">', text)
    text = re.sub(r' id="', f' id="{name}-', text)
    text = re.sub(r'xlink:href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    text = text.replace("xlink:href=", "href=")
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text


def _quote(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
