"""How long a run is whose length is given in minutes: planned from its first steps, and anew where the machine turns out faster
or slower. Rates and momentum never jump: what is left of their schedules is spread over the steps that are left.

The plans are all the state there is. They are recorded, so that a resume goes through the same rates.
"""

from __future__ import annotations

from collections.abc import Iterable

CHANGED_FRAC = 0.05  # of a run's steps: a plan as close as this is kept

Plan = tuple[int, int]  # from this step on, the run has so many steps


class Pace:
    """The plans of a run, the first from step 0 on."""

    def __init__(self, plans: Iterable[Plan]) -> None:
        self.plans: list[Plan] = []
        self._pieces: list[tuple[int, float, float]] = []  # from this step on: its place, and how much further each step goes
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
        """Where a step lies in the schedules: the step itself by the first plan, and a run's last step where that plan's lies."""
        since, start, per_step = next(piece for piece in reversed(self._pieces) if piece[0] <= step)
        return start + (step - since) * per_step

    def replan(self, done: int, left_s: float, step_s: float, most_steps: int) -> bool:
        """Plan anew after so many steps: the time left, what a step takes, and the most steps that the run may have.

        False, and nothing changes, where the length would hardly change or plans were made for later steps already.
        """
        total = min(done + max(int(left_s / step_s), 1), most_steps)
        if not self.plans[-1][0] < done < self.total_steps or abs(total - self.total_steps) <= CHANGED_FRAC * self.total_steps:
            return False
        self._add(done, total)
        return True

    def _add(self, since: int, total: int) -> None:
        start = self.place(since) if self.plans else 0.0
        self.plans.append((since, total))
        self._pieces.append((since, start, (self.planned_steps - 1 - start) / max(total - 1 - since, 1)))
