"""What control groups leave of a machine, read from trees of files as the kernel shows them."""

import os
from pathlib import Path

import psutil
import pytest

from openjepa.runs import machine

MB = 2**20


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content + "\n")
    return root


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def test_without_limits_all_is_ours(tmp_path: Path):
    root = tree(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/cpu.max": "max 100000"})
    assert machine.count_cores(root) == machine.count_cores(tmp_path / "nothing") == 8
    assert machine.total_memory(root) == psutil.virtual_memory().total


def test_version_2_limits_of_a_group_and_of_those_around_it(tmp_path: Path):
    root = tree(tmp_path, {
        "proc/self/cgroup": "0::/slurm/job/step",
        "sys/fs/cgroup/slurm/job/step/memory.max": "max", "sys/fs/cgroup/slurm/job/step/memory.current": "1",
        "sys/fs/cgroup/slurm/job/memory.max": str(100 * MB), "sys/fs/cgroup/slurm/job/memory.current": str(70 * MB),
        "sys/fs/cgroup/slurm/job/memory.stat": f"anon 5\ninactive_file {20 * MB}",
        "sys/fs/cgroup/slurm/job/step/cpu.max": "350000 100000", "sys/fs/cgroup/slurm/cpu.max": "600000 100000",
    })  # fmt: skip
    assert machine.total_memory(root) == 100 * MB
    assert machine.available_memory(root) == 50 * MB  # a file's pages are given back at once
    assert machine.count_cores(root) == 4  # three and a half


def test_version_1_where_the_path_is_the_hosts_and_cannot_be_seen(tmp_path: Path):
    root = tree(tmp_path, {
        "proc/self/cgroup": "4:memory:/docker/0123\n3:cpu,cpuacct:/docker/0123\n1:name=systemd:/docker/0123",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(300 * MB), "sys/fs/cgroup/memory/memory.usage_in_bytes": str(310 * MB),
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
    })  # fmt: skip
    assert (machine.total_memory(root), machine.available_memory(root), machine.count_cores(root)) == (300 * MB, 0, 1)
    tree(
        tmp_path,
        {"sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**63 - 4096), "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1"},
    )
    assert (machine.total_memory(root), machine.count_cores(root)) == (psutil.virtual_memory().total, 8)


@pytest.mark.parametrize("text", ["", "nonsense", "0::", "::::", "0::/../../..", "4:memory"])
def test_files_that_say_nothing_limit_nothing(tmp_path: Path, text: str):
    root = tree(tmp_path, {"proc/self/cgroup": text, "sys/fs/cgroup/memory.max": "many", "sys/fs/cgroup/cpu.max": "0 0"})
    assert machine.count_cores(root) >= 1 and machine.total_memory(root) > 0


def test_affinity_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert machine.count_cores(tmp_path) == 1
