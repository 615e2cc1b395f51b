"""The brief's five ablations, with one encoder, one data set and one budget for all rows of a table.

Each table has the brief's rows and, beside what was measured, the brief's claim (ImageNet-1K linear probe, ViT-H/14;
docs/brief.md). Masks cover about the brief's 25 % (context) and 15 % (target) in the table of masks, and are the recipe's
in the others; predictors are to the recipe's own as the brief's to its 384 x 6. I-JEPA predicts features wherever targets
are not the question, whatever the recipe predicts; pixels and their PCA are MAE's. Left out: fine-tuning, and any table
that the brief has not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openjepa.commands.compare import Variant, compare, lengthen, measure_baselines, slug, tabulate
from openjepa.recipe.files import load_recipe
from openjepa.recipe.sections import Momentum, Recipe
from openjepa.runs.folder import write_atomic

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
    one of them. Raises ValueError as compare does.
    """
    if (minutes is None) == (steps is None):
        raise ValueError("a budget is either --minutes or --steps")
    base = lengthen(base) if minutes else base
    common = {"train.max_minutes": minutes, "train.max_steps": steps, "method.name": "ijepa", "method.targets": "features"}
    rows = [
        Row(Variant(row.variant.name, common | row.variant.changes), row.claim, row.claimed_speed)
        for row in list_rows(ablation, base)
    ]
    outcomes = compare(
        [row.variant for row in rows], base, train, test, seeds=seeds, out=out, labels=labels, jobs=jobs, note=note
    )
    chosen = rows[-1].variant.name
    outcomes += measure_baselines([out / f"{slug(chosen)}-{seed}" for seed in range(seeds)], labels or train, test)
    extra = {"the brief's claim": [f"{row.claim:.1f}" for row in rows]}
    if any(row.claimed_speed for row in rows):
        extra["the brief's speed"] = [f"{row.claimed_speed:.1f}" for row in rows]
    length = f"{minutes:g} minutes" if minutes else f"{steps} steps"
    probed = f", probes on {labels}" if labels else ""
    title = f"{ablation}: recipe {base.name}, {train}{probed}, {length} a run, {jobs} at a time"
    table = f"{title}\n\n{tabulate(outcomes, chosen, extra)}\n"
    write_atomic(out / "table.md", table)
    return table


def _masking(_base: Recipe) -> list[Row]:
    shares: dict[str, Any] = {"mask.fidelity": "unbiased", "mask.context_scale": (0.25, 0.25), "mask.target_scale": (0.15, 0.15)}
    solved = load_recipe("brief_vit_base_16_solved").mask
    return [
        Row(Variant("random patches", shares | {"mask.sampler": "random"}), 77.2),
        Row(Variant("one block", shares | {"mask.sampler": "block", "mask.context_aspect": solved.context_aspect}), 78.5),
        Row(Variant("multi-block", {f"mask.{key}": value for key, value in solved.model_dump().items()}), 80.3),
    ]


def _targets(_base: Recipe) -> list[Row]:
    mae: dict[str, Any] = {"method.name": "mae", "method.target_input": "image", "method.target_layers": 1}
    mae |= {f"momentum.{key}": value for key, value in Momentum().model_dump().items()}  # it has no target encoder
    return [
        Row(Variant("pixels", mae | {"method.targets": "pixels", "method.target_norm": "none"}), 76.6, 1.0),
        Row(Variant("normalised pixels", mae | {"method.targets": "pixels", "method.target_norm": "layer"}), 77.2, 1.0),
        Row(Variant("PCA of pixels", mae | {"method.targets": "pca", "method.target_norm": "none"}), 78.1, 0.9),
        Row(Variant("average-pooled features", {"method.targets": "pooled"}), 78.9, 1.2),
        Row(Variant("patch features"), 80.3, 1.5),
    ]


def _momentum(_base: Recipe) -> list[Row]:
    fixed = [
        Row(Variant(f"fixed {value}", {"momentum.schedule": "fixed", "momentum.start": value}), claim)
        for value, claim in ((0.99, 78.5), (0.996, 79.8), (0.999, 79.2))
    ]
    cosine = {"momentum.schedule": "cosine", "momentum.start": 0.996, "momentum.end": 1.0}
    return [*fixed, Row(Variant("cosine 0.996 to 1", cosine), 80.3)]


def _predictor(base: Recipe) -> list[Row]:
    model = base.model
    rows = []
    for width, depth, claim in ((192, 3, 78.9), (768, 12, 79.7), (1024, 12, 78.8), (384, 6, 80.3)):
        unit = 4 * model.predictor_heads
        shape = {
            "model.predictor_width": max(round(model.predictor_width * width / 384 / unit), 1) * unit,
            "model.predictor_depth": max(round(model.predictor_depth * depth / 6), 1),
        }
        name = f"{shape['model.predictor_width']} wide, {shape['model.predictor_depth']} deep (the brief's {width} x {depth})"
        rows.append(Row(Variant(name, shape), claim))
    return rows


def _augmentation(_base: Recipe) -> list[Row]:
    claims = (("none", 79.8), ("moderate", 79.9), ("strong", 78.7), ("minimal", 80.3))
    return [Row(Variant(level, {"data.augmentation": level}), claim) for level, claim in claims]
