"""A short run of each family of methods records what the method can say of itself, and the verb, the file and the page agree."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from openjepa.training import hooks
from tests.cli.console import openjepa

PAIRS = {"pairs_found", "alignment", "uniformity"}
ASSIGNMENTS = {"teacher_entropy", "usage_entropy", "assignment_kl", "centre_norm"}
PREDICTION = {"explained_variance", "explained_content"}
FAMILIES = {
    "simclr": PAIRS,
    "byol": PAIRS,
    "mocov3": PAIRS,
    "lejepa": PAIRS | {"regularizer"},
    "dino": ASSIGNMENTS,
    "ibot": ASSIGNMENTS | {"patch_teacher_entropy", "patch_usage_entropy", "patch_centre_norm"},
    "data2vec": PREDICTION | {"target_std"},
}
CHARTS = {
    "Entropy of assignments", "Entropy of patches&#39; assignments", "Disagreement about assignments", "Norm of the centre",
    "Temperature of the target", "Context-target drift",
}  # fmt: skip
OTHERS = {"Pairs found", "Alignment", "Uniformity", "Regulariser", "Explained variance of the targets", "Spread of the targets"}
EVERY = PAIRS | ASSIGNMENTS | PREDICTION | {"target_std", "patch_usage_entropy"}
TINY = (
    "data.image_size=16", "data.batch_size=8", "data.workers=0", "model.width=16", "model.depth=2", "model.heads=2",
    "model.patch_size=4", "train.length=4steps", "train.precision=fp32", "health.num_images=8",
)  # fmt: skip
LOCAL = ("views.local.size=8", "views.local.count=2")
NARROW = {
    "dino": (*LOCAL, "method.projector.prototypes=16"),
    "ibot": (*LOCAL, "method.projector.prototypes=16"),
    "lejepa": LOCAL,
    "data2vec": ("method.decoder.groups=4", "method.averaged_layers=1", "views.main.mask.per_view=2"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_measures_what_its_method_has_and_no_more(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_peak", lambda *_: 1e12)  # of the machine, which takes seconds to measure
    expected, run = FAMILIES[name], tmp_path / "run"
    openjepa("pretrain", "sample:train", "--recipe", f"{name}_small", *TINY, *NARROW.get(name, ()), "--out", run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in (row for row in rows if row["kind"] in ("train", "health")):
        assert expected <= row.keys()
        assert not (EVERY - expected) & row.keys(), "of another family"
        assert all(math.isfinite(row[metric]) for metric in expected)
    if "teacher_entropy" in expected:
        assert all(row["teacher_temperature"] > 0 for row in rows if row["kind"] == "train")
    verdict = json.loads((run / "verdict.json").read_text())
    said = openjepa("health", run).stdout.splitlines()
    assert "judged without" not in said[0]
    assert verdict["label"] in said[-1] and verdict["reason"] in said[-1] and verdict["advice"] in said[-1]
    if name == "ibot":  # one page, which takes seconds to draw
        openjepa("report", run)
        page = (run / "report.html").read_text()
        assert {title for title in CHARTS | OTHERS if title in page} == CHARTS
