"""Stopping cleanly: signals that ask a process to end are noted, the step in progress ends, the state is saved.

Standard library only.
"""

from __future__ import annotations

import signal
from types import FrameType

CAUGHT = (
    signal.SIGINT,  # Ctrl-C
    signal.SIGQUIT,  # Ctrl-\
    signal.SIGTERM,  # `kill`, and schedulers
    signal.SIGHUP,  # a terminal that goes away
    signal.SIGUSR1,  # schedulers that warn before a time limit: sbatch --signal=USR1@60
    signal.SIGUSR2,
    signal.SIGXCPU,  # a limit of CPU time (ulimit -t), and of jobs under some schedulers
)


class Interrupted(Exception):
    """The run was asked to stop, saved its state and can be resumed from this step."""

    def __init__(self, step: int, signal_number: int) -> None:
        super().__init__(step, signal_number)
        self.step, self.signal_number = step, signal_number


class SignalCatcher:
    """While entered, `caught` is the number of the first signal of CAUGHT, else None; a second one acts at once.

    A signal that is ignored stays ignored, as SIGHUP is under nohup. patient: later signals do not act at once, as under
    torchrun, which passes on what the terminal has sent already; it kills what does not end.
    """

    def __init__(self, patient: bool = False) -> None:
        self.caught: int | None = None
        self.patient = patient

    def __enter__(self) -> SignalCatcher:
        before = {number: signal.getsignal(number) for number in CAUGHT}
        self._before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
        for number in self._before:
            signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.patient:
            self.caught = self.caught or number
            return
        self.caught = number
        signal.signal(number, self._before[signal.Signals(number)])
