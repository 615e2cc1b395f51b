"""Which images a source holds, in one short string: so that a run notices when it is resumed on others.

A hash of all image names in order, and of the size, beginning and end of some files or the pixels of some images in
memory. Names are relative to the source, so that a folder which has moved as a whole keeps its fingerprint. Left out: the
whole content of files, which would take a pass over the data. `stamp` is stricter, for features that are kept: any file that
is written again, moved or repaired gives another one.
"""

from __future__ import annotations

import hashlib
import os

from openjepa.data.reading import AS_STORED
from openjepa.data.sources import DecodeError, FewSource, FolderSource, ImageSource, spread, whole_of
from openjepa.runs.paths import user_path

SAMPLED = 256  # images of which more than the name counts
END_BYTES = 4096  # of a sampled file's beginning, and of its end: pictures without compression are all of one size
DIGITS = 16  # of either part


def fingerprint(source: ImageSource) -> str:
    """The fingerprint of a source's images, NAMES-CONTENTS; those that cannot be read count as empty."""
    names, contents = hashlib.sha256(), hashlib.sha256()
    for index in range(len(source)):
        names.update(_name(source, index) + b"\0")
    for index in spread(len(source), SAMPLED).tolist():
        contents.update(_content(source, index) + b"\0")
    return f"{names.hexdigest()[:DIGITS]}-{contents.hexdigest()[:DIGITS]}"


def describe_difference(recorded: str, found: str) -> str:
    """How the images of one fingerprint differ from another's, in words; empty where they are the same."""
    names, dash, _ = recorded.partition("-")
    if not dash or recorded == found:
        return ""  # one without a dash was made before names and contents were kept apart
    return (
        "with files of other names" if names != found.partition("-")[0] else "where files of the same names hold something else"
    )


def stamp(source: ImageSource) -> str:
    """The fingerprint with the size and the time of last writing of every file, and labels, where the source has them."""
    found = hashlib.sha256(fingerprint(source).encode())
    whole = whole_of(source)
    for path in whole.files if isinstance(whole, FolderSource) else []:
        try:
            written = os.stat(path)
            found.update(f"{written.st_size} {written.st_mtime_ns}\n".encode())
        except OSError:
            found.update(b"gone\n")
    if isinstance(whole, FolderSource) and whole.reading != AS_STORED:
        found.update(repr(whole.reading).encode())
    if source.labels is not None:
        found.update(source.labels.tobytes() + "\0".join(source.classes).encode("utf-8", "backslashreplace"))
    return found.hexdigest()[:DIGITS]


def _name(source: ImageSource, index: int) -> bytes:
    if isinstance(source, FewSource):
        return _name(source.whole, int(source.image_idx[index]))
    if isinstance(source, FolderSource):
        return os.fsencode(source.files[index].removeprefix(str(user_path(source.root))))
    return source.path(index).removeprefix(source.spec).encode("utf-8", "surrogateescape")


def _content(source: ImageSource, index: int) -> bytes:
    if isinstance(source, FewSource):
        return _content(source.whole, int(source.image_idx[index]))
    if not isinstance(source, FolderSource):
        try:
            return source.open(index).decode().tobytes()
        except DecodeError:
            return b""
    try:
        with open(source.files[index], "rb") as file:
            begin, size = file.read(END_BYTES), os.fstat(file.fileno()).st_size
            file.seek(max(size - END_BYTES, 0))
            return f"{size} ".encode() + hashlib.sha256(begin + file.read(END_BYTES)).digest()
    except OSError:
        return b""
