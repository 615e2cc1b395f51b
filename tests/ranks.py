"""Several processes of one run, forked from the test's, which has imported everything; they meet over gloo on this machine."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path


def run_ranks(size: int, work: Callable[[], object]) -> list[int]:
    """Exit statuses of `size` processes that each do the work."""
    return [wait_for(process) for process in start_ranks(size, work)]


def start_ranks(size: int, work: Callable[[], object], log: Path | None = None, **environment: str) -> list[int]:
    """Numbers of `size` processes that each do the work, with the environment that torchrun gives them.

    log: a file for what they print.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    sys.stdout.flush()
    sys.stderr.flush()
    for rank in range(size):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        if not (process := os.fork()):
            os.environ |= {name: str(value) for name, value in names.items()} | environment
            if log is not None:
                output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(output, 1)
                os.dup2(output, 2)
                sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
            os._exit(_do(work))
        processes.append(process)
    return processes


def wait_for(process: int, limit_s: float = 300.0) -> int:
    """The exit status of a child, negative for a signal; it is killed after a time."""
    deadline = time.monotonic() + limit_s
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(process, 9)
        time.sleep(0.01)


def _do(work: Callable[[], object]) -> int:
    try:
        work()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0
