"""A run folder has one writer: the second one is told who the first is, and no lock outlives its process."""

import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from openjepa.runs.lock import lock_run


def hold(folder: str, ready: "multiprocessing.Queue[int]") -> None:
    with lock_run(Path(folder)):
        child = os.fork()  # as a data worker that outlives the run for a moment
        if child == 0:
            time.sleep(60)
            os._exit(0)
        ready.put(child)
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Queue()
    process = context.Process(target=hold, args=(str(tmp_path), ready))
    process.start()
    child = ready.get(timeout=300)
    yield process
    process.kill()
    os.kill(child, signal.SIGKILL)


def test_the_second_writer_is_told_who_the_first_is(tmp_path, holder):
    with pytest.raises(ValueError, match=f"process {holder.pid} on {socket.gethostname()}"), lock_run(tmp_path):
        pass


def test_a_killed_process_leaves_no_lock_even_if_its_workers_live(tmp_path, holder):
    holder.kill()
    holder.join()
    with lock_run(tmp_path):
        pass


def test_a_lock_is_let_go_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), lock_run(tmp_path):
        raise RuntimeError
    with lock_run(tmp_path):
        pass
