"""Worker processes in trouble: too little shared memory, and killed. The user reads one line, and nothing waits for ever."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import resource_sharer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openjepa.data import workers

LARGE = (
    "--recipe", "demo", "--train.precision", "fp32", "--data.batch-size", "16",
    "--data.workers", "2", "--data.image-size", "256", "--data.channels", "3", "--model.patch-size", "64", "--model.width", "32",
    "--model.heads", "2", "--model.depth", "1", "--method.predictor.width", "16", "--method.predictor.heads", "2",
    "--health.num-images", "16",
)  # fmt: skip
TINY = "mount -t tmpfs -o size=1m tmpfs /dev/shm"  # a batch of these takes 3 MB


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(generator.integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(folder / f"{number}.bmp")
    return folder


def start(setting: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """The command line in a mount namespace of its own, after `setting` has been done there."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "sh", "-c", setting], capture_output=True).returncode:
        pytest.skip(f"this process may not change what is mounted: `unshare -m sh -c {setting!r}` fails")
    command = [sys.executable, "-m", "openjepa.cli", *map(str, arguments)]
    return subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f'{setting} && exec "$@"', "sh", *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_packing_needs_no_shared_memory(photos: Path, tmp_path: Path):
    process = start(TINY, "pack", photos, tmp_path / "packed", "--workers", "2")
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert stdout.startswith("40 images")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_needs_none_and_stops_when_told_to(photos: Path, tmp_path: Path, number: int):
    process = start(TINY, "pretrain", photos, "--out", tmp_path / "run", *LARGE, "train.length=100000steps")
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 200
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 128 + number, stderr
    assert "Traceback" not in stderr
    assert list((tmp_path / "run" / "checkpoints").glob("*.safetensors"))


def test_shared_memory_may_be_full(photos: Path, tmp_path: Path):
    full = f"{TINY} && head -c 2000000 /dev/zero > /dev/shm/full; true"
    process = start(full, "pretrain", photos, "--out", tmp_path / "run", *LARGE, "train.length=6steps")
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr


def test_a_killed_worker_is_one_line_and_its_run_goes_on(photos: Path, tmp_path: Path):
    command = [sys.executable, "-m", "openjepa.cli", "pretrain", str(photos), "--out", str(tmp_path / "run"), *LARGE]
    command += ["train.length=100000steps", "--train.log-every-steps", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 200
    while not (metrics.exists() and metrics.read_text().count('"train"') > 3) and time.monotonic() < deadline:
        time.sleep(0.1)
    children = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 2, stderr
    assert "Traceback" not in stderr
    assert "data.workers" in stderr
    assert list((tmp_path / "run" / "checkpoints").glob("*.safetensors"))


def test_a_worker_whose_run_is_killed_while_it_hands_over_a_batch_prints_nothing(capfd: pytest.CaptureFixture[str]):
    """The run asks the worker's thread for a batch and is gone before the answer, as kill -9 at a random moment has it."""
    process = os.fork()
    if not process:
        workers._be_quiet(0)
        address = resource_sharer.DupFd(os.dup(0))._id[0]
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as asking:
                asking.connect(address)
        time.sleep(0.3)
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0
    assert "Traceback" not in capfd.readouterr().err
