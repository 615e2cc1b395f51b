"""Which of a run's processes this one is, as torchrun says in the environment. Standard library only.

torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and TORCHELASTIC_RESTART_COUNT where it
starts all processes again after one has died. Without any of them there is one process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """This process's number, how many there are, and the same of this machine alone."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    restarts: int = 0
    """How often torchrun has started the processes again."""


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """What the environment says. ValueError, in one line, where it contradicts itself."""
    if not ("RANK" in environment or "WORLD_SIZE" in environment):
        return Launch()
    names = ["RANK", "WORLD_SIZE", "LOCAL_RANK"]
    missing = [name for name in [*names, "MASTER_ADDR", "MASTER_PORT"] if not environment.get(name)]
    if missing:
        given = "RANK" if "RANK" in environment else "WORLD_SIZE"
        raise ValueError(
            f"the environment has {given} but not {', '.join(missing)}: start several processes with torchrun, which sets all of "
            "them, or unset RANK and WORLD_SIZE for one process"
        )
    rank, size, local_rank = (_read_number(environment, name) for name in names)
    local_size = _read_number(environment, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environment else size
    if not 0 <= local_rank <= rank < size or not local_rank < local_size <= size:
        numbers = f"RANK {rank}, WORLD_SIZE {size}, LOCAL_RANK {local_rank}, LOCAL_WORLD_SIZE {local_size}"
        raise ValueError(f"the environment's {numbers} do not go together: start the processes with torchrun, which sets them")
    restarts = _read_number(environment, "TORCHELASTIC_RESTART_COUNT") if "TORCHELASTIC_RESTART_COUNT" in environment else 0
    return Launch(rank, size, local_rank, local_size, restarts)


def _read_number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not text.isdecimal():
        raise ValueError(f"the environment's {name} is {text!r}, not a number: start the processes with torchrun, which sets it")
    return int(text)
