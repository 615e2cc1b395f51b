"""What all that reads images shares: the type of an open file, and the error of an image that cannot be read."""

from __future__ import annotations

import io

OpenFile = io.BufferedReader | io.BytesIO


class DecodeError(ValueError):
    """An image that cannot be read: its path, and the reason in one line."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"
