"""`openjepa energy`: the prediction error of every image and patch under a run's masks, as tables and heat maps.

OUT/energy.parquet has a row for each image that could be read: path, label (where images have one), energy, standard_error,
draws, reached (whether the standard error is the share asked for). OUT/patches.parquet has the energies of patches in the same
order, row by row of the grid that its metadata names; NaN where no draw hid a patch. OUT/maps has pictures of the images of the
highest energies, named by rank and row. The folder is written whole or not at all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int64
from pyarrow import parquet

from openjepa.data.left_out import describe_left_out, describe_skipped, write_left_out, write_skipped
from openjepa.data.sources import ImageSource, absolute_spec, open_source, printable
from openjepa.data.views import evaluation_view
from openjepa.engine.precision import pick_device
from openjepa.evals.energy import Drawing, Energies, measure_energy, require_masked
from openjepa.evals.pictures import draw_heat, put_side_by_side, to_rgb, write_picture
from openjepa.runs.atomic import whole
from openjepa.runs.paths import absolute_path, user_path
from openjepa.runs.version import __version__
from openjepa.weights.load import find_checkpoint, load_method, load_reading

HOTTEST = 0.995  # the quantile of patches' energies that is drawn brightest; what lies above would darken all others
NUM_MAPS = 24
DEFAULTS = Drawing()


def energy(
    run: str | Path,
    images: str,
    out: str | Path,
    *,
    drawing: Drawing = DEFAULTS,
    maps: int = NUM_MAPS,
    device: str = "auto",
    note: Callable[[str], None] = lambda words: print(f"openjepa: {words}", file=sys.stderr),
) -> str:
    """Write tables and heat maps of the energies of images; gives a line of summary.

    maps: how many images are drawn, those of the highest energy. note: is told what was passed over or could not be read.
    ValueError if the run predicts nothing under a mask, the images cannot be read, or the folder exists.
    """
    folder = require_new(out)
    if maps < 0:
        raise ValueError(f"--maps must be at least 0, not {maps}")
    place = pick_device(device)
    trained = load_method(find_checkpoint(run))
    require_masked(trained)
    source = open_source(images, trained.recipe.data.channels, load_reading(run))
    measured = measure_energy(trained, source, drawing, device=place, label="energy")
    facts = describe_source(run, source, drawing)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole(folder) as temporary:
        write_energies(temporary, measured, source, facts)
        draw_maps(temporary / "maps", measured, source, trained.recipe.data.size, rank_energies(measured)[:maps])
    for line in (*describe_skipped(measured.skipped, len(source), folder / "skipped.txt"), *describe_left_out(source)):
        note(line)
    return summarise(measured)


def require_new(out: str | Path) -> Path:
    """The folder to write. ValueError if it exists."""
    folder = user_path(out)
    if folder.exists() or folder.is_symlink():
        raise ValueError(f"{folder} exists; name a new folder")
    return folder


def describe_source(run: str | Path, source: ImageSource, drawing: Drawing) -> dict[str, str]:
    """What the energies are of, for the metadata of tables."""
    return {
        "run": printable(absolute_path(run)),
        "data": printable(absolute_spec(source.spec)),
        "seed": str(drawing.seed),
        "share": f"{drawing.share:g}",
        "most_draws": str(drawing.most),
        "version": __version__,
    }


def write_energies(folder: Path, measured: Energies, source: ImageSource, facts: dict[str, str]) -> None:
    """energy.parquet, patches.parquet and the lists of files that have no row, into a new folder."""
    folder.mkdir()
    numbers = measured.image_idx.tolist()
    paths = pa.array([source.path(number) for number in numbers], pa.string())
    columns = {"path": paths}
    if source.labels is not None:
        columns["label"] = pa.array([source.classes[source.labels[number]] for number in numbers], pa.string())
    columns["energy"] = pa.array(measured.energy)
    columns["standard_error"] = pa.array(measured.standard_error)
    columns["draws"] = pa.array(measured.draws)
    columns["reached"] = pa.array(measured.reached)
    down, across = measured.patches.shape[1:]
    rows = pa.FixedSizeListArray.from_arrays(pa.array(measured.patches.reshape(-1)), down * across)
    for name, table in (("energy", columns), ("patches", {"path": paths, "patches": rows})):
        metadata = facts | ({"grid": f"{down} x {across}"} if name == "patches" else {})
        written = pa.table(table, metadata={f"openjepa.{key}": value for key, value in metadata.items()})
        parquet.write_table(written, folder / f"{name}.parquet", compression="zstd")
    write_skipped(measured.skipped, folder / "skipped.txt")
    write_left_out(source, folder / "left_out.txt")


def rank_energies(measured: Energies) -> Int64[np.ndarray, " images"]:
    """Rows by energy, the highest first."""
    return np.argsort(-measured.energy, kind="stable")


def draw_maps(
    folder: Path, measured: Energies, source: ImageSource, size: tuple[int, int], rows: Int64[np.ndarray, " drawn"]
) -> None:
    """A picture of some rows each: the view of the image, and its patches' energies over it, all on one scale."""
    known = measured.patches[~np.isnan(measured.patches)]
    lowest, highest = float(known.min()), float(np.quantile(known, HOTTEST))
    for rank, row in enumerate(rows.tolist(), start=1):
        view = evaluation_view(source.open(int(measured.image_idx[row])), size).transpose(1, 2, 0)
        heat = draw_heat(view, measured.patches[row], lowest, highest)
        write_picture(folder / f"{rank:04d}-row-{row}.png", put_side_by_side([to_rgb(view), heat]))


def summarise(measured: Energies) -> str:
    """Energies, draws and what did not reach the share, in a line."""
    energies, drawing = measured.energy, measured.drawing
    late = int((~measured.reached).sum())
    reached = "all" if not late else f"all but {late}"
    return (
        f"Energy of {len(energies)} images: median {np.median(energies):.4g}, from {energies.min():.4g} to {energies.max():.4g}. "
        f"Masks an image: {measured.draws.min()} to {measured.draws.max()}, {np.median(measured.draws):g} in the median; "
        f"{reached} reached a standard error of {drawing.share:.3g} of the energy."
    )
