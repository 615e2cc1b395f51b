"""The processes that train one run together. There is one so far; what they would have to agree on goes through here."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor


@dataclass(frozen=True)
class World:
    """This process's number and how many there are."""

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if self.size != 1:
            raise NotImplementedError("a run of several processes is not there yet")

    @property
    def is_first(self) -> bool:
        """Whether this process writes and shows."""
        return self.rank == 0

    def all(self, flag: Bool[Tensor, ""]) -> Bool[Tensor, ""]:
        """Whether the flag is true on every process; it stays on its device."""
        return flag
