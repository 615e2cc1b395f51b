"""However one of several processes ends, all end, one line says why, and the run goes on where it was saved."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter  # noqa: F401 (slow, and so before the forks)

from openjepa import cli
from tests.ranks import start_ranks, wait_for

FLAGS = [
    "--recipe", "demo", "train.length=3000steps", "train.precision=fp32", "train.log_every_steps=1", "data.batch_size=8",
    "data.workers=0", "data.image_size=16", "model.width=16", "model.depth=1", "model.heads=2", "method.predictor.width=8",
    "method.predictor.depth=1", "method.predictor.heads=2", "checkpoint.every_steps=100000", "health.every_steps=500",
    "health.num_images=16",
]  # fmt: skip


def logged(run: Path) -> list[int]:
    if not (run / "metrics.jsonl").exists():
        return []
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [row["step"] for row in rows if row["kind"] == "train"]


def start(run: Path, log: Path, **environment: str) -> list[int]:
    """Two processes that have trained some steps."""
    processes = start_ranks(2, lambda: cli.main(["pretrain", "sample:test", "--out", str(run), *FLAGS]), log, **environment)
    deadline = time.monotonic() + 200
    while len(logged(run)) < 10 and time.monotonic() < deadline:
        time.sleep(0.02)
    return processes


def last_lines(log: Path) -> list[str]:
    text = log.read_text()
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if line.startswith("openjepa:")]


def saved_steps(run: Path) -> list[int]:
    return sorted(json.loads(path.read_text())["step"] for path in (run / "checkpoints").glob("*.json"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_stops_all_saved_once(tmp_path: Path, rank: int):
    run, log = tmp_path / "run", tmp_path / "log"
    processes = start(run, log)
    os.kill(processes[rank], signal.SIGTERM)
    assert [wait_for(process) for process in processes] == [128 + signal.SIGTERM] * 2, log.read_text()
    assert saved_steps(run) == [logged(run)[-1] + 1]
    (line,) = last_lines(log)
    assert "state saved" in line


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_gone_or_hangs_is_named(tmp_path: Path, number: signal.Signals):
    run, log = tmp_path / "run", tmp_path / "log"
    processes = start(run, log, OPENJEPA_WAIT_S="20")
    os.kill(processes[1], number)
    assert wait_for(processes[0]) == 2, log.read_text()
    os.kill(processes[1], signal.SIGKILL)
    assert wait_for(processes[1]) == -signal.SIGKILL
    (line,) = last_lines(log)
    assert f"step {logged(run)[-1] + 1}: rank 1 (process {processes[1]} on " in line
    assert "is gone" in line if number == signal.SIGKILL else "has not answered for 20 s" in line
    assert saved_steps(run) == [logged(run)[-1] + 1]


@pytest.mark.slow
def test_torchrun_restarts_a_run_of_which_a_process_is_killed(tmp_path: Path):
    """benchmarks/ranks.py kills ten."""
    program = Path(__file__).parents[2] / "benchmarks/ranks.py"
    done = subprocess.run(
        [sys.executable, str(program), "--kills", "1"], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["restarts"] == 1
