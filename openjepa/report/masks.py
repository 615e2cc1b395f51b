"""Sampled masks and measured coverage of mask settings: for the report, and as the picture that `openjepa masks` writes.

A batch of multiblock masks shares its block shapes, so each mask shown is the first of a batch of its own. Multiblock
settings are pictured twice, with unbiased draws and with the release's, whose coverage by row and column shows its bias.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from openjepa.config import Mask
from openjepa.masks import measure_coverage, sample_masks
from openjepa.records import write_atomic
from openjepa.report import pictures, svg
from openjepa.report.pictures import Floats, Pixels

NUM_MASKS = 12
NUM_MEASURED = 8192
BATCH_SIZE = 256  # the release cuts contexts to the shortest of their batch, so masks are drawn among many
INK, QUIET = "#1c1f23", "#5b626b"


@dataclass(frozen=True)
class MaskSheet:
    """Masks (h * cell, w * cell, 4) RGBA, and how often each patch (h, w) is context or target, in [0, 1]."""

    title: str
    masks: list[Pixels]
    context_rate: Floats
    target_rate: Floats
    caption: str
    num_targets: int

    @property
    def rates(self) -> tuple[Floats, Floats]:
        """The maps of context and of targets."""
        return self.context_rate, self.target_rate

    @property
    def uris(self) -> list[str]:
        """The masks as data addresses."""
        return [pictures.to_data_uri(mask) for mask in self.masks]

    @property
    def maps(self) -> list[tuple[str, str]]:
        """(title, SVG) of the two coverage maps."""
        return [
            (f"How often a patch is {kind}", draw_coverage(f"coverage-{kind}", rate, f"how often a patch is {kind}"))
            for kind, rate in zip(("context", "target"), self.rates, strict=True)
        ]


def draw_sheet(settings: Mask, grid: tuple[int, int], *, seed: int = 0, num_masks: int = NUM_MASKS, title: str = "") -> MaskSheet:
    """Draw masks and measure coverage. Raises ValueError if the settings do not fit the grid."""
    batches = [sample_masks(settings, grid, BATCH_SIZE, seed=seed, step=step) for step in range(num_masks)]
    drawn = [pictures.colour_masks(masks, grid, 1)[0] for masks in batches]
    coverage = measure_coverage(settings, grid, num_images=NUM_MEASURED, batch_size=BATCH_SIZE, seed=seed)
    shares = (("context", coverage.context_frac), ("targets", coverage.target_frac), ("unseen", coverage.unseen_frac))
    caption = ", ".join(f"{word} {100 * share:.1f}\N{NO-BREAK SPACE}%" for word, share in shares)
    return MaskSheet(title, drawn, coverage.context_rate, coverage.target_rate, caption, batches[0].target_idx.shape[1])


def draw_coverage(name: str, rates: Floats, label: str) -> str:
    """A coverage map (h, w) as an inline SVG with its scale beside it."""
    figure, axes = svg.new_axes((2.9, 2.3))
    _show_rates(figure, axes, rates, float(rates.max()), svg.MUTED)
    return svg.to_svg(figure, name, f"{label}: {100 * rates.min():.0f} to {100 * rates.max():.0f} %")


def save_mask_picture(path: Path, settings: Mask, grid: tuple[int, int], *, title: str, seed: int = 0) -> list[str]:
    """Write a PNG of 12 sampled masks and the coverage maps, and give the captions (one for each way of drawing).

    Multiblock masks are shown unbiased and as released, side by side. Raises ValueError if the settings do not fit the grid.
    """
    if settings.sampler != "multiblock":
        sheets = [draw_sheet(settings, grid, seed=seed, title=f"{settings.sampler} masks")]
    else:
        unbiased, released = (settings.model_copy(update={"fidelity": fidelity}) for fidelity in ("unbiased", "released"))
        sheets = [
            draw_sheet(unbiased, grid, seed=seed, title="unbiased: uniform in position"),
            draw_sheet(released, grid, seed=seed, title="released: as the reference release draws them"),
        ]
    mask_inches = 1.8 * float(np.clip(grid[0] / grid[1], 0.5, 2))
    is_pair = len(sheets) > 1
    size = (15.6, 3 * mask_inches + 4.6) if is_pair else (11.4, 3 * mask_inches + 2.0)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1))
    figure.suptitle(f"Masks of {title}, {grid[0]} x {grid[1]} patches", fontsize=16, color=INK, parse_math=False)
    tops = [max(float(rate.max()) for rate in rates) for rates in zip(*(sheet.rates for sheet in sheets), strict=True)]
    for part, sheet in zip(figure.subfigures(1, len(sheets), wspace=0.04, squeeze=False).flat, sheets, strict=True):
        _draw_part(part, sheet, tops, is_tall=is_pair, mask_inches=mask_inches)
    handles, labels = _list_colours(sheets[0].num_targets)
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=12, labelcolor=INK,
                  handler_map={tuple: HandlerTuple(ndivide=None, pad=0)}, handlelength=2.4)  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white", metadata={"Software": None})
    write_atomic(path, buffer.getvalue())
    return [f"{sheet.title}: {sheet.caption}" for sheet in sheets]


def _draw_part(part: SubFigure, sheet: MaskSheet, tops: list[float], is_tall: bool, mask_inches: float) -> None:
    """Twelve masks and two coverage maps, the maps below (tall) or to the right."""
    part.suptitle(f"{sheet.title}\n{sheet.caption}", fontsize=12, color=INK)
    if is_tall:
        left, right = part.subfigures(2, 1, height_ratios=(3 * mask_inches, 2.4), squeeze=False).flat
    else:
        left, right = part.subfigures(1, 2, width_ratios=(7.6, 3.2), squeeze=False).flat
    for axes, mask in zip(left.subplots(3, 4).flat, sheet.masks, strict=True):
        is_shown = mask[..., 3:] > 0
        axes.imshow(np.where(is_shown, mask[..., :3], np.uint8(255)), interpolation="antialiased", interpolation_stage="rgba")
        axes.set_axis_off()
    maps = right.subplots(1, 2) if is_tall else right.subplots(2, 1)
    for axes, kind, rate, top in zip(maps, ("context", "target"), sheet.rates, tops, strict=True):
        _show_rates(right, axes, rate, top, QUIET)
        axes.set_title(f"How often a patch is {kind}", fontsize=11, color=INK)


def _show_rates(figure: Figure | SubFigure, axes: Any, rates: Floats, top: float, colour: str) -> None:
    """The map with rows and columns counted from 0, and a scale in per cent from 0 to `top`."""
    image = axes.imshow(rates, cmap="cividis", vmin=0, vmax=top, interpolation="none")
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(colors=colour, labelsize=svg.FONT_POINTS, length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10])
    bar = figure.colorbar(image, ax=axes, shrink=0.9, ticks=ticks, format=FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    bar.ax.tick_params(colors=colour, labelsize=svg.FONT_POINTS, length=0)
    bar.outline.set_visible(False)


def _list_colours(num_targets: int) -> tuple[list[Any], list[str]]:
    """Handles and words of the key: context, the colours of the target blocks, unseen."""
    context, unseen, *targets = (
        Patch(color=(colour[0] / 255, colour[1] / 255, colour[2] / 255))
        for colour in (pictures.CONTEXT, pictures.UNSEEN, *pictures.TARGETS[:num_targets])
    )
    return [context, tuple(targets), unseen], ["context", "target blocks", "unseen"]
