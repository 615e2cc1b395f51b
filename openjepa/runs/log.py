"""What a run writes and shows while it trains: metrics.jsonl, TensorBoard events and a progress bar."""

from __future__ import annotations

import errno
import threading
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from openjepa.runs.folder import RunFolder


class RunConsole(Console):
    """A console on standard error; where nobody reads it any longer, BrokenPipeError is raised, so that a run can save first."""

    def __init__(self) -> None:
        super().__init__(stderr=True, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """In place of rich's own end of the program."""
        raise BrokenPipeError(errno.EPIPE, "nobody reads the output any longer")


class NoJournal:
    """In place of a Journal, on processes that write and show nothing."""

    def __enter__(self) -> NoJournal:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, step: int, note: str | None = None) -> None:
        pass

    def set_total(self, total_steps: int) -> None:
        pass

    def write(self, kind: str, row: dict[str, Any]) -> None:
        pass

    def say(self, text: str) -> None:
        pass


class Journal:
    """Takes rows of numbers and sentences, and puts them where people look. Use as a context manager."""

    def __init__(self, folder: RunFolder, start_step: int, total_steps: int, console: Console) -> None:
        """Rows at or after start_step are dropped from metrics.jsonl and hidden in TensorBoard: they will be written again."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        folder.drop_metrics_from(start_step)
        self.folder, self.console = folder, console
        self.events = SummaryWriter(str(folder.path), purge_step=start_step)
        columns = (
            TextColumn("[bold]pretrain"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
        )
        self.progress = Progress(*columns, console=console, refresh_per_second=4)
        self.task = self.progress.add_task("", total=total_steps, completed=start_step)

    def __enter__(self) -> Journal:
        self.hook = threading.excepthook
        threading.excepthook = self._leave_to_write
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()
        try:
            self.events.close()
        except OSError:
            if error is None:
                raise
        finally:
            threading.excepthook = self.hook

    def _leave_to_write(self, failed: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread raises what it could not write once more, in `write`: no traceback for it."""
        if not isinstance(failed.exc_value, OSError):
            self.hook(failed)

    def advance(self, step: int, note: str | None = None) -> None:
        """Move the bar past a step; note replaces the text beside it."""
        self.progress.update(self.task, completed=step + 1)
        if note is not None:
            self.progress.update(self.task, description=note)

    def set_total(self, total_steps: int) -> None:
        """The run has another number of steps now."""
        self.progress.update(self.task, total=total_steps)

    def write(self, kind: str, row: dict[str, Any]) -> None:
        """A row for metrics.jsonl; its numbers also go to TensorBoard as kind/name."""
        try:
            self.folder.append_metrics({"kind": kind, **row})
            for name, value in row.items():
                if isinstance(value, int | float) and name != "step":
                    self.events.add_scalar(f"{kind}/{name}", value, row["step"])
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.folder.path)) from None

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, highlight=False, markup=False)
