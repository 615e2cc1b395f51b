"""What all that reads images shares: the type of an open file, and the error of an image that cannot be read."""

from __future__ import annotations

import io
from collections.abc import Sequence

OpenFile = io.BufferedReader | io.BytesIO


class DecodeError(ValueError):
    """An image that cannot be read: its path, and the reason in one line; what it quotes of the file is escaped."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in reason)
        super().__init__(path, self.reason)

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def none_readable(spec: str, skipped: Sequence[tuple[str, str]]) -> DecodeError:
    """Of a set of which every image that was tried failed: (path, reason), one or more."""
    path, reason = skipped[0]
    return DecodeError(spec, f"none of {len(skipped)} images can be read; the first is {path} ({reason})")
