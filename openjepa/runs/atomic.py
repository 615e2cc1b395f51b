"""Files and folders written whole or not at all: what a reader finds is the old one or the new one, never a part."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path of the same name in a temporary folder beside, for a file or a folder to be written at.

    At the end it is synced and renamed to `path`, over an earlier file; after an error nothing is left of it. What the writer
    makes beside it in the temporary folder moves beside `path`, first. OSError where it cannot be written, or a folder or a
    companion is there already.
    """
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary / path.name
        written = sorted(temporary.iterdir(), key=lambda part: part.name == path.name)
        for part in written:
            _open_to_readers(part)
            target = path.parent / part.name
            if part.is_dir() or part.name != path.name:
                part.rename(_require_free(target))
            else:
                part.replace(target)
    except OSError as error:
        if error.errno in NO_ROOM:  # which libraries say without a name, or with that of the temporary file
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file whole or not at all."""
    with whole(path) as temporary:
        temporary.write_bytes(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)


def _open_to_readers(part: Path) -> None:
    """Sync a file, and all files of a folder, and let others read them: some libraries leave 0600."""
    for file in [part] if part.is_file() else [found for found in part.rglob("*") if found.is_file()]:
        file.chmod(0o644)
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    if part.is_dir():
        part.chmod(0o755)


def _require_free(target: Path) -> Path:
    if target.exists():
        raise FileExistsError(f"{target} already exists")
    return target
