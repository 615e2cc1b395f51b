"""Files that are not trained on: those of kinds that are not read, and those that could not be: counted, and listed.

One line on the screen for each, and a list beside the output: paths one a line, of unreadable ones with a tab and the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from openjepa.data.identify import explain_extension, extension_of
from openjepa.data.skipped import one_line
from openjepa.data.sources import FolderSource, ImageSource, printable, whole_of
from openjepa.runs.atomic import write_atomic

MOST_KINDS = 6  # named in the line


def describe_left_out(source: ImageSource) -> list[str]:
    """How many files of which kinds were passed over, kinds that may be missed first, and which folders."""
    source = whole_of(source)
    if not isinstance(source, FolderSource):
        return []
    left_out = source.left_out
    if not left_out:
        return source.notes
    kinds = Counter(extension_of(path) for path in left_out)
    ordered = sorted(kinds, key=lambda kind: (explain_extension(kind) is None, -kinds[kind], kind))
    named = [f"{kinds[kind]} {one_line(printable(kind)) or 'without extension'}{_explain(kind)}" for kind in ordered[:MOST_KINDS]]
    if len(ordered) > MOST_KINDS:
        named.append(f"{sum(kinds[kind] for kind in ordered[MOST_KINDS:])} of {len(ordered) - MOST_KINDS} other kinds")
    missed = sum(kinds[kind] for kind in ordered if explain_extension(kind))
    verb = f"{missed} of them images that may be missed: " if missed else ""
    return [f"passed over {len(left_out)} files beside {len(source)} images; {verb}{', '.join(named)}", *source.notes]


def write_left_out(source: ImageSource, path: Path) -> None:
    """List the files that were passed over; no file where there are none."""
    source = whole_of(source)
    if isinstance(source, FolderSource) and source.left_out:
        write_atomic(path, "".join(f"{one_line(printable(name))}\n" for name in source.left_out))


def describe_skipped(skipped: Sequence[tuple[str, str]], num_images: int, listed: Path | None = None) -> list[str]:
    """How many images could not be read, and the first of them; nothing where all could."""
    if not skipped:
        return []
    path, reason = skipped[0]
    where = f", listed in {listed}" if listed is not None else ""
    return [f"{len(skipped)} of {num_images} images could not be read{where}; the first is {path}: {reason}"]


def write_skipped(skipped: Sequence[tuple[str, str]], path: Path) -> None:
    """List images that could not be read; no file where all could."""
    if skipped:
        write_atomic(path, "".join(f"{one_line(name)}\t{one_line(reason)}\n" for name, reason in skipped))


def list_beside(path: Path, source: ImageSource, skipped: Sequence[tuple[str, str]]) -> list[str]:
    """List what was passed over or unreadable beside a file, as NAME.left_out.txt and NAME.skipped.txt. Gives lines to say."""
    beside = path.with_suffix(".skipped.txt")
    write_skipped(skipped, beside)
    write_left_out(source, path.with_suffix(".left_out.txt"))
    return [*describe_skipped(skipped, len(source), beside), *describe_left_out(source)]


def _explain(kind: str) -> str:
    name = explain_extension(kind)
    return f" ({name})" if name else ""
