"""Sampled masks and measured coverage of mask settings: for the report, and as the picture that `openjepa masks` writes.

A batch of multiblock masks shares its block shapes, so each mask shown is the first of a batch of its own. Multiblock
settings are pictured twice, with unbiased draws and with the release's. The release cuts every context to the shortest of its
batch by dropping the last patches, so the larger the batch the less it sees of the lower rows: the picture says how large it is.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from openjepa.masks import check_masks, measure_coverage, sample_masks
from openjepa.recipe.views import Mask
from openjepa.report import pictures, svg
from openjepa.report.pictures import Floats, Pixels
from openjepa.runs.atomic import write_atomic

NUM_MASKS = 12
NUM_BATCHES = 200  # measured; a batch of multiblock masks is one draw of the shapes
BATCH_SIZE = 256
LABELLED_ROWS = 20  # more have no room for a number each
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
    def rows(self) -> str:
        """How often a patch of each row is context, in words."""
        return "context by row, top to bottom: " + " ".join(f"{rate:.2f}" for rate in self.context_rate.mean(axis=1))

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


def draw_sheet(
    settings: Mask,
    grid: tuple[int, int],
    *,
    seed: int = 0,
    num_masks: int = NUM_MASKS,
    title: str = "",
    batch_size: int = BATCH_SIZE,
) -> MaskSheet:
    """Draw masks and measure coverage in batches of batch_size. Raises ValueError if the settings do not fit the grid."""
    batches = [sample_masks(settings, grid, batch_size, seed=seed, step=step) for step in range(num_masks)]
    drawn = [pictures.colour_masks(masks, grid, 1)[0] for masks in batches]
    coverage = measure_coverage(settings, grid, num_images=NUM_BATCHES * batch_size, batch_size=batch_size, seed=seed)
    shares = (("context", coverage.context_frac), ("targets", coverage.target_frac), ("unseen", coverage.unseen_frac))
    caption = ", ".join(f"{word} {100 * share:.1f}\N{NO-BREAK SPACE}%" for word, share in shares)
    return MaskSheet(title, drawn, coverage.context_rate, coverage.target_rate, caption, batches[0].target_idx.shape[1])


def draw_sheets(
    settings: Mask, grid: tuple[int, int], *, seed: int = 0, batch_size: int = BATCH_SIZE
) -> tuple[list[MaskSheet], str]:
    """The sheets of a mask picture, multiblock masks both unbiased and as released; and, in words, what is missing and why.

    Raises ValueError if the settings do not fit the grid; where only the release's draws do not, they are left out.
    """
    if batch_size < 1:
        raise ValueError(f"--batch-size {batch_size} draws no masks; use 1 or more")
    if settings.sampler != "multiblock":
        return [draw_sheet(settings, grid, seed=seed, title=f"{settings.sampler} masks")], ""
    unbiased, released = (settings.model_copy(update={"fidelity": fidelity}) for fidelity in ("unbiased", "released"))
    sheets = [
        draw_sheet(unbiased, grid, seed=seed, title="unbiased: uniform in position, contexts padded", batch_size=batch_size)
    ]
    try:
        check_masks(released, grid)
    except ValueError as reason:
        if settings == released:
            raise
        return sheets, f"released masks are left out: {reason}"
    title = f"released: no last row or column, contexts cut to the shortest of {batch_size}"
    return [*sheets, draw_sheet(released, grid, seed=seed, title=title, batch_size=batch_size)], ""


def draw_coverage(name: str, rates: Floats, label: str) -> str:
    """A coverage map (h, w) as an inline SVG with its scale beside it."""
    figure, axes = svg.new_axes((2.9, 2.3))
    _show_scale(figure, axes, _show_rates(axes, rates, float(rates.max()), svg.MUTED), svg.MUTED)
    return svg.to_svg(figure, name, f"{label}: {100 * rates.min():.0f} to {100 * rates.max():.0f} %")


def save_mask_picture(path: Path, sheets: list[MaskSheet], grid: tuple[int, int], *, title: str) -> None:
    """Write a PNG of the sheets side by side: sampled masks above, coverage of every patch and row below."""
    mask_inches = 1.8 * float(np.clip(grid[0] / grid[1], 0.5, 2))
    map_inches = 2.3 * float(np.clip(grid[0] / grid[1], 0.6, 1.6))
    size = (7.8 * len(sheets), 3 * mask_inches + map_inches + 2.4)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1))
    figure.suptitle(f"Masks of {title}, {grid[0]} x {grid[1]} patches", fontsize=16, color=INK, parse_math=False)
    for part, sheet in zip(figure.subfigures(1, len(sheets), wspace=0.04, squeeze=False).flat, sheets, strict=True):
        _draw_part(part, sheet, height_ratios=(3 * mask_inches, map_inches + 0.6))
    handles, labels = _list_colours(sheets[0].num_targets)
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=12, labelcolor=INK,
                  handler_map={tuple: HandlerTuple(ndivide=None, pad=0)}, handlelength=2.4)  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white", metadata={"Software": None})
    write_atomic(path, buffer.getvalue())


def _draw_part(part: SubFigure, sheet: MaskSheet, height_ratios: tuple[float, float]) -> None:
    """Twelve masks, and below them the two coverage maps with one scale from 0 to 100 %."""
    part.suptitle(f"{sheet.title}\n{sheet.caption}", fontsize=12, color=INK)
    above, below = part.subfigures(2, 1, height_ratios=height_ratios, squeeze=False).flat
    for axes, mask in zip(above.subplots(3, 4).flat, sheet.masks, strict=True):
        is_shown = mask[..., 3:] > 0
        axes.imshow(np.where(is_shown, mask[..., :3], np.uint8(255)), interpolation="antialiased", interpolation_stage="rgba")
        axes.set_axis_off()
    maps = below.subplots(1, 2)
    for axes, kind, rate in zip(maps, ("context", "target"), sheet.rates, strict=True):
        image = _show_rates(axes, rate, 1.0, QUIET)
        axes.set_title(f"{kind.capitalize()} rate", fontsize=11, color=INK, loc="left")
        _show_rows(axes, rate.mean(axis=1))
    _show_scale(below, maps, image, QUIET)


def _show_rates(axes: Axes, rates: Floats, top: float, colour: str) -> AxesImage:
    """The map, in colours from 0 to `top`, with rows and columns counted from 0."""
    image = axes.imshow(rates, cmap="cividis", vmin=0, vmax=top, interpolation="none")
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(colors=colour, labelsize=svg.FONT_POINTS, length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    return image


def _show_rows(axes: Axes, rates: Floats) -> None:
    """The mean of each row beside its map, as a bar in the map's colours with its per cent."""
    bars = axes.inset_axes((1.04, 0, 0.5, 1), sharey=axes)
    bars.barh(np.arange(len(rates)), rates, height=0.86, color=colormaps["cividis"](rates))
    bars.set_xlim(0, 1)
    bars.set_axis_off()
    bars.set_title("by row, %", fontsize=svg.FONT_POINTS, color=QUIET, loc="left", pad=4)
    if len(rates) <= LABELLED_ROWS:
        for row, rate in enumerate(rates):
            bars.text(
                rate + 0.04,
                row,
                f"{100 * rate:.0f}",
                va="center",
                fontsize=min(7, 140 / max(axes.images[0].get_size())),
                color=QUIET,
            )


def _show_scale(figure: Figure | SubFigure, axes: Any, image: AxesImage, colour: str) -> None:
    """The colours' scale in per cent, to the right of the axes."""
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
