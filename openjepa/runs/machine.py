"""What this process may use of the machine, which in a container or under a scheduler is less than the machine has.

Cores: those that the process may run on (taskset, Slurm, cpusets), and no more than the CPU time that its control groups give it
(docker --cpus). Memory: what is free, and no more than the control groups leave. Versions 1 and 2 of control groups are read, a
group's own limit and those of the groups around it. Kernel documentation: admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst.
Left out: limits of rlimit, which end a process without a word of how much is left.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path("/")
SHARED_MEMORY = Path("/dev/shm")
UNLIMITED = 2**60  # version 1 writes a number of about 2**63 where there is no limit


def count_cores(root: Path = ROOT) -> int:
    """Cores that this process can keep busy, at least 1. root: of the file system, for tests."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min([allowed, *map(math.ceil, _cpu_quotas(root))]), 1)


def total_memory(root: Path = ROOT) -> int:
    """Bytes of memory that this process and its like can have at most."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _memory_limits(root))])


def available_memory(root: Path = ROOT) -> int:
    """Bytes of memory that are free, or can be made free at once, within every limit."""
    return max(min([psutil.virtual_memory().available, *(limit - used for limit, used in _memory_limits(root))]), 0)


def free_shared_memory() -> int | None:
    """Bytes free where processes share memory; None where there is no such place."""
    try:
        return free_disk(SHARED_MEMORY)
    except OSError:
        return None


def free_disk(folder: Path) -> int:
    """Bytes free for this user on the disk of a folder. OSError if it cannot be asked."""
    return shutil.disk_usage(folder).free


def limit_threads() -> None:
    """Before torch is imported: no more threads than cores that this process can keep busy, unless the user has said how many.

    OpenMP counts the cores of taskset by itself, and not the CPU time of control groups: threads beyond it wait for one another.
    """
    if any(_cpu_quotas(ROOT)):
        os.environ.setdefault("OMP_NUM_THREADS", str(count_cores()))


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Cores' worth of CPU time of this process's control groups, one for each group that has a limit."""
    for group in _groups(root, ""):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):
            yield int(quota) / int(period)
    for group in _groups(root, "cpu"):
        numbers = [_read(group / f"cpu.cfs_{part}_us") for part in ("quota", "period")]
        if all(number.isdecimal() and int(number) for number in numbers):  # a quota of -1 is none
            yield int(numbers[0]) / int(numbers[1])


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes used and not at once free) of this process's control groups, for each group that has a limit."""
    for controller, limit_file, used_file, cache in (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        for group in _groups(root, controller):
            limit, used = _read(group / limit_file), _read(group / used_file)
            if limit.isdecimal() and used.isdecimal() and int(limit) < UNLIMITED:
                counts = dict(line.split(" ", 1) for line in _read(group / "memory.stat").splitlines() if " " in line)
                yield int(limit), max(int(used) - int(counts.get(cache, 0)), 0)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control group and of those around it: of version 2 for "", else of version 1's controller.

    Inside a container the path may be the host's, of which only the end, or nothing, can be seen: there the root is the group.
    """
    mounted = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]
        if controller not in names.split(","):
            continue
        base = mounted / names if names else mounted
        group = base if ".." in path else base / path.strip("/")  # "..": of a group that lies outside what can be seen
        yield from (folder for folder in (group, *group.parents) if folder.is_dir() and folder.is_relative_to(base))


def _read(path: Path) -> str:
    """A small file's text without its line end; empty if it cannot be read."""
    try:
        return path.read_text("utf-8").strip()
    except (OSError, ValueError):
        return ""
