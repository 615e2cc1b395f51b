"""What makes I-JEPA learn on small data: a table a question, same encoder, data, steps or minutes, and seeds.

    python benchmarks/small_data.py regulariser masks --steps 400 --seeds 3 --jobs 2 --out runs/study
    python benchmarks/small_data.py rivals --minutes 30 --seeds 3 --out runs/rivals

Writes OUT/QUESTION.md (the tables of docs/small-data.md) beside a run folder for each row and seed, and prints one JSON line.
Questions of one budget share a folder, and so the runs of the recipe as it is. Run again, it goes on where it stopped.
Without --data it takes Fashion-MNIST in ../shared: 60,000 images, all labels for the probes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from openjepa.commands.ablate import COLUMNS
from openjepa.commands.auto import choose
from openjepa.commands.compare import describe_exam
from openjepa.commands.rows import Budget, Entrant, Variant, list_baselines
from openjepa.commands.trials import Exam, check_trials, list_trials, run_trials, share_cores
from openjepa.data.batch import MAIN
from openjepa.data.sources import name_held_out
from openjepa.engine.precision import pick_device
from openjepa.recipe.edit import flatten, with_changes
from openjepa.recipe.files import AUTO, load_recipe
from openjepa.recipe.sections import Recipe
from openjepa.report.league import Words, to_markdown
from openjepa.report.standings import Result, Standings, list_scores
from openjepa.runs.atomic import write_atomic
from openjepa.runs.environment import describe_machine, describe_versions

FASHION = "fashion-mnist:../shared/data/fashion-mnist:train"


def masked(**changes: Any) -> dict[str, Any]:
    """Keys of the masks."""
    return {f"views.{MAIN}.mask.{key}": value for key, value in changes.items()}


def cut(crop_scale: tuple[float, float] | None, flip: float) -> dict[str, Any]:
    """Keys of how views are cut."""
    return {f"views.{MAIN}.crop_scale": crop_scale, f"views.{MAIN}.flip": flip}


def act(name: str, weight: float, place: str) -> dict[str, Any]:
    """A regulariser's keys."""
    return {"method.regularizer.name": name, "method.regularizer.weight": weight, "method.regularizer.acts_on": place}


def follow(schedule: str, start: float, end: float = 1.0) -> dict[str, Any]:
    """I-JEPA's keys, with this momentum."""
    momentum = {"schedule": schedule, "start": start, "end": end}
    return IJEPA | {f"method.momentum.{key}": value for key, value in momentum.items()}


MULTIBLOCK = masked(sampler="multiblock", num_contexts=1, context_scale=(0.85, 1.0), context_aspect=(1.0, 1.0), num_targets=4,
                    target_scale=(0.15, 0.2))  # fmt: skip
UNION = masked(  # the brief's sampler: on a grid of 7 x 7, 49 % context and 20 % target
    sampler="union", num_contexts=4, context_scale=(0.15, 0.2), context_aspect=(0.75, 1.5), num_targets=2,
    target_scale=(0.1, 0.15),
)  # fmt: skip
SOLVED = UNION | masked(context_scale=(0.0625, 0.083), target_scale=(0.066, 0.099))  # the brief's 25 % / 15 %
IJEPA = {"method.name": "ijepa", "method.pool_targets": False, "method.momentum.start": 0.99}
WHOLE = cut(None, 0.0)
PIXELS = {"method.name": "mae", "method.targets": "normalised_pixels"}
MAE = PIXELS | {"optim.lr": 1e-3}  # its own rate
NONE = {"method.regularizer": None}


# The first row of a question is the recipe as it is; every other row changes what it names and nothing else. Rows that change
# nothing in the recipe at hand are left out.
AS_IS = Variant("as it is")
QUESTIONS: dict[str, list[Variant]] = {
    "regulariser": [
        AS_IS,
        Variant("none", NONE),
        Variant("VICReg, pooled, 0.3", act("vicreg", 0.3, "pooled")),
        *(Variant(f"VICReg, tokens, {weight:g}", act("vicreg", weight, "tokens")) for weight in (0.03, 0.1, 0.3, 1)),
        Variant("SIGReg, pooled, 0.3", act("sigreg", 0.3, "pooled")),
        Variant("SIGReg, tokens, 0.3", act("sigreg", 0.3, "tokens")),
    ],
    "targets": [
        AS_IS,
        Variant("not normalised", IJEPA | {"method.target_norm": "none"}),
        Variant("target patches seen alone", IJEPA | {"method.target_input": "patches"}),
        Variant("average-pooled features", IJEPA | {"method.pool_targets": True}),
        Variant("pixels", PIXELS),
        Variant("features", IJEPA),
    ],
    "momentum": [
        AS_IS,
        *(Variant(f"fixed {value}", follow("fixed", value)) for value in (0.98, 0.99, 0.996, 0.9995)),
        Variant("0.98 to 0.998", follow("linear", 0.98, 0.998)),
        Variant("0.996 to 1", follow("linear", 0.996)),
    ],
    "rate": [
        AS_IS,
        *(Variant(f"learning rate {rate:g}", {"optim.lr": rate}) for rate in (1e-3, 3e-3, 6e-3)),
        Variant("batch 64", {"data.batch_size": 64}),
        Variant("batch 256", {"data.batch_size": 256}),
    ],
    "masks": [
        AS_IS,
        Variant("multi-block, full context (the paper)", MULTIBLOCK),
        Variant("multi-block, cut context (the release)", MULTIBLOCK | masked(fidelity="released")),
        Variant("multi-block, per block", MULTIBLOCK | {"method.predict": "per_block"}),
        Variant("union of four blocks (the brief's code)", UNION),
        Variant("union of blocks, 25 % / 15 % (the brief's words)", SOLVED),
        Variant("random, 15 % / 85 %", masked(context_scale=(0.15, 0.15), target_scale=(0.85, 0.85))),
        Variant("random, 40 % / 60 %", masked(context_scale=(0.4, 0.4), target_scale=(0.6, 0.6))),
        Variant("random, 25 % / 40 %", masked(target_scale=(0.4, 0.4))),
    ],
    "encoder": [
        AS_IS,
        *(
            Variant(f"{wide} wide, rate {rate:g}", {"model.width": wide, "method.predictor.width": wide // 2, "optim.lr": rate})
            for wide, rate in ((96, 2.5e-3), (192, 2.5e-3), (192, 1.25e-3))
        ),
        Variant("6 deep", {"model.depth": 6}),
        Variant("patches of 7 px", {"model.patch_size": 7}),
    ],
    "predictor": [
        AS_IS,
        Variant("1 deep", {"method.predictor.depth": 1}),
        Variant("4 deep", {"method.predictor.depth": 4}),
        *(Variant(f"{width} wide", {"method.predictor.width": width}) for width in (24, 48, 96)),
    ],
    "views": [
        AS_IS,
        Variant("as they are", WHOLE),
        Variant("flips", cut((0.999, 1.0), 0.5)),
        Variant("crops of 0.3 to 1 and flips", cut((0.3, 1.0), 0.5)),
    ],
    "scenes": [  # what was tried on them, from auto's recipe for 64 px in colour
        AS_IS,
        Variant("features", IJEPA),
        Variant("features, whole images", IJEPA | WHOLE),
        Variant("features, whole images, multi-block masks", IJEPA | WHOLE | MULTIBLOCK),
        Variant("whole images", WHOLE),
        Variant("closer crops, 0.15 to 0.7", {f"views.{MAIN}.crop_scale": (0.15, 0.7)}),
        Variant("pixels not normalised", PIXELS | {"method.targets": "pixels"}),
        Variant("half of the patches seen", masked(context_scale=(0.5, 0.5), target_scale=(0.5, 0.5))),
        Variant("learning rate 0.0025", {"optim.lr": 2.5e-3}),
        Variant("8 deep", {"model.depth": 8}),
        Variant("whole images, VICReg, tokens, 0.03", WHOLE | act("vicreg", 0.03, "tokens")),
        Variant("whole images, patches of 4 px", WHOLE | {"model.patch_size": 4}),
        Variant("MAE, whole images", WHOLE | NONE | MAE),
    ],
}


def open_recipe(name: str, data: str) -> Recipe:
    """A recipe by its name or file; auto is the one that `--recipe auto` gives for these images on this machine."""
    return choose(data)[0] if name == AUTO else load_recipe(name)


def list_rivals(base: Recipe) -> list[Variant]:
    """The recipe and its rivals: MAE without and with our regulariser, the paper's and the brief's recipes.

    All have the recipe's own encoder, predictor, images and batch.
    Learning rates are the rivals' own and are not scaled down from their large batches, which would leave them standing still.
    """
    variants = [AS_IS]
    for name, words in (
        ("mae_demo", "MAE"),
        ("paper_vit_base_16", "the paper's recipe"),
        ("brief_vit_base_16", "the brief's recipe"),
    ):
        rival = load_recipe(name)
        views = rival.views[MAIN].model_dump(include={"mask"} if name == "mae_demo" else None)
        changes = flatten({
            "views": {MAIN: views},
            "method": rival.method.model_dump(exclude={"predictor"}),
            "optim": rival.optim.model_dump() | {"lr_batch_size": None},
        })  # fmt: skip
        if name == "paper_vit_base_16":
            changes |= masked(fidelity="released")
        variants.append(Variant(words, changes))
        if name == "mae_demo":  # what the anti-collapse term does alone, without a target encoder
            variants.append(Variant("MAE with VICReg on tokens", changes | act("vicreg", 0.3, "tokens")))
    return variants


def list_rows(question: str, base: Recipe, only: list[str] | None) -> list[Variant]:
    """A question's rows that change something in the recipe, and of these those asked for by name, after the recipe itself."""
    rows = list_rivals(base) if question == "rivals" else QUESTIONS[question]
    changing = [row for row in rows if row is AS_IS or with_changes(base, row.changes, row.name) != base]
    return [row for row in changing if only is None or row is AS_IS or row.name in only]


def run_rows(rows: list[Entrant], exam: Exam, seeds: int, out: Path, jobs: int) -> list[Result]:
    """Every row with seeds 0, 1, ..., told on standard error; by seed, then row."""

    def note(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    trials = list_trials(rows, exam, range(seeds), out, share_cores(jobs))
    check_trials(trials, note)
    names = [row.name for row in rows]
    return sorted(run_trials(trials, note, jobs), key=lambda result: (result.seed or 0, names.index(result.row)))


def main() -> None:
    """Run the questions and write their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="+", choices=[*QUESTIONS, "rivals"], metavar="question")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--data", default=FASHION)
    parser.add_argument("--labels", help="labelled images to fit the probes on, if not those of --data")
    parser.add_argument("--test")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="names of rows, none for the first row alone, which is always run")
    asked = parser.parse_args()
    base, budget = open_recipe(asked.recipe, asked.data), Budget(asked.minutes, asked.steps)
    common = {"train.length": budget.length(base)}
    rows = {question: list_rows(question, base, asked.only) for question in asked.questions}
    if unknown := set(asked.only or ()) - {row.name for question in asked.questions for row in rows[question]}:
        parser.error(f"--only: no such row, or one that changes nothing here: {', '.join(sorted(unknown))}")
    entrants = {row.name: row.over(base, common) for question in asked.questions for row in rows[question]}
    baselines = list_baselines(entrants[AS_IS.name])
    labels = asked.labels or asked.data
    exam = Exam(asked.data, labels, asked.test or name_held_out(asked.data) or asked.data, COLUMNS)
    results = run_rows([*entrants.values(), *baselines], exam, asked.seeds, asked.out, asked.jobs)
    tables = {question: asked.out / f"{question}.md" for question in asked.questions}
    for question, table in tables.items():
        names = {row.name for row in (*rows[question], *baselines)}
        standings = Standings([result for result in results if result.row in names], COLUMNS, AS_IS.name)
        words = Words(f"{question}: recipe {base.name}, {asked.data}, {budget} a run", describe_exam(exam))
        write_atomic(table, to_markdown(standings, words))
    record = {
        "benchmark": "small_data", "command": " ".join(["python", *sys.argv]), "questions": asked.questions, "recipe": base.name,
        "outcomes": list_scores(results), "tables": [str(table) for table in tables.values()],
        "machine": describe_machine(pick_device(base.train.device)), "versions": describe_versions(),
    }  # fmt: skip
    print(json.dumps(record))


if __name__ == "__main__":
    main()
