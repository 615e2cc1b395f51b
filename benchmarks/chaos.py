"""What a run survives: kills, signals, full disks, dead workers and images that go away, at random moments of a tiny run.

Each disturbance comes some steps after the last one; the run must end as it should (the right exit status, one line and no
traceback), and go on with --resume once the cause is gone. At the end its last checkpoint and the losses of all its steps are
compared, bit for bit, with a run that was never disturbed. The last line is JSON; the exit status is 1 if anything was lost.

    python benchmarks/chaos.py                      twenty kills, five of every other kind
    python benchmarks/chaos.py --count 1 --kills 2  a look

A full disk is a small file system in memory where this process may mount one, else a limit on the size of files. Runs are forked
from this process, which has imported everything: a start then takes no seconds.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import pty
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # forking is safe only before torch has threads

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

import openjepa.commands.pretrain  # noqa: F401 (so that every fork has it)
from openjepa import cli
from openjepa.runs.stop import CAUGHT

STEPS = 120
NUM_IMAGES = 48
MOST_APART = 12  # steps between disturbances
PATIENCE_S = 300.0
DISK = "size=8m"
FLAGS = [
    "--recipe", "demo", f"train.length={STEPS}steps", "train.log_every_steps=1", "train.precision=fp32", "data.batch_size=8",
    "data.workers=2", "data.image_size=16", "data.channels=1", "views.main.flip=0.5", "model.width=16", "model.depth=1",
    "model.heads=2", "method.predictor.width=8", "method.predictor.heads=2", "checkpoint.every_steps=5", "health.every_steps=40",
    "health.num_images=16",
]  # fmt: skip


class Run:
    """A run in a process of its own: started, disturbed, awaited."""

    def __init__(self, data: Path, folder: Path, *, resume: bool = False, output: tuple[int, int] | None = None) -> None:
        """output: ends (to read, to write) of what it prints to; a file beside the run folder if not given."""
        self.folder, self.log = folder, folder.with_suffix(".log")
        words = ["pretrain", str(data), "--out", str(folder), *(["--resume"] if resume else FLAGS)]
        self.before = count_steps(folder)
        with self.log.open("wb") as file:
            self.pid = os.fork()
            if self.pid == 0:
                if output is not None:
                    os.close(output[0])  # or it would have a reader in itself
                _become(words, file.fileno() if output is None else output[1])
        self.status: int | None = None

    def poll(self) -> int | None:
        """The exit status, negative for a signal's; None while it runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def wait(self) -> int:
        """Wait for its end; a run that does not come to one is killed and fails."""
        deadline = time.monotonic() + PATIENCE_S
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise Failure("it did not end by itself")
            time.sleep(0.01)
        return status

    def wait_for(self, steps: int) -> None:
        """Wait until it has done `steps` steps since it started."""
        deadline, least = time.monotonic() + PATIENCE_S, None
        while self.poll() is None and time.monotonic() < deadline:
            now = count_steps(self.folder)
            least = now if least is None or now < least else least  # a resumed run drops the steps that it does again
            if now - least >= steps:
                return
            time.sleep(0.002)
        if self.status is None:
            raise Failure("it did not come on")
        raise Failure(f"it ended by itself with {self.status}: {self.last_line()}")

    def last_line(self) -> str:
        """The last line it printed."""
        lines = self.log.read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""

    def check(self, *expected: int, says: str = "openjepa: ") -> None:
        """Failure unless it ended with one of these statuses and a line that starts so."""
        status = self.wait()
        if status not in expected:
            raise Failure(f"exit status {status}, not {expected}: {self.last_line()}")
        if "Traceback" in self.log.read_text("utf-8", "replace"):
            raise Failure(f"a traceback that ends in: {self.last_line()}")
        if not self.last_line().startswith(says):
            raise Failure(f"its last line is {self.last_line()!r}")


class Failure(Exception):
    """A disturbance that the run did not survive as it should."""


def _become(words: list[str], output: int) -> None:
    """In the forked process: the command line, and the end of an interpreter."""
    status = 1
    try:
        atexit._clear()  # what is this program's to do at its end
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        with suppress(OSError):
            os.setsid()
        try:
            cli.main(words)
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def count_steps(folder: Path) -> int:
    """Steps in a run's log."""
    metrics = folder / "metrics.jsonl"
    return metrics.read_text().count('"kind": "train"') if metrics.exists() else 0


class Place(NamedTuple):
    """Where runs are disturbed: their images, and a disk for run folders that can be filled, if one can be mounted."""

    data: Path
    runs: Path
    disk: Path | None


Disturb = Callable[[Run, Place, random.Random], None]


def kill(run: Run, place: Place, dice: random.Random) -> None:
    """kill -9 of the run and its workers."""
    os.kill(run.pid, signal.SIGKILL)
    run.check(-signal.SIGKILL, says="")


def kill_worker(run: Run, place: Place, dice: random.Random) -> None:
    """kill -9 of one of its workers."""
    listed = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(dice.choice(listed)), signal.SIGKILL)
    run.check(2)


def fill_disk(run: Run, place: Place, dice: random.Random) -> None:
    """The disk of the run folder has hardly any room left, or files may not grow."""
    if place.disk is None:
        resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        run.check(2)
        return
    filling = place.disk / "filling"
    with suppress(OSError), filling.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(filling, max(filling.stat().st_size - dice.choice([0, 0, 4096, 20_000]), 0))
    try:
        run.check(2)
    finally:
        filling.unlink()


def take_images(run: Run, place: Place, dice: random.Random) -> None:
    """The folder of images is gone, as a disk that is unplugged; then it is back."""
    away = place.data.with_name("away")
    place.data.rename(away)
    try:
        run.check(2)
    finally:
        away.rename(place.data)


def send(number: int) -> Disturb:
    """A signal that asks it to stop."""

    def disturb(run: Run, place: Place, dice: random.Random) -> None:
        os.kill(run.pid, number)
        run.check(128 + number)

    return disturb


def close_output(run: Run, place: Place, dice: random.Random) -> None:
    """Nobody reads what it prints any longer, as after `| head -1`; the run was started on a pipe or a terminal."""
    run.check(128 + signal.SIGPIPE, 128 + signal.SIGHUP, 2, says="")


KINDS: dict[str, Disturb] = {
    "kill -9": kill,
    "worker killed": kill_worker,
    "disk full": fill_disk,
    "images away": take_images,
    "pipe closed": close_output,
    "terminal closed": close_output,
} | {signal.Signals(number).name: send(number) for number in CAUGHT}


def disturb_runs(kind: str, count: int, place: Place, unbroken: Path, dice: random.Random) -> tuple[int, list[str]]:
    """(disturbances survived, what went wrong): so many of a kind, as many as fit into each run, which is then compared."""
    survived, problems, tried = 0, [], 0
    runs = place.disk if kind == "disk full" and place.disk else place.runs
    while tried < count:
        folder, in_this_run = runs / f"{kind.replace(' ', '-')}-{tried}", 0
        try:
            while tried < count and count_steps(folder) < STEPS - MOST_APART - 2:
                tried, in_this_run = tried + 1, in_this_run + 1
                _disturb_once(kind, folder, place, dice)
            run = Run(place.data, folder, resume=(folder / "run.json").exists())
            if status := run.wait():
                raise Failure(f"it did not go on, status {status}: {run.last_line()}")
            compare(folder, unbroken)
            survived += in_this_run
        except Failure as failure:
            problems.append(f"{kind}: {failure} ({folder.name}, disturbance {tried})")
        shutil.rmtree(folder, ignore_errors=True)
    return survived, problems


def _disturb_once(kind: str, folder: Path, place: Place, dice: random.Random) -> None:
    resume = (folder / "run.json").exists()
    steps = dice.randint(1, MOST_APART)
    if kind not in ("pipe closed", "terminal closed"):
        run = Run(place.data, folder, resume=resume)
        run.wait_for(steps)
        time.sleep(dice.uniform(0, 0.03))  # anywhere within a step or a save
        KINDS[kind](run, place, dice)
        return
    reader, writer = os.pipe() if kind == "pipe closed" else pty.openpty()
    try:
        run = Run(place.data, folder, resume=resume, output=(reader, writer))
        os.close(writer)
        run.wait_for(steps)
    except Failure as failure:
        os.set_blocking(reader, False)
        raise Failure(f"{failure} {os.read(reader, 10_000)[-500:]!r}") from None
    finally:
        os.close(reader)
    KINDS[kind](run, place, dice)


def compare(folder: Path, unbroken: Path) -> None:
    """Failure unless two finished runs have the same weights, optimizer state and losses, bit for bit."""
    name = f"checkpoints/step-{STEPS:08}.safetensors"
    ours, theirs = load_file(folder / name), load_file(unbroken / name)
    other = [key for key in theirs if key not in ours or ours[key].tobytes() != theirs[key].tobytes()]
    if other or ours.keys() != theirs.keys():
        raise Failure(f"{len(other)} tensors differ from those of the undisturbed run, such as {other[:1]}")
    losses = [
        [(row["step"], row["loss"]) for line in (run / "metrics.jsonl").open() if (row := json.loads(line))["kind"] == "train"]
        for run in (folder, unbroken)
    ]
    if losses[0] != losses[1]:
        raise Failure("its losses differ from those of the undisturbed run")


@contextmanager
def find_place() -> Iterator[Place]:
    """Images, and places for runs; all is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        root = Path(name)
        data, disk = root / "images", root / "disk"
        for folder in (data, disk, root / "runs"):
            folder.mkdir()
        pixels = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 20, 20), dtype=np.uint8)
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(data / f"{number:03}.png")
        mount = subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", disk], capture_output=True, check=False)
        try:
            yield Place(data, root / "runs", None if mount.returncode else disk)
        finally:
            if not mount.returncode:
                subprocess.run(["umount", disk], check=False)


def main() -> int:
    """Disturb, print a table and JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="kill -9 of the run")
    parser.add_argument("--count", type=int, default=5, help="disturbances of every other kind")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    dice, table, problems = random.Random(asked.seed), {}, []
    with find_place() as place:
        unbroken = place.runs / "unbroken"
        Run(place.data, unbroken).check(0, says="")
        print(f"{'disturbance':<16} tried survived", flush=True)
        for kind in asked.kinds:
            count = asked.kills if kind == "kill -9" else asked.count
            survived, found = disturb_runs(kind, count, place, unbroken, dice)
            table[kind], problems = (count, survived), problems + found
            print(f"{kind:<16} {count:5} {survived:8}", flush=True)
            print("\n".join(f"    {problem}" for problem in found), end="\n" if found else "", flush=True)
        full = "tmpfs" if place.disk else "limit on the size of files"
    print(json.dumps({"seed": asked.seed, "steps": STEPS, "full_disk": full, "tried_survived": table}))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
