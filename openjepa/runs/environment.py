"""What a run ran on: versions, the state of the code, the hardware."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from openjepa.runs.machine import count_cores, total_memory


def describe_versions() -> dict[str, str]:
    """Versions of Python, OpenJEPA and the libraries that numbers depend on."""
    packages = ("openjepa", "torch", "torchvision", "timm", "numpy", "pillow")
    return {"python": platform.python_version()} | {package: version(package) for package in packages}


def read_git_state() -> dict[str, Any] | None:
    """Commit and whether there were uncommitted changes, if OpenJEPA runs from a checkout; else None."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    commit, status = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return None if commit is None else {"commit": commit, "dirty": bool(status)}


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, memory in GiB and the device in words."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "cpu": _cpu_name(),
        "num_cores": count_cores(),
        "memory_gb": round(total_memory() / 2**30, 1),
        "device": name,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
