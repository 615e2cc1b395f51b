"""State is one integer: a run killed -9 at random steps and resumed is bit-equal to one that was never stopped."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.cli.console import openjepa
from tests.zygote import start

STEPS = 120  # 96 images in batches of 16: an epoch is 6 steps
KILLS = 4  # at moments drawn with a fixed seed; each costs a start. benchmarks/chaos.py does twenty


def command(data: Path, run: Path, *more: str) -> list[str]:
    return [
        "pretrain", str(data), "--recipe", "demo", "--out", str(run),
        f"train.length={STEPS}steps", "train.log_every_steps=1", "data.batch_size=16", "data.workers=3", "data.image_size=16",
        "views.main.crop_scale=[0.3, 1.0]", "views.main.flip=0.5", "views.main.colour=0.8", "views.main.blur=0.5",
        "views.main.solarize=0.2", "model.width=32", "model.depth=2", "model.heads=2", "method.predictor.width=16",
        "method.predictor.heads=2", "views.main.mask.target_scale=[0.05, 0.1]", "views.main.mask.context_scale=[0.1, 0.2]",
        "checkpoint.every_steps=5", "health.every_steps=16", "health.num_images=32", *more,
    ]  # fmt: skip


def steps_logged(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count('"kind": "train"') if metrics.exists() else 0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(96):
        Image.fromarray(generator.integers(0, 256, (20, 20), dtype=np.uint8)).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("unbroken") / "run"
    openjepa(*command(data, run), process=True)
    return run


def assert_same(run: Path, unbroken: Path) -> None:
    name = f"step-{STEPS:08}.safetensors"
    ours, theirs = load_file(run / "checkpoints" / name), load_file(unbroken / "checkpoints" / name)
    assert ours.keys() == theirs.keys()
    assert any(key.startswith("optimizer.exp_avg_sq.") for key in ours)
    for key, value in theirs.items():
        assert ours[key].tobytes() == value.tobytes(), key
    losses = [
        [
            (row["step"], row["loss"], row["grad_norm"])
            for row in map(json.loads, (folder / "metrics.jsonl").open())
            if row["kind"] == "train"
        ]
        for folder in (run, unbroken)
    ]
    assert losses[0] == losses[1]
    assert [step for step, _, _ in losses[0]] == list(range(STEPS))


@pytest.mark.slow
def test_kills_change_nothing(data: Path, unbroken: Path, tmp_path: Path):
    run, generator, killed = tmp_path / "run", random.Random(0), 0
    while killed < KILLS:
        more = ("--resume",) if (run / "run.json").exists() else ()
        before = steps_logged(run)
        if before >= STEPS - 2:
            break
        process = start(*command(data, run, *more))
        stop_at = min(generator.randint(1, 8), STEPS - 2)
        deadline = time.monotonic() + 120
        started = None
        while process.poll() is None and time.monotonic() < deadline:
            now = steps_logged(run)
            started = now if started is None or now < started else started
            if now - started >= stop_at:
                break
            time.sleep(0.002)
        assert process.poll() is None or steps_logged(run) == STEPS, "the run died by itself"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
    assert killed == KILLS
    openjepa(*command(data, run, "--resume"), process=True)
    assert_same(run, unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simclr"])  # others: test_resume.py, test_mae.py, test_finetune.py
def test_other_methods_resume_bit_equal_and_go_through_every_command(tmp_path: Path, method: str):
    """Their recipes, made small, on labelled images; killed once, the report then shows what the method has."""
    flags = [
        "--recipe", f"{method}_small", "train.length=30steps", "data.batch_size=8", "data.image_size=24", "model.depth=1",
        "model.width=24", "data.workers=1", "train.log_every_steps=1", "checkpoint.every_steps=3", "health.num_images=32",
        *(["views.local.size=8", "method.projector.prototypes=64"] if method == "dino" else []),
    ]  # fmt: skip

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    openjepa("pretrain", "sample:test", *flags, "--out", whole)
    process = start("pretrain", "sample:test", *flags, "--out", broken)
    while steps_logged(broken) < 8 and process.poll() is None:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it was killed"
    openjepa("pretrain", "sample:test", "--out", broken, "--resume")
    name = "checkpoints/step-00000030.safetensors"
    ours, theirs = load_file(broken / name), load_file(whole / name)
    assert ours.keys() == theirs.keys()
    assert all(ours[key].tobytes() == theirs[key].tobytes() for key in theirs)
    openjepa("report", broken)
    page = (broken / "report.html").read_text()
    hides = method == "mae"
    assert ('id="masks"' in page, 'id="beliefs"' in page) == (hides, hides)
    assert "Not measured" not in page
    assert method == "dino" or "momentum" not in page.partition('id="facts"')[0]
    openjepa("evaluate", broken, "--task", "knn", "--train", "sample:test", "--test", "sample:test")
    openjepa("embed", broken, "sample:test", "--out", tmp_path / "features.parquet")


def test_a_changed_recipe_is_named_and_stops(data: Path, unbroken: Path):
    changed = openjepa(*command(data, unbroken, "--resume"), "optim.lr=0.5", check=False)
    assert changed.returncode == 2
    assert "optim.lr 0.0025 -> 0.5" in changed.stderr
    assert "Traceback" not in changed.stderr
