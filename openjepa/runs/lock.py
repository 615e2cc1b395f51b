"""One process writes a run folder at a time: a lock for the run's life. Standard library only.

A POSIX record lock belongs to the process and not to its children, so that data workers which outlive a killed run for a
moment do not keep its folder locked. The system lets go of it however the process ends; nothing stale stays behind.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_FILE = ".lock"
UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # file systems without locks: nothing can be promised


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Hold the lock of an existing run folder. ValueError names the process that holds it already."""
    path = folder / LOCK_FILE
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                holder = _describe_holder(path)
                raise ValueError(f"another openjepa trains in {folder}: {holder}; wait for it or stop it") from None
            if error.errno not in UNSUPPORTED:
                raise
        os.truncate(handle, 0)
        os.pwrite(handle, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
    finally:
        os.close(handle)


def _describe_holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text("utf-8"))
        return f"process {holder['process']} on {holder['host']}"
    except (OSError, ValueError, LookupError, TypeError):
        return "a process that has not named itself"
