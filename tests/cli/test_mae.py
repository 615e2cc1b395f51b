"""MAE through the command line: the same verbs as for I-JEPA, and clear words where it has no target encoder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openjepa.cli import main
from openjepa.commands.embed import embed
from openjepa.commands.evaluate import evaluate
from openjepa.commands.report import write_report
from tests.cli.console import assert_refused, openjepa

TINY = (
    "train.length=6steps", "--data.batch-size", "16", "--data.workers", "0", "--data.image-size", "16",
    "--model.width", "32", "--model.heads", "2", "--model.depth", "2",
    "--method.predictor.width", "16", "--method.predictor.heads", "2",
    "--health.every-steps", "1", "--health.num-images", "16", "--checkpoint.every-steps", "3",
)  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name in ("bright", "dark"):
        (folder / name).mkdir()
        for number in range(16):
            pixels = generator.integers(0, 128, (20, 20), dtype=np.uint8) + 120 * (name == "bright")
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "mae"
    verdict = openjepa("pretrain", photos, "--out", path, "--recipe", "mae_demo", *TINY).stdout
    assert verdict.startswith(json.loads((path / "verdict.json").read_text())["label"])
    return path


def read_rows(run: Path, kind: str) -> list[dict]:
    return [row for row in map(json.loads, (run / "metrics.jsonl").open()) if row["kind"] == kind]


def test_health_and_metrics_leave_out_what_there_is_not(run: Path):
    train, health = read_rows(run, "train"), read_rows(run, "health")
    assert train and len(health) == 6
    assert all(row["context_tokens"] == 4 and row["target_tokens"] == 12 for row in train)  # a quarter of 16
    assert not any("momentum" in row for row in train)
    assert not any("context_target_drift" in row for row in health)
    assert all(row["effective_rank_pooled"] >= 1 for row in health)


def test_resume_is_bit_equal(photos: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    copy, last = tmp_path / "copy", "step-00000006.safetensors"
    shutil.copytree(run, copy)
    (copy / "checkpoints" / last).unlink()
    main(["pretrain", str(photos), "--out", str(copy), "--resume"])
    assert "Resuming at step 3 of 6" in capsys.readouterr().err
    assert (copy / "checkpoints" / last).read_bytes() == (run / "checkpoints" / last).read_bytes()


def test_evaluate_embed_and_report(photos: Path, run: Path, tmp_path: Path):
    record = evaluate(run, "knn", str(photos), str(photos))
    assert (record["encoder"], record["accuracy"]) == ("context", 1.0)
    target = ("--protocol", "knn", "--train", photos, "--test", photos, "--encoder", "target")
    assert_refused(openjepa("evaluate", run, *target, check=False), "no target encoder", "mae", "--encoder context")
    assert embed(run, str(photos), tmp_path / "features.parquet") == 32
    with pytest.raises(ValueError, match="no target encoder"):
        embed(run, str(photos), tmp_path / "no.parquet", "target")
    assert [path.name for path in tmp_path.iterdir()] == ["features.parquet"]
    page = write_report(run).read_text()
    assert "drift" not in page  # there is nothing that could drift
    assert "Momentum of the target encoder" not in page
    assert "Effective rank" in page


def test_a_value_turns_another_recipe_into_mae(photos: Path, tmp_path: Path):
    arguments = ["pretrain", str(photos), "--out", str(tmp_path / "run"), "--recipe", "demo", "method.name=mae", *TINY]
    main(arguments)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    method = facts["recipe"]["method"]
    assert (method["name"], method["targets"], method["regularizer"]["name"]) == ("mae", "normalised_pixels", "vicreg")
    assert "momentum" not in method
    # By hand: two layers, projections of 32 x 16 and of 16 x 16 pixels a patch, mask token, final norm.
    assert facts["num_parameters"]["predictor"] == 2 * (12 * 16**2 + 13 * 16) + (32 * 16 + 16) + (16 * 16 + 16) + 16 + 32


def test_what_would_steer_a_target_encoder_is_refused(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["pretrain", str(photos), "--out", str(tmp_path / "run"), "--recipe", "mae_demo", *TINY]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "method.momentum.start=0.99"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "unknown key method.momentum" in line and "method.name ijepa" in line
    assert not (tmp_path / "run").exists()
