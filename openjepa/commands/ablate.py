"""The brief's five ablations, with one encoder, one data set and one budget for all rows of a table.

Each table has the brief's rows and, beside what was measured, the brief's claim (ImageNet-1K linear probe, ViT-H/14;
docs/brief.md). Masks cover about the brief's 25 % (context) and 15 % (target) in the table of masks, and are the recipe's
in the others; predictors are to the recipe's own as the brief's to its 384 x 6. I-JEPA predicts features wherever targets
are not the question, whatever the recipe predicts; pixels and their PCA are MAE's. Left out: fine-tuning, and any table
that the brief lacks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openjepa.commands.compare import describe_exam, run_comparison
from openjepa.commands.rows import Budget, Variant, list_baselines
from openjepa.commands.trials import Exam
from openjepa.data.batch import MAIN
from openjepa.recipe.edit import with_changes
from openjepa.recipe.files import load_recipe
from openjepa.recipe.methods import Masked
from openjepa.recipe.sections import Recipe
from openjepa.recipe.views import ViewGroup
from openjepa.report.league import Words
from openjepa.report.standings import Column

# The paper's linear probe takes the last layer or the last four (2301.08243, A.2).
COLUMNS = (Column("knn"), Column("linear"), Column("linear", 4))
Ablation = Literal["masking", "target", "momentum", "predictor", "augmentation"]


@dataclass(frozen=True)
class Row:
    """A row of one of the brief's tables: the variant and the brief's accuracy in per cent, and its speed where it has one."""

    variant: Variant
    claim: float
    claimed_speed: float | None = None


def list_rows(ablation: Ablation, base: Recipe) -> list[Row]:
    """The rows of a table for a base recipe; the last one is the brief's choice."""
    makers: dict[str, Callable[[Recipe], list[Row]]] = {
        "masking": _masking, "target": _targets, "momentum": _momentum, "predictor": _predictor, "augmentation": _augmentation
    }  # fmt: skip
    return makers[ablation](base)


def ablate(
    ablation: Ablation,
    base: Recipe,
    train: str,
    test: str,
    out: Path,
    *,
    seeds: int,
    labels: str | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    jobs: int = 1,
    note: Callable[[str], None] = lambda _: None,
) -> str:
    """Run a table's rows with every seed and give the table in Markdown, which OUT/table.md holds as well.

    labels: labelled images to fit the probes on; those of train if not given. minutes or steps: the budget of each run; exactly
    one of them. Raises ValueError as run_comparison does.
    """
    budget = Budget(minutes, steps)
    common = {"train.length": budget.length(base), "method.name": "ijepa"}
    rows = list_rows(ablation, base)
    entrants = [row.variant.over(base, common) for row in rows]
    chosen = entrants[-1]
    extra = {"the brief's claim": {row.variant.name: f"{row.claim:.1f}" for row in rows}}
    if any(row.claimed_speed for row in rows):
        extra["the brief's speed"] = {row.variant.name: f"{row.claimed_speed:.1f}" for row in rows}
    exam = Exam(train, labels or train, test, COLUMNS)
    probed = f", probes on {labels}" if labels else ""
    title = f"{ablation}: recipe {base.name}, {train}{probed}, {budget} a run, {jobs} at a time"
    words = Words(title, describe_exam(exam), extra=extra)
    return run_comparison([*entrants, *list_baselines(chosen)], exam, range(seeds), out, chosen.name, words, jobs=jobs, note=note)


def _masking(_base: Recipe) -> list[Row]:
    shares = {"fidelity": "unbiased", "context_scale": (0.25, 0.25), "target_scale": (0.15, 0.15)}
    solved = load_recipe("brief_vit_base_16_solved").views[MAIN].mask
    assert solved is not None

    def variant(name: str, values: dict[str, Any]) -> Variant:
        return Variant(name, {f"views.{MAIN}.mask.{key}": value for key, value in values.items()})

    return [
        Row(variant("random patches", shares | {"sampler": "random"}), 77.2),
        Row(variant("one block", shares | {"sampler": "block", "context_aspect": solved.context_aspect}), 78.5),
        Row(variant("multi-block", solved.model_dump()), 80.3),
    ]


def _targets(_base: Recipe) -> list[Row]:
    mae = {"method.name": "mae"}
    return [
        Row(Variant("pixels", mae | {"method.targets": "pixels"}), 76.6, 1.0),
        Row(Variant("normalised pixels", mae | {"method.targets": "normalised_pixels"}), 77.2, 1.0),
        Row(Variant("PCA of pixels", mae | {"method.targets": "pca"}), 78.1, 0.9),
        Row(Variant("average-pooled features", {"method.pool_targets": True}), 78.9, 1.2),
        Row(Variant("patch features", {"method.pool_targets": False}), 80.3, 1.5),
    ]


def _momentum(_base: Recipe) -> list[Row]:
    fixed = [
        Row(Variant(f"fixed {value}", {"method.momentum.schedule": "fixed", "method.momentum.start": value}), claim)
        for value, claim in ((0.99, 78.5), (0.996, 79.8), (0.999, 79.2))
    ]
    cosine = {"method.momentum.schedule": "cosine", "method.momentum.start": 0.996, "method.momentum.end": 1.0}
    return [*fixed, Row(Variant("cosine 0.996 to 1", cosine), 80.3)]


def _predictor(base: Recipe) -> list[Row]:
    own = with_changes(base, {"method.name": "ijepa"}).method
    assert isinstance(own, Masked)
    rows = []
    for width, depth, claim in ((192, 3, 78.9), (768, 12, 79.7), (1024, 12, 78.8), (384, 6, 80.3)):
        unit = 4 * own.predictor.heads
        wide = max(round(own.predictor.width * width / 384 / unit), 1) * unit
        deep = max(round(own.predictor.depth * depth / 6), 1)
        name = f"{wide} wide, {deep} deep (the brief's {width} x {depth})"
        rows.append(Row(Variant(name, {"method.predictor.width": wide, "method.predictor.depth": deep}), claim))
    return rows


def _augmentation(_base: Recipe) -> list[Row]:
    """Levels of the brief: no crops; crops and flips; colour as well; blur and solarize as well."""
    cropped = {"crop_scale": ViewGroup().crop_scale, "flip": 0.5, "colour": 0.0, "blur": 0.0, "solarize": 0.0}
    levels = [
        ("none", cropped | {"crop_scale": None, "flip": 0.0}, 79.8),
        ("moderate", cropped | {"colour": 0.8}, 79.9),
        ("strong", cropped | {"colour": 0.8, "blur": 0.5, "solarize": 0.2}, 78.7),
        ("minimal", cropped, 80.3),
    ]
    return [
        Row(Variant(level, {f"views.{MAIN}.{key}": value for key, value in values.items()}), claim)
        for level, values, claim in levels
    ]
