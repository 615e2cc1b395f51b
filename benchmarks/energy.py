"""How well are defects found? Energy of I-JEPA, pixel error of MAE and nearest neighbours, on scenes with defects.

    python benchmarks/energy.py SCENES --ijepa RUN [RUN ...] --mae RUN [RUN ...] [--share 0.05] [--most-draws 64] [--out FOLDER]

SCENES is what `openjepa make-scenes OUT --defects 0.5` wrote; the runs are trained on SCENES/train, one of each method a seed.
Prints a table of areas under ROC curves, a row for each way to find defects: the mean over runs and, of several, their range.
Every row comes from `openjepa energy` or `openjepa evaluate --task anomaly`; neighbours are those of the trained encoders, of
untrained ones of the same shape, and of raw pixels. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from openjepa.commands.energy import Defects, energy
from openjepa.commands.evaluate import evaluate
from openjepa.evals.energy import Drawing

COLUMNS = ("image_auroc", "image_auroc_by_patch", "pixel_auroc")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("--ijepa", type=Path, nargs="+", required=True)
    parser.add_argument("--mae", type=Path, nargs="+", required=True)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--most-draws", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep tables and heat maps here, a folder a run")
    options = parser.parse_args()
    normal, test = str(options.scenes / "train"), str(options.scenes / "defects")
    drawing = Drawing(options.share, options.most_draws, options.seed)
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for method, runs in (("ijepa", options.ijepa), ("mae", options.mae)):
            for number, run in enumerate(runs):
                out = (options.out or Path(temporary)) / f"{method}-{number}"
                energy(run, test, out, drawing=drawing, defects=Defects())
                record = json.loads((out / "scores.json").read_text("utf-8"))["records"][0]
                found.setdefault(f"energy of {method}", []).append(record)
                for encoder, name in (("context", f"neighbours, {method}"), ("random", f"neighbours, {method} untrained")):
                    found.setdefault(name, []).append(evaluate(run, "anomaly", normal, test, encoder, seed=options.seed))
    found["neighbours, pixels"] = [evaluate(f"pixels:{options.ijepa[0]}", "anomaly", normal, test, seed=options.seed)]
    kinds = [name for name in found["energy of mae"][0]["scores"] if name.startswith("image_auroc ")]
    columns = [*COLUMNS, *kinds]
    print("| found by | " + " | ".join(name.replace("_", " ") for name in columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for name, records in found.items():
        cells = [show([record["scores"][column]["value"] for record in records]) for column in columns]
        print(f"| {name} | {' | '.join(cells)} |")
    values = {name: [{key: record["scores"][key] for key in columns} for record in records] for name, records in found.items()}
    facts = {key: found["energy of mae"][0][key] for key in ("num_test", "num_defects", "share", "most_draws", "seed", "version")}
    print(json.dumps({"benchmark": "energy", **facts, "scores": values}))


def show(values: list[float]) -> str:
    """A mean, with the lowest and the highest of several."""
    mean = f"{sum(values) / len(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
