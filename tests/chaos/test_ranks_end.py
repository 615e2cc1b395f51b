"""However one of several processes ends, all end, one line says why, and the run goes on where it was saved."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from torch.distributed import TCPStore
from torch.utils.tensorboard import SummaryWriter  # noqa: F401 (slow, and so before the forks)

from openjepa import cli
from openjepa.engine.world import join
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
    processes = start(run, log, OPENJEPA_WAIT_S="6")
    os.kill(processes[1], number)
    assert wait_for(processes[0]) == 2, log.read_text()
    os.kill(processes[1], signal.SIGKILL)
    assert wait_for(processes[1]) == -signal.SIGKILL
    (line,) = last_lines(log)
    assert f"step {logged(run)[-1] + 1}: rank 1 (process {processes[1]} on " in line
    assert "is gone" in line if number == signal.SIGKILL else "has not answered for 6 s" in line
    assert saved_steps(run) == [logged(run)[-1] + 1]


def test_processes_that_torchrun_starts_again_meet_through_the_store_that_it_kept():
    """It holds the addresses of the processes before; benchmarks/ranks.py kills ten under torchrun itself."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def meet() -> None:
        with join() as world:
            assert world.collect(world.rank) == [0, 1]

    for attempt in ("0", "1"):
        names = {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": attempt}
        assert [wait_for(process, 60) for process in start_ranks(2, meet, **names, OPENJEPA_WAIT_S="20")] == [0, 0], attempt
