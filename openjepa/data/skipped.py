"""Image files that could not be read: counted, listed in RUN/skipped.txt, and a stop when there are too many."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from openjepa.data.sources.contract import DecodeError, ImageSource
from openjepa.data.sources.contract import one_line as one_line
from openjepa.runs.atomic import write_atomic

MOST_FRAC = 0.05


class SkippedFiles:
    """Distinct unreadable files of a run, one a line in its skipped.txt: path, tab, reason.

    A file that is there already is read, so that a resumed run goes on counting; `try_again` first forgets what is repaired.
    """

    def __init__(self, path: Path, num_images: int) -> None:
        self.path = path
        self.num_images = num_images
        self.reasons: dict[str, str] = {}
        if path.exists():
            whole, _, cut_off = path.read_text("utf-8").rpartition("\n")
            self.reasons = dict(line.split("\t", 1) for line in whole.split("\n") if "\t" in line)
            if cut_off:  # by a kill; what comes next must start on a line of its own
                write_atomic(path, f"{whole}\n" if whole else "")

    def add(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Note (path, reason) pairs; those already known count once.

        Raises ValueError when more than MOST_FRAC of all image files cannot be read.
        """
        new = {one_line(path): one_line(reason) for path, reason in skipped}
        new = {path: reason for path, reason in new.items() if path not in self.reasons}
        if not new:
            return
        self.reasons |= new
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(f"{path}\t{reason}\n" for path, reason in new.items())
        self._check()

    def _check(self) -> None:
        """ValueError if too many files are listed."""
        if len(self.reasons) > MOST_FRAC * self.num_images:
            count, (path, reason) = len(self.reasons), next(iter(self.reasons.items()))
            raise ValueError(
                f"{count} of {self.num_images} image files ({100 * count / self.num_images:.1f} %) cannot be read, more than "
                f"{100 * MOST_FRAC:g} %: all are listed in {self.path}, the first is {path} ({reason}); bring "
                "them back and add --resume, or repair or remove them and add --resume --accept-changes"
            )

    def try_again(self, source: ImageSource) -> None:
        """Forget listed files that can be read by now, or are no longer among the images. ValueError if too many are left."""
        if not self.reasons:
            return
        numbers = {one_line(source.path(index)): index for index in range(len(source))}
        left = {}
        for path in self.reasons:
            if path in numbers:
                try:
                    source.open(numbers[path]).decode()
                except DecodeError as error:
                    left[path] = one_line(error.reason)
        if left != self.reasons:
            self.reasons = left
            write_atomic(self.path, "".join(f"{path}\t{reason}\n" for path, reason in left.items()))
        self._check()
