"""How often the verdict was right on runs that its limits were not chosen on: small_data.py's, ablate's, time_to_accuracy.py's.

    python benchmarks/verdicts.py runs/study runs/rivals [--runs]

Reads the run folders that those leave, judges their health rows by the rules of today, and prints tables of docs/health.md; with
--runs, a line for each run first. Outcomes are those of the test bed (outcomes.py), *diverged* a loss not finite.
Trains nothing; probes one untrained encoder for every shape, seed and data set.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import spearmanr

from benchmarks.outcomes import is_right, name_outcome, tabulate_outcomes
from openjepa.apply import evaluate_many
from openjepa.health import replay
from openjepa.records import Row, RunFolder, read_json

SCORES = {
    "effective rank, pooled features": "effective_rank_pooled",
    "effective rank, patch features": "effective_rank_patches",
    "explained variance": "explained_variance",
    "the same against each position's mean": "explained_content",
    "feature standard deviation": "feature_std",
}


@dataclass(frozen=True)
class Judged:
    """A finished run: what became of it, the verdicts on it, and its last health row. Accuracies in per cent."""

    name: str
    seed: int
    knn: float | None
    linear: float | None
    outcome: str
    at_a_fifth: str
    at_the_end: str
    ever_collapsed: bool
    last: Row


def judge_run(folder: Path, untrained: dict[str, float]) -> Judged:
    """The verdicts on a finished run and its outcome. untrained: 20-NN accuracies by encoder and data, filled as needed."""
    done, run = read_json(folder / "outcome.json"), RunFolder(folder)
    found, facts, rows = done["outcome"], run.read_run(), run.read_metrics("health")
    labels = [verdict.label for verdict in replay(rows)]
    early = [label for label, row in zip(labels, rows, strict=True) if row["step"] <= facts["total_steps"] / 5]
    outcome = "diverged"
    if found["knn"] is not None:
        shape = {key: value for key, value in facts["recipe"]["model"].items() if not key.startswith("predictor")}
        size, channels = (facts["recipe"]["data"][name] for name in ("image_size", "channels"))
        key = str([shape, size, channels, found["seed"], facts["data"], done["labels"], done["test"]])
        if key not in untrained:
            record = evaluate_many(folder, ["random"], ["knn"], done["labels"], done["test"], device="cpu")[0]
            untrained[key] = 100 * record["accuracy"]
        outcome = name_outcome(found["knn"] - untrained[key])
    name, seed, knn, linear = (found[key] for key in ("variant", "seed", "knn", "linear"))
    return Judged(name, seed, knn, linear, outcome, early[-1], labels[-1], "collapsed" in labels, rows[-1])


def tabulate_scores(runs: list[Judged]) -> str:
    """Spearman's correlation of what a run measures of itself with what its features are worth, at the end."""
    probed = [run for run in runs if run.knn is not None and run.linear is not None]
    lines = ["| score at the end of the run | Spearman with 20-NN | with the linear probe |", "|---|---:|---:|"]
    for name, key in SCORES.items():
        having = [run for run in probed if key in run.last]
        with_knn, with_linear = (
            spearmanr([run.last[key] for run in having], [getattr(run, probe) for run in having]).statistic
            for probe in ("knn", "linear")
        )
        lines.append(f"| {name} | {with_knn:.2f} | {with_linear:.2f} |")
    between = spearmanr([run.knn for run in probed], [run.linear for run in probed]).statistic
    return "\n".join([*lines, f"| 20-NN itself | 1 | {between:.2f} |"])


def main() -> None:
    """Judge every finished run and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of run folders")
    parser.add_argument("--runs", action="store_true", help="print a line for each run first")
    asked = parser.parse_args()
    done = sorted(path.parent for folder in asked.folders for path in folder.glob("*/outcome.json"))
    if not done:
        parser.error(f"no finished run in {', '.join(map(str, asked.folders))}")
    untrained: dict[str, float] = {}
    runs = [judge_run(folder, untrained) for folder in done]
    if asked.runs:
        for run in runs:
            knn, linear = ("none" if value is None else f"{value:.1f}" for value in (run.knn, run.linear))
            print(f"{run.name}, seed {run.seed}: {run.outcome}, 20-NN {knn}, linear {linear}; {run.at_a_fifth} at a fifth, "
                  f"{run.at_the_end} at the end")  # fmt: skip
    at_a_fifth = sum(is_right(run.outcome, run.at_a_fifth) for run in runs)
    at_the_end = sum(is_right(run.outcome, run.at_the_end) for run in runs)
    alarms = sum(run.ever_collapsed for run in runs if run.outcome == "learned")
    print(tabulate_outcomes([(run.outcome, run.at_a_fifth) for run in runs]))
    print(f"\nRight in {at_a_fifth} of {len(runs)} at a fifth, in {at_the_end} at the end; learned runs ever called collapsed: "
          f"{alarms}.\n")  # fmt: skip
    print(tabulate_scores(runs))


if __name__ == "__main__":
    main()
