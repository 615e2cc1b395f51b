"""All files below a folder, each real folder visited once, and a list of what was passed over and why.

Links to folders are followed after all that lies below the folder itself, so that a folder with two names is listed under its
own one, and never back up: links that lead to each other, or above the folder, end. Passed over as well are folders in which
systems keep thumbnails, deleted files and the like, what cannot be listed, and what is no file (pipes, sockets, devices):
reading those would wait for ever. A link that leads nowhere is a file that cannot be read, and is reported as one.
"""

from __future__ import annotations

import heapq
import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

SYSTEM_FOLDERS = frozenset({
    "@eadir", "@tmp", "#recycle", "#snapshot", "@sharebin", "@sharesnap",  # Synology
    "@recycle", "@recently-snapshot", "@__thumb", "@transcode",  # QNAP
    "$recycle.bin", "recycler", "system volume information",  # Windows
    "__macosx", "network trash folder", "temporary items",  # macOS, and zip files made there
    "lost+found",  # of ext file systems
})  # fmt: skip

HIDDEN = "hidden"
SYSTEM = "of the system (thumbnails, deleted files)"
VISITED = "reached by another name already"
UPWARD = "a link back up"
NO_FILE = "neither a file nor a folder"


@dataclass
class Walk:
    """Files by path relative to the folder, "/" between names, sorted; and (path, reason) of what was passed over."""

    files: list[str] = field(default_factory=list)
    passed_over: list[tuple[str, str]] = field(default_factory=list)

    def describe(self) -> str:
        """What was passed over, hidden things aside, in one line; empty for nothing."""
        pairs = [(path, reason) for path, reason in self.passed_over if reason != HIDDEN]
        if not pairs:
            return ""
        counts = Counter(reason for _, reason in pairs)
        firsts = {reason: path for path, reason in reversed(pairs)}
        listed = "; ".join(f"{count} {reason}, as {firsts[reason]!r}" for reason, count in counts.most_common())
        return f"passed over in the folder: {listed}"


def walk(root: Path) -> Walk:
    """Walk a folder. OSError only if the folder itself cannot be listed; what fails below it is passed over and listed."""
    found = Walk()
    visited = {_identity(os.stat(root), str(root))}
    os.scandir(root).close()
    waiting, links = [("", str(root))], list[tuple[str, str]]()
    while waiting or links:
        if not waiting:  # the folder's own tree is done: now the first by name of the links that it and earlier links hold
            waiting += _follow(heapq.heappop(links), root, visited, found)
            continue
        prefix, folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:  # not ours to read, gone in the meantime, or on a disk that fails
            found.passed_over.append((prefix, f"folders that cannot be listed ({error.strerror})"))
            continue
        for entry in listed:
            _sort_entry(entry, prefix, waiting, links, visited, found)
    found.files.sort()
    found.passed_over.sort()
    return found


def _sort_entry(
    entry: os.DirEntry[str],
    prefix: str,
    waiting: list[tuple[str, str]],
    links: list[tuple[str, str]],
    visited: set[object],
    found: Walk,
) -> None:
    """Put an entry of a folder where it belongs: among the files, the folders to visit, or what is passed over."""
    name = prefix + entry.name
    if entry.name.startswith("."):
        found.passed_over.append((name, HIDDEN))
        return
    try:
        status = entry.stat()  # of what a link leads to
    except OSError:
        found.files.append(name)  # a link that leads nowhere, or a file that went away: reading it will tell
        return
    if not stat.S_ISDIR(status.st_mode):
        if stat.S_ISREG(status.st_mode):
            found.files.append(name)
        else:
            found.passed_over.append((name, NO_FILE))
    elif entry.name.lower() in SYSTEM_FOLDERS:
        found.passed_over.append((f"{name}/", SYSTEM))
    elif entry.is_symlink():
        heapq.heappush(links, (f"{name}/", entry.path))
    elif (identity := _identity(status, entry.path)) in visited:  # a folder that is mounted twice
        found.passed_over.append((f"{name}/", VISITED))
    else:
        visited.add(identity)
        waiting.append((f"{name}/", entry.path))


def _follow(link: tuple[str, str], root: Path, visited: set[object], found: Walk) -> list[tuple[str, str]]:
    """The link to a folder as one to visit, unless it leads above its own place or the root, or has been visited."""
    name, path = link
    try:
        identity = _identity(os.stat(path), path)
    except OSError as error:
        found.passed_over.append((name, f"folders that cannot be listed ({error.strerror})"))
        return []
    real, places = os.path.realpath(path), (os.path.realpath(os.path.dirname(path)), os.path.realpath(root))
    if any(os.path.commonpath([real, place]) == real for place in places):
        found.passed_over.append((name, UPWARD))
        return []
    if identity in visited:
        found.passed_over.append((name, VISITED))
        return []
    visited.add(identity)
    return [link]


def _identity(status: os.stat_result, path: str) -> object:
    """The same for all names of one folder. Some network file systems number nothing: there the real path tells."""
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)
