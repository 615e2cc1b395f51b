"""Commands in processes of their own that need no seconds to start: forked from one that has imported PyTorch already.

A forked command is a whole process: it can be killed, signalled and waited for, and ends as `python -m openjepa.cli` does. The
one that forks is started once by each test worker, imports the commands, and runs no thread, so nothing is lost in the copy.
Tests of what a start itself does (environment, mount points, imports) start interpreters instead.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

COMMANDS = ("auto", "pretrain", "finetune", "evaluate", "report", "compare")
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
POLL_S = 0.005


class Started:
    """A command that runs, as subprocess.Popen gives it."""

    def __init__(self, words: list[str], cwd: Path | None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="command-")
        self._paths = {name: Path(self._folder.name, name) for name in ("stdout", "stderr", "status")}
        request = {"words": words, "cwd": str(cwd or Path.cwd()), "env": os.environ | ENVIRONMENT}
        self.pid = _forker().ask(request | {name: str(path) for name, path in self._paths.items()})
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, negative for a signal, or None while it runs."""
        if self.returncode is None and self._paths["status"].exists():
            self.returncode = int(self._paths["status"].read_text())
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        """The exit status once it has ended."""
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(f"no end within {timeout:g} s: {self._paths['stderr'].read_text()}")
            time.sleep(POLL_S)
        return status

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it printed, once it has ended."""
        self.wait(timeout)
        return self._paths["stdout"].read_text(), self._paths["stderr"].read_text()

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def start(*words: str | Path, cwd: Path | None = None) -> Started:
    """A command of openjepa in a process group of its own; its number is the process's."""
    return Started([str(word) for word in words], cwd)


class _Forker:
    """The process that forks, and the pipes to it."""

    def __init__(self) -> None:
        root = Path(__file__).resolve().parents[1]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root,
            env=os.environ | ENVIRONMENT, start_new_session=True,
        )  # fmt: skip

    def ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@cache
def _forker() -> _Forker:
    return _Forker()


def serve() -> list[str]:
    """Fork for every request until the tests end. Returns in the forked processes: the words of the command to run."""
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    status_files: dict[int, str] = {}
    while True:
        ready, _, _ = select.select([sys.stdin, ended], [], [])
        if ended in ready:
            os.read(ended, 4096)
            _write_statuses(status_files)
        if sys.stdin not in ready:
            continue
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            return _become(request, ended, wake)
        status_files[pid] = request["status"]
        print(pid, flush=True)


def _write_statuses(status_files: dict[int, str]) -> None:
    """A file for each process that has ended; all at once, so that a reader sees it whole."""
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            pid, status = found
            path = status_files.pop(pid)
            with suppress(FileNotFoundError):  # whoever started it has gone
                Path(f"{path}.part").write_text(str(os.waitstatus_to_exitcode(status)))
                os.rename(f"{path}.part", path)


def _become(request: dict[str, Any], *pipes: int) -> list[str]:
    """Take on everything that a process of its own would have."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for pipe in pipes:
        os.close(pipe)
    for number, path in enumerate((os.devnull, request["stdout"], request["stderr"])):
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    return list(request["words"])


if __name__ == "__main__":
    import importlib.util

    from openjepa import cli

    for name in COMMANDS:
        importlib.import_module(f"openjepa.commands.{name}")
    sys.argv[1:] = serve()
    __spec__ = importlib.util.find_spec("openjepa.cli")  # what workers of the command import as its main module
    cli.main()
