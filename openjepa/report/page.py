"""The report: one self-contained RUN/report.html from a run folder's plain files, written whole or not at all.

Whatever is missing is said in words. Every word that comes from files passes through Jinja2's autoescape; only our own SVG does
not. The page loads nothing: its policy allows inline styles and data: images and nothing else. Model pictures are handed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from openjepa.recipe.check import build_recipe
from openjepa.recipe.edit import list_sections
from openjepa.recipe.methods import Masked
from openjepa.recipe.sections import Recipe
from openjepa.report import figures, pictures, tables, words
from openjepa.report.masks import MaskSheet, draw_sheet
from openjepa.report.pictures import Pictures
from openjepa.runs.atomic import write_atomic
from openjepa.runs.folder import Row, RunFolder, read_json

NUM_SKIPPED_SHOWN = 10


def build_report(
    run: RunFolder, shown: Pictures | None = None, thresholds: Mapping[str, float] | None = None, out: Path | None = None
) -> Path:
    """Write RUN/report.html, or `out`, and give its path.

    shown holds what needs the model; thresholds are the verdict's levels, keyed by metric (effective_rank_pooled, image_cosine,
    explained_variance, feature_variance, grad_norm). Raises ValueError if the folder holds no run or run.json is damaged.
    """
    facts = run.read_run()
    shown, thresholds = shown or Pictures(), thresholds or {}
    train_rows, health_rows = run.read_metrics("train"), run.read_metrics("health")
    records, unreadable = read_records(run)
    verdict, verdict_problem = _read_verdict(run)
    skipped = read_skipped(run)
    recipe, recipe_problem = _read_recipe(facts)
    has_target = recipe is None or hasattr(recipe.method, "momentum")
    probe_tables = tables.tabulate_probes([record for _, record in records], has_target)
    hides = recipe is None or recipe.mask is not None
    sheet, mask_problem = _draw_masks(recipe) if hides and recipe else (None, recipe_problem)
    html = open_template("template.html").render(
        name=str(facts.get("name") or run.path.name),
        data=str(facts.get("data", "data not recorded")),
        folder=str(run.path),
        verdict=words.word_verdict(verdict, health_rows),
        verdict_problem=verdict_problem,
        tables=[
            (
                table,
                mark_chart(figures.draw_accuracies(table, f"table-{place}")),
                [mark_chart(figures.draw_curves(drawn, f"labels-{place}-{n}")) for n, drawn in enumerate(table.curves)],
            )
            for place, table in enumerate(probe_tables)
        ],
        records=records,
        unreadable=unreadable,
        observations=words.observe(probe_tables, train_rows, health_rows, thresholds),
        curves=_draw_curves(run, train_rows, health_rows, thresholds, recipe),
        sheet=sheet,
        coverage=[(title, Markup(drawing)) for title, drawing in sheet.maps] if sheet else [],
        colours={"context": pictures.CONTEXT, "targets": pictures.TARGETS, "unseen": pictures.UNSEEN},
        mask_problem=mask_problem,
        maps=_map_patches(shown),
        neighbours=_show_neighbours(shown),
        beliefs=_show_beliefs(shown, recipe is None or isinstance(recipe.method, Masked)),
        encoder=shown.encoder,
        contact_sheet=None if shown.contact_sheet is None else pictures.to_data_address(shown.contact_sheet),
        facts=tables.list_facts(facts, train_rows, len(skipped)),
        recipe=yaml.safe_dump(facts["recipe"], sort_keys=False, width=100) if "recipe" in facts else None,
        skipped=skipped,
        num_skipped_shown=NUM_SKIPPED_SHOWN,
    )
    path = out or run.report
    try:
        write_atomic(path, html.encode("utf-8", "backslashreplace"))  # a file name may hold bytes that are no text
    except OSError as error:
        raise OSError(f"{path} could not be written: {error.strerror}; name another file with --out") from None
    return path


def open_template(name: str) -> Template:
    """A page of this folder, whose every word from a file is escaped and whose every gap is an error."""
    loader = FunctionLoader(lambda part: (resources.files("openjepa.report") / part).read_text("utf-8"))
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(name)


def read_records(run: RunFolder) -> tuple[list[tuple[str, Row]], list[str]]:
    """Evaluation records as (file name, record), and one line for each file that cannot be shown."""
    records, unreadable = [], []
    for path in sorted(run.evals.glob("*.json")):
        try:
            record = tables.read_version_0_1(read_json(path))
        except ValueError:
            unreadable.append(f"{path.name}: not a JSON object")
            continue
        problem = tables.check_record(record)
        if problem:
            unreadable.append(f"{path.name}: {problem}")
        else:
            records.append((path.name, record))
    return keep_newest(records), unreadable


def keep_newest(records: Sequence[tuple[str, Row]]) -> list[tuple[str, Row]]:
    """Of records that ask the same question of several checkpoints of the run, that of the latest step."""
    latest: dict[tuple[Any, ...], tuple[str, Row]] = {}
    for name, record in records:
        data = (record.get(f"{part}_path", record.get(part)) for part in ("train", "test"))
        question = (
            record["task"],
            record["encoder"],
            record.get("layers", 1),
            record.get("seed"),
            record.get("accuracy_asked"),
            *data,
        )
        if question not in latest or record.get("step", -1) >= latest[question][1].get("step", -1):
            latest[question] = name, record
    return list(latest.values())


def read_skipped(run: RunFolder) -> list[tuple[str, str]]:
    """Path and reason of each unreadable image file, each path once."""
    if not run.skipped.is_file():
        return []
    lines = run.skipped.read_text("utf-8", errors="backslashreplace").split("\n")
    pairs = [line.partition("\t") for line in lines if line]
    return list({path: reason for path, _, reason in pairs}.items())


def _read_verdict(run: RunFolder) -> tuple[Row | None, str]:
    """verdict.json, or None and why."""
    if not run.verdict_json.is_file():
        return None, ""
    try:
        return read_json(run.verdict_json), ""
    except ValueError:
        return None, "verdict.json is damaged."


def _read_recipe(facts: Row) -> tuple[Recipe | None, str]:
    """The run's recipe, or None and why no masks can be drawn."""
    if "recipe" not in facts:
        return None, "run.json holds no recipe, so there are no masks to draw."
    try:
        return build_recipe(facts["recipe"], where="run.json"), ""
    except ValueError as error:
        return None, f"No masks can be drawn: {error}"


def _draw_masks(recipe: Recipe) -> tuple[MaskSheet | None, str]:
    """Masks drawn with the run's recipe, or None and why there are none."""
    assert recipe.mask is not None
    try:
        return draw_sheet(recipe.mask, recipe.grid, seed=recipe.train.seed), ""
    except ValueError as error:
        return None, f"No masks can be drawn: {error}"


def _draw_curves(
    run: RunFolder,
    train_rows: list[Row],
    health_rows: list[Row],
    thresholds: Mapping[str, float],
    recipe: Recipe | None,
) -> list[dict[str, Any]]:
    """Groups of charts, each with a heading and words on what was not measured."""
    probe = figures.draw_plans(figures.PROBE_PLANS, run.read_metrics("probe"), {})
    loss = figures.draw_loss(train_rows)
    training = ([loss] if loss else []) + figures.draw_plans(figures.TRAINING_PLANS, train_rows, thresholds)
    health = figures.draw_plans(figures.HEALTH_PLANS, health_rows, thresholds) + probe
    schedules = figures.draw_plans(figures.SCHEDULE_PLANS, train_rows, {})
    has = set() if recipe is None else list_sections(recipe.model_dump())
    expected = [plan for plan in figures.HEALTH_PLANS if recipe is None or not plan.needs or plan.needs in has]
    missing = figures.name_unmeasured(expected, health_rows) if health_rows else []
    nothing = "" if loss else "No logged step has a finite loss." if train_rows else "No training step has been logged yet."
    groups = (
        ("Training", training, nothing),
        ("Health", health, f"Not measured: {', '.join(missing)}." if missing else "" if health_rows else "Not measured yet."),
        ("Schedules", schedules, "" if schedules else "Not logged." if train_rows else "No training step has been logged yet."),
    )
    return [
        {"title": title, "charts": [mark_chart(chart) for chart in charts], "missing": text} for title, charts, text in groups
    ]


def mark_chart(chart: figures.Chart | None) -> tuple[figures.Chart, Markup] | None:
    """The chart with its SVG marked as safe: it is our own and holds no word from a file but through matplotlib's escape."""
    return None if chart is None else (chart, Markup(chart.svg))


def _map_patches(shown: Pictures) -> dict[str, Any]:
    """Image and PCA map side by side as data addresses, or why there are none."""
    if shown.pca_images is None or shown.pca_patches is None:
        return {"pairs": [], "problem": "No patch features were given to this report."}
    try:
        colours = pictures.colour_patches(np.asarray(shown.pca_patches))
    except ValueError as error:
        return {"pairs": [], "problem": f"No maps: {error}."}
    pairs = []
    for image, colour in zip(shown.pca_images, colours, strict=True):
        small = pictures.thumbnail(image)
        pairs.append((pictures.to_data_uri(small), pictures.to_data_uri(pictures.enlarge(colour, len(small)))))
    return {"pairs": pairs, "problem": ""}


def _show_beliefs(shown: Pictures, predicts: bool) -> dict[str, Any]:
    """Rows of an image, what the encoder saw of it, and what the predictor believes, or why there are none."""
    found = shown.beliefs
    if found is None:
        problem = shown.beliefs_problem or ("No predictions were given to this report." if predicts else "")
        return {"rows": [], "problem": problem, "is_drawn": False}
    rows = []
    for image, filled, context, target in zip(
        found.images, found.filled, found.context_mask, found.target_mask, strict=True
    ):  # fmt: skip
        drawn = (
            pictures.draw_patches(image, np.ones_like(target), target),
            pictures.draw_patches(image, context, target),
            pictures.draw_patches(filled, context | target, target),
        )
        rows.append([pictures.to_data_uri(picture) for picture in drawn])
    return {"rows": rows, "problem": "", "is_drawn": found.is_drawn}


def _show_neighbours(shown: Pictures) -> dict[str, Any]:
    """Rows of a query and its neighbours, or why there are none."""
    found = shown.neighbours
    if found is None:
        return {"rows": [], "problem": "No neighbours were given to this report.", "summary": "", "is_held_out": False}
    rows = []
    for query, images in enumerate(found.neighbour_images):
        cells = []
        for place, image in enumerate(images):
            is_match = None if found.match_mask is None else bool(found.match_mask[query][place])
            cosine = None if found.cosines is None else float(found.cosines[query][place])
            cells.append({"uri": pictures.to_data_uri(pictures.thumbnail(image)), "is_match": is_match, "cosine": cosine})
        rows.append({"query": pictures.to_data_uri(pictures.thumbnail(found.query_images[query])), "cells": cells})
    section = {"rows": rows, "problem": "", "is_held_out": found.is_held_out, "num_searched": found.num_searched}
    if found.match_mask is None:
        return section | {"summary": ""}
    matches, total = int(found.match_mask.sum()), found.match_mask.size
    return section | {"summary": f"{matches} of the {total} neighbours shown have their query's class."}
