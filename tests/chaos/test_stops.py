"""However a run ends, what it has done is saved, its folder stays readable, and it goes on where it stopped."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openjepa.commands.health import replay_verdicts
from tests import zygote
from tests.cli.console import openjepa

FLAGS = (
    "--recipe", "demo", "train.length=2000steps", "--train.log-every-steps", "1",
    "--data.batch-size", "8", "--data.workers", "0", "--data.image-size", "16", "--model.width", "16", "--model.depth", "1",
    "--model.heads", "2", "--method.predictor.width", "8", "--method.predictor.depth", "1", "--method.predictor.heads", "2",
    "--checkpoint.every-steps", "100000", "--health.every-steps", "16", "--health.num-images", "32",
)  # fmt: skip


def start(data: Path, run: Path, *more: str, flags: tuple[str, ...] = FLAGS) -> zygote.Started:
    return zygote.start("pretrain", data, "--out", run, *flags, *more)


def wait_for_steps(process: zygote.Started, run: Path, steps: int) -> None:
    deadline = time.monotonic() + 300
    while (run / "metrics.jsonl").exists() is False or (run / "metrics.jsonl").read_text().count('"train"') < steps:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def newest_step(run: Path) -> int:
    return max(json.loads(path.read_text())["step"] for path in (run / "checkpoints").glob("step-*.json"))


def logged(run: Path, kind: str = "train") -> list[int]:
    return [row["step"] for row in map(json.loads, (run / "metrics.jsonl").open()) if row["kind"] == kind]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(64):
        Image.fromarray(generator.integers(0, 256, (16, 16), dtype=np.uint8)).save(folder / f"{number:03}.png")
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])  # benchmarks/chaos.py sends seven
def test_a_signal_saves_the_step_and_the_run_goes_on(data: Path, tmp_path: Path, number: signal.Signals):
    run = tmp_path / "run"
    process = start(data, run)
    wait_for_steps(process, run, 20)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 128 + number, errors
    assert newest_step(run) == logged(run)[-1] + 1 < 2000
    done = newest_step(run)
    more = start(data, run, "--resume", "--accept-changes", f"train.length={done + 2}steps", flags=())
    _, errors = more.communicate(timeout=300)
    assert more.returncode == 0, errors
    assert logged(run) == list(range(done + 2))


def test_images_that_go_away_end_the_run_with_its_state_saved(data: Path, tmp_path: Path):
    run = tmp_path / "run"
    process = start(data, run)
    wait_for_steps(process, run, 20)
    data.rename(tmp_path / "gone")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2, errors
    assert "Traceback" not in errors
    assert newest_step(run) == logged(run)[-1] + 1 >= 20


def test_two_runs_do_not_write_into_one_folder(data: Path, tmp_path: Path):
    """Version 0.1 wrote the rows of both."""
    run = tmp_path / "run"
    first = start(data, run)
    wait_for_steps(first, run, 5)
    second = start(data, run, "--resume", flags=())
    _, errors = second.communicate(timeout=300)
    assert second.returncode == 2
    assert f"process {first.pid} on " in errors and len(errors.strip().splitlines()) == 1
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=300)
    assert logged(run) == list(range(newest_step(run)))


def test_ten_broken_steps_say_diverging_everywhere(data: Path, tmp_path: Path):
    run = tmp_path / "run"
    process = start(data, run, "--optim.lr", "1e30", "--optim.clip-grad-norm", "null", "--optim.warmup-frac", "0")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2 and "Traceback" not in errors, errors
    verdict = json.loads((run / "verdict.json").read_text())
    assert verdict["label"] == "diverging"
    last = replay_verdicts(run)[-1]
    assert f"step {verdict['step']} " in last and f"diverging: {verdict['reason']}" in last
    assert newest_step(run) > 0


def test_the_verb_and_the_file_agree_on_images_that_allow_nothing(data: Path, tmp_path: Path):
    """Version 0.1's `health` did not know what the run knew of its images."""
    for path in sorted(data.iterdir())[9:]:
        path.unlink()
    run = tmp_path / "run"
    _, errors = start(data, run, "train.length=60steps", "--data.batch-size", "8").communicate(timeout=300)
    verdict = json.loads((run / "verdict.json").read_text())
    assert verdict["label"] in ("not learning yet", "collapsed"), errors
    assert replay_verdicts(run)[-1].endswith(f"{verdict['label']}: {verdict['reason']} {verdict['advice']}")


@pytest.mark.slow
def test_a_probe_added_later_compares_with_the_untrained_encoder(tmp_path: Path):
    """Version 0.1 took the trained encoder of the resume for the untrained one."""
    flags = [*FLAGS, "--data.image-size", "28", "--health.probe-every-steps", "30", "--optim.warmup-frac", "0"]
    probe = ("health.probe.train=few:20:0:sample:test", "health.probe.test=few:20:1:sample:test")
    found = []
    for name in ("late", "early"):
        run = tmp_path / name
        first = [*flags, "train.length=30steps", *(probe if name == "early" else ())]
        openjepa("pretrain", "sample:train", "--out", run, *first)
        openjepa("pretrain", "sample:train", "--out", run, "--resume", "--accept-changes", "train.length=60steps", *probe)
        rows = [row for row in map(json.loads, (run / "metrics.jsonl").open()) if row["kind"] == "probe"]
        found.append(rows[-1])
    assert found[0]["knn_random_encoder"] == found[1]["knn_random_encoder"] != found[0]["knn"]
