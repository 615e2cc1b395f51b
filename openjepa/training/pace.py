"""How many steps a run of some minutes has: planned before it starts, and again where the machine turns out faster or slower.

Rates and momentum are functions of a place in the first plan's schedules, and the last step of the last plan always has the
schedules' last place. Places never jump. A longer plan keeps the place that was reached until as large a share of the steps is
done, so that a warm-up not yet over still ends at its share of the whole run; a shorter one catches up by even strides.

The plans are the only state. They are recorded, so that a resume goes through the same rates.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

CHANGED_FRAC = 0.05  # of a run's steps: a plan as close as this is kept

Plan = tuple[int, int]  # the step from which it counts, and the run's number of steps


class _Piece(NamedTuple):
    """The places of one plan."""

    since: int
    total: int
    reached: float  # the place of the last step before it


class Pace:
    """The plans of a run, the first from step 0 on."""

    def __init__(self, plans: Iterable[Plan]) -> None:
        self.plans: list[Plan] = []
        self._pieces: list[_Piece] = []
        for since, total in plans:
            self._add(since, total)

    @property
    def planned_steps(self) -> int:
        """Steps of the first plan, for which the schedules are made."""
        return self.plans[0][1]

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, as planned last."""
        return self.plans[-1][1]

    def place(self, step: int) -> float:
        """Where a step lies in the schedules, 0 to planned_steps - 1; by the first plan the step itself."""
        since, total, reached = next(piece for piece in reversed(self._pieces) if piece.since <= step)
        end = self.planned_steps - 1
        in_proportion = end / max(total - 1, 1)
        catching_up = (end - reached) / (total - since)  # the steeper of the two where the schedules lag behind the steps
        return max(reached, end - (total - 1 - step) * max(in_proportion, catching_up))

    def replan(self, done: int, left_s: float, step_s: float) -> bool:
        """Plan again after `done` steps, from the time left and the time of a step.

        False, and nothing changes, where the length would hardly change or plans were made for later steps already.
        """
        total = done + max(int(left_s / step_s), 1)
        if not self.plans[-1][0] < done < self.total_steps or abs(total - self.total_steps) <= CHANGED_FRAC * self.total_steps:
            return False
        self._add(done, total)
        return True

    def _add(self, since: int, total: int) -> None:
        reached = self.place(since - 1) if self.plans else 0.0
        self.plans.append((since, total))
        self._pieces.append(_Piece(since, total, reached))


def typical_step_s(timed: Sequence[tuple[int, float]]) -> float:
    """Seconds of a step from two or more pairs (steps done, seconds trained): the lower median over the pairs' intervals.

    One interval with something rare in it, as the compilation of a new shape, does not cut the run short.
    """
    return statistics.median_low((now_s - before_s) / (now - before) for (before, before_s), (now, now_s) in pairwise(timed))
