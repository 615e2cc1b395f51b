"""How often the verdict was right: on the test bed (health_bed.py), and on runs of small_data.py, ablate and time_to_accuracy.py.

    python benchmarks/verdicts.py runs/bed runs/study [--runs]

Reads the run folders that those leave, judges their health rows by the rules of today, and prints the tables of docs/health.md,
one block for each kind of images; with --runs, a line for each run as well. Outcomes are those of outcomes.py. It also counts
the runs on which `openjepa health` and verdict.json say the same, which must be all that today's rules trained.
Trains nothing; probes one untrained encoder for every shape, seed and data set where a run has not recorded it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import spearmanr

from benchmarks.outcomes import has_exploded, is_right, name_outcome, tabulate_outcomes
from openjepa.commands.evaluate import evaluate_many
from openjepa.commands.health import replay_verdicts
from openjepa.health.verdict import RunFacts, judge, replay
from openjepa.runs.folder import Row, RunFolder, read_json

SHARES = (0.1, 0.2, 0.3, 0.5, 1.0)
SCORES = {
    "effective rank, pooled features": "effective_rank_pooled",
    "effective rank, patch features": "effective_rank_patches",
    "explained variance": "explained_variance",
    "the same against each position's mean": "explained_content",
    "feature standard deviation": "feature_std",
}


@dataclass(frozen=True)
class Judged:
    """A finished run: what became of it, and the verdicts on it. Accuracies in per cent, None where features are not finite."""

    name: str
    kind: str
    is_held_out: bool
    seed: int
    knn: float | None
    linear: float | None
    gain: float | None
    outcome: str
    at: dict[float, str]  # the label by share of the run
    called_collapsed: dict[float, bool]  # whether it was ever called collapsed up to there
    agrees: bool  # `openjepa health` with verdict.json
    first: Row
    last: Row


def judge_run(folder: Path, untrained: dict[str, float]) -> Judged:
    """The verdicts on a finished run and its outcome. untrained: 20-NN accuracies by encoder and data, filled as needed."""
    done, run = read_json(folder / "outcome.json"), RunFolder(folder)
    found, run_json, rows = done["outcome"], run.read_run(), run.read_metrics("health")
    facts, total = RunFacts.read(run_json), run_json["total_steps"]
    labels = [verdict.label for verdict in replay(rows, facts)]
    losses = [row["loss"] for row in run.read_metrics("train")]
    gain = None
    if found["knn"] is not None:
        gain = found["knn"] - (done["before"]["knn"] if "before" in done else find_untrained(folder, done, run_json, untrained))
    outcome = "diverged" if gain is None or facts.stopped or has_exploded(losses) else name_outcome(gain)
    upto = {share: [label for label, row in zip(labels, rows, strict=True) if row["step"] <= share * total] for share in SHARES}
    upto[1.0] = [*labels, judge(rows, facts).label]
    verdict = run.verdict_json.is_file() and read_json(run.verdict_json)
    said = replay_verdicts(folder)[-1]
    return Judged(
        name=found["variant"],
        kind=done.get("kind", "runs"),
        is_held_out=done.get("held_out", True),
        seed=found["seed"],
        knn=found["knn"],
        linear=found["linear"],
        gain=gain,
        outcome=outcome,
        at={share: seen[-1] if seen else "too early" for share, seen in upto.items()},
        called_collapsed={share: "collapsed" in seen for share, seen in upto.items()},
        agrees=bool(verdict) and said.endswith(f"{verdict['label']}: {verdict['reason']} {verdict['advice']}"),
        first=run_json.get("untrained") or rows[0],
        last=rows[-1],
    )


def find_untrained(folder: Path, done: Row, run_json: Row, untrained: dict[str, float]) -> float:
    """20-NN accuracy of the run's encoder before training, in per cent."""
    shape = {key: value for key, value in run_json["recipe"]["model"].items() if not key.startswith("predictor")}
    size, channels = (run_json["recipe"]["data"][name] for name in ("image_size", "channels"))
    key = str([shape, size, channels, done["outcome"]["seed"], run_json["data"], done["labels"], done["test"]])
    if key not in untrained:
        record = evaluate_many(folder, ["random"], [("knn", 1)], done["labels"], done["test"], device="cpu")[0]
        untrained[key] = 100 * record["accuracy"]
    return untrained[key]


def tabulate_earliness(runs: list[Judged]) -> str:
    """How often the verdict was right, by share of the run."""
    lines = ["| measured up to | right | of those held out | learned runs called collapsed so far |", "|---|---:|---:|---:|"]
    for share in SHARES:
        right = [is_right(run.outcome, run.at[share]) for run in runs]
        held_out = [is_right(run.outcome, run.at[share]) for run in runs if run.is_held_out]
        alarms = sum(run.called_collapsed[share] for run in runs if run.outcome == "learned")
        lines.append(f"| {share:.0%} of the run | {sum(right)} of {len(right)} | {sum(held_out)} of {len(held_out)} | {alarms} |")
    return "\n".join(lines)


def tabulate_runs(runs: list[Judged]) -> str:
    """Every run; a wrong verdict is bold."""
    lines = [
        "| run | 20-NN (gain) | linear | effective rank, untrained and last | explained | outcome | at a fifth | at the end |",
        "|---|---:|---:|---:|---:|---|---|---|",
    ]
    for run in runs:
        shown = [f"{label}" if is_right(run.outcome, label) else f"**{label}**" for label in (run.at[0.2], run.at[1.0])]
        ranks = ", ".join(f"{row['effective_rank_pooled']:.1f}" for row in (run.first, run.last))
        knn = "none" if run.knn is None or run.gain is None else f"{run.knn:.1f} ({run.gain:+.1f})"
        linear = "none" if run.linear is None else f"{run.linear:.1f}"
        explained = f"{run.last['explained_variance']:.0%}" if "explained_variance" in run.last else ""
        name = run.name + (" (held out)" if run.is_held_out else "")
        lines.append(f"| {name} | {knn} | {linear} | {ranks} | {explained} | {run.outcome} | {' | '.join(shown)} |")
    return "\n".join(lines)


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
    parser.add_argument("--runs", action="store_true", help="print a line for each run as well")
    asked = parser.parse_args()
    done = sorted(path.parent for folder in asked.folders for path in folder.glob("*/outcome.json"))
    if not done:
        parser.error(f"no finished run in {', '.join(map(str, asked.folders))}")
    untrained: dict[str, float] = {}
    all_runs = [judge_run(folder, untrained) for folder in done]
    for kind in dict.fromkeys(run.kind for run in all_runs):
        runs = [run for run in all_runs if run.kind == kind]
        print(f"\n## {kind}, {len(runs)} runs: the verdict at a fifth, by outcome\n")
        print(tabulate_outcomes([(run.outcome, run.at[0.2]) for run in runs]), "\n")
        print(tabulate_earliness(runs), "\n")
        print(tabulate_scores(runs))
        if asked.runs:
            print("\n" + tabulate_runs(runs))
    at_a_fifth, at_the_end = (sum(is_right(run.outcome, run.at[share]) for run in all_runs) for share in (0.2, 1.0))
    alarms = sum(run.called_collapsed[1.0] for run in all_runs if run.outcome == "learned")
    agree = sum(run.agrees for run in all_runs)
    print(f"\nRight in {at_a_fifth} of {len(all_runs)} at a fifth, in {at_the_end} at the end.")
    print(f"Learned runs ever called collapsed: {alarms}. `openjepa health` and verdict.json agree on {agree}.")


if __name__ == "__main__":
    main()
