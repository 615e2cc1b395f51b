"""`openjepa energy`: the prediction error of every image and patch under a run's masks, as tables and heat maps.

OUT/energy.parquet has a row for each image that could be read: path, label (where images have one), energy, standard_error,
draws, reached (whether the standard error is the share asked for). OUT/patches.parquet has the energies of patches in the same
order, row by row of the grid that its metadata names; NaN where no draw hid a patch. OUT/maps has pictures of the images of the
highest energies, named by rank and row. The folder is written whole or not at all.

With defects the images have a class folder normal or good and others (data/defects.py). OUT/scores.json then says how well the
energy tells them apart, beside the energies of an MAE run and the distance to normal training images, where these are given: a
list of records, which the run folders keep too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int64
from pyarrow import parquet

from openjepa.commands.evaluate import evaluate, keep_record, make_record
from openjepa.data.defects import DefectSource, open_defects
from openjepa.data.left_out import describe_left_out, describe_skipped, write_left_out, write_skipped
from openjepa.data.sources import ImageSource, absolute_spec, open_source, printable
from openjepa.data.views import evaluation_view
from openjepa.engine.precision import pick_device
from openjepa.evals.anomaly import Suspicion, score_suspicion
from openjepa.evals.encoders import open_encoder
from openjepa.evals.energy import Drawing, Energies, measure_energy, require_masked
from openjepa.evals.pictures import colour_map, draw_heat, put_side_by_side, to_rgb, write_picture
from openjepa.evals.segmentation import shrink_map
from openjepa.evals.task import TaskSettings
from openjepa.runs.atomic import whole
from openjepa.runs.folder import Row, write_json
from openjepa.runs.paths import absolute_path, user_path
from openjepa.runs.version import __version__
from openjepa.weights.load import TrainedMethod, find_checkpoint, load_method, load_reading

HOTTEST = 0.995  # the quantile of patches' energies that is drawn brightest; what lies above would darken all others
NUM_MAPS = 24
DEFAULTS = Drawing()


class Defects(NamedTuple):
    """What defects are scored with. maps: their folder, where it is not found; normal: training images; mae: a run of MAE."""

    maps: str | None = None
    normal: str | None = None
    mae: str | Path | None = None


def energy(
    run: str | Path,
    images: str,
    out: str | Path,
    *,
    drawing: Drawing = DEFAULTS,
    maps: int = NUM_MAPS,
    defects: Defects | None = None,
    device: str = "auto",
    note: Callable[[str], None] = lambda words: print(f"openjepa: {words}", file=sys.stderr),
) -> list[str]:
    """Write tables and heat maps of the energies of images; gives a line of summary, and one a score of defects.

    maps: how many images are drawn, those of the highest energy. defects: score how well they are told from normal images.
    note: is told what was passed over or could not be read. ValueError if the run predicts nothing under a mask, the images
    cannot be read, or the folder exists.
    """
    folder = require_new(out)
    if maps < 0:
        raise ValueError(f"--maps must be at least 0, not {maps}")
    place = pick_device(device)
    subjects = [open_subject(run, images, defects)]
    if defects is not None and defects.mae is not None:
        subjects.append(open_subject(defects.mae, images, defects))
        if (name := subjects[1].trained.recipe.method.name) != "mae":
            raise ValueError(f"--mae {defects.mae} is a run of {name}, not of mae")
    energies = [
        measure_energy(subject.trained, subject.source, drawing, device=place, label=f"energy by {subject.run}")
        for subject in subjects
    ]
    trained, source, measured = subjects[0].trained, subjects[0].source, energies[0]
    records = [] if defects is None else score_defects(subjects, energies, images, defects, str(place), note)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole(folder) as temporary:
        write_energies(temporary, measured, source, describe_source(run, source, drawing))
        draw_maps(temporary / "maps", measured, source, trained.recipe.data.size, rank_energies(measured)[:maps])
        if records:
            write_json(temporary / "scores.json", {"records": records})
    for line in (*describe_skipped(measured.skipped, len(source), folder / "skipped.txt"), *describe_left_out(source)):
        note(line)
    return [summarise(measured), *(f"{record['encoder']}: {record['words']}" for record in records)]


class Subject(NamedTuple):
    """A run whose energies are measured, and the images as it reads them."""

    run: str | Path
    trained: TrainedMethod
    source: ImageSource


def open_subject(run: str | Path, images: str, defects: Defects | None) -> Subject:
    """ValueError if the run predicts nothing under a mask, or the images cannot be read."""
    trained = load_method(find_checkpoint(run))
    require_masked(trained)
    channels, reading = trained.recipe.data.channels, load_reading(run)
    source = open_source(images, channels, reading) if defects is None else open_defects(images, channels, defects.maps, reading)
    return Subject(run, trained, source)


def score_defects(
    subjects: list[Subject],
    energies: list[Energies],
    images: str,
    defects: Defects,
    device: str,
    note: Callable[[str], None],
) -> list[Row]:
    """Records of how well defects are found, by energies and by distance to normal images; run folders keep them too."""
    settings = TaskSettings(test_annotations=defects.maps)
    records = []
    for (run, trained, source), measured in zip(subjects, energies, strict=True):
        assert isinstance(source, DefectSource)
        drawing = measured.drawing
        found = score_suspicion("anomaly", suspect(measured), source, trained.recipe.data.size, drawing.seed)
        details = found.details | {"share": drawing.share, "most_draws": drawing.most}
        outcome = replace(found, hyper_parameters={"draws": int(measured.draws.max())}, details=details)
        subject = open_encoder(run, images, device=device)._replace(name=f"energy-{trained.recipe.method.name}")
        records.append(make_record(outcome, subject, defects.normal or images, images, settings))
        if subject.run is not None:
            keep_record(subject.run, records[-1], note)
    if defects.normal is not None:
        seed = energies[0].drawing.seed
        records.append(evaluate(subjects[0].run, "anomaly", defects.normal, images, settings=settings, seed=seed, device=device))
    return records


def suspect(measured: Energies) -> Suspicion:
    """Energies as suspicion; a patch that no draw hid has its image's."""
    patches = measured.patches.astype(np.float64)
    return Suspicion(measured.energy, np.where(np.isnan(patches), measured.energy[:, None, None], patches), measured.image_idx)


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
    """A picture of some rows each: the view of the image, its patches' energies over it, all on one scale, and its defect."""
    known = measured.patches[~np.isnan(measured.patches)]
    lowest, highest = float(known.min()), float(np.quantile(known, HOTTEST))
    for rank, row in enumerate(rows.tolist(), start=1):
        index = int(measured.image_idx[row])
        view = evaluation_view(source.open(index), size).transpose(1, 2, 0)
        panels = [to_rgb(view), draw_heat(view, measured.patches[row], lowest, highest)]
        defect = source.read_defect(index) if isinstance(source, DefectSource) else None
        if defect is not None:
            panels.append(colour_map(shrink_map(defect.astype(np.uint8), size, size), 0))
        write_picture(folder / f"{rank:04d}-row-{row}.png", put_side_by_side(panels))


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
