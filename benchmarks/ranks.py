"""What a run of several processes survives: kill -9 of a random one, at random moments, under torchrun with restarts.

torchrun ends the processes that are left and starts all of them again, which resumes from the newest checkpoint. At the end the
last checkpoint and the losses of all steps are compared, bit for bit, with those of a run of as many processes that was never
disturbed. The last line is JSON; the exit status is 1 if anything was lost.

    python benchmarks/ranks.py                      ten kills of two processes
    python benchmarks/ranks.py --kills 1            a look
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.numpy import load_file

STEPS_A_KILL = 30  # the run has these for each kill, and once more
MOST_APART = 20  # steps between a start and a kill
PATIENCE_S = 300.0
FLAGS = [
    "--recipe", "demo", "train.log_every_steps=1", "train.precision=fp32", "data.batch_size=8", "data.workers=1",
    "data.image_size=16", "model.width=16", "model.depth=1", "model.heads=2", "method.predictor.width=8",
    "method.predictor.heads=2", "checkpoint.every_steps=5", "health.every_steps=100", "health.num_images=16",
]  # fmt: skip


def start(run: Path, size: int, steps: int, restarts: int) -> subprocess.Popen[bytes]:
    """torchrun with `size` processes on this machine; what they print goes to a file beside the run folder."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}", f"--max-restarts={restarts}",
        "-m", "openjepa", "pretrain", "sample:test", "--out", str(run), *FLAGS, f"train.length={steps}steps",
    ]  # fmt: skip
    with run.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})


def list_ranks(torchrun: int) -> list[int]:
    """The processes that torchrun has started and that train."""
    ranks = []
    for child in Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        ranks += [int(child)] if b"openjepa" in words else []
    return ranks


def read_losses(run: Path) -> list[tuple[int, float]]:
    """(step, loss) of every step in the log."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"]


def wait_for_steps(process: subprocess.Popen[bytes], run: Path, started: float, steps: int) -> None:
    """Until the run, started again at a time, has logged `steps` new steps. TimeoutError where it ends or hangs."""
    deadline, least = time.monotonic() + PATIENCE_S, None
    while time.monotonic() < deadline and process.poll() is None:
        metrics = run / "metrics.jsonl"
        if metrics.exists() and metrics.stat().st_ctime > started:
            now = len(read_losses(run))
            least = now if least is None or now < least else least  # a restart drops the steps that it does again
            if now - least >= steps:
                return
        time.sleep(0.005)
    raise TimeoutError(f"the run did not come on: {run.with_suffix('.log').read_text()[-2000:]}")


def main() -> int:
    """Disturb, compare, print JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    dice, steps = random.Random(asked.seed), STEPS_A_KILL * (asked.kills + 1)
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        whole, broken = Path(name) / "whole", Path(name) / "broken"
        if status := start(whole, asked.processes, steps, 0).wait(PATIENCE_S + steps):
            print(f"the undisturbed run ended with {status}: {whole.with_suffix('.log').read_text()[-2000:]}")
            return 1
        process, started, killed = start(broken, asked.processes, steps, asked.kills), time.time(), []
        for _ in range(asked.kills):
            wait_for_steps(process, broken, started, dice.randint(1, MOST_APART))
            ranks = list_ranks(process.pid)
            number = dice.randrange(len(ranks))
            os.kill(ranks[number], signal.SIGKILL)
            started = time.time()
            killed.append((number, read_losses(broken)[-1][0]))
            print(f"killed process {number} of {len(ranks)} after step {killed[-1][1]}", flush=True)
            while set(list_ranks(process.pid)) & set(ranks) and process.poll() is None:
                time.sleep(0.01)
            started = time.time()
        status = process.wait(PATIENCE_S + steps)
        log = broken.with_suffix(".log").read_text("utf-8", "replace")
        if status:
            print(f"the disturbed run ended with {status}: {log[-6000:]}")
            return 1
        ours, theirs = (load_file(run / f"checkpoints/step-{steps:08}.safetensors") for run in (broken, whole))
        same = ours.keys() == theirs.keys() and all(ours[key].tobytes() == theirs[key].tobytes() for key in theirs)
        same &= read_losses(broken) == read_losses(whole)
        restarts, named = log.count("Resuming at step"), log.count(" is gone")
    found = {"processes": asked.processes, "kills": asked.kills, "restarts": restarts, "named": named, "status": status}
    print(json.dumps(found | {"steps": steps, "bit_equal": same}))
    return 0 if same and status == 0 and restarts == asked.kills else 1


if __name__ == "__main__":
    sys.exit(main())
