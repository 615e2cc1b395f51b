"""Paths as people write them: `~` and `~user` stand for a home, wherever a path comes from. Standard library only.

A shell expands `~` at the start of a word only, so `--out=~/runs/a` and paths in recipes arrive with it. Left out: `$HOME` and
other variables, which a shell expands everywhere, so that one that arrives is part of a name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_LEADING_HOME = re.compile(r"(--[\w.-]+=)?(~.*)", re.DOTALL)


def user_path(written: str | Path) -> Path:
    """The path with its user's home in place of `~`. ValueError if there is no such user, unless a file has that very name."""
    text = os.fspath(written)
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text and not os.path.lexists(text):
        user = text.partition("/")[0]
        raise ValueError(f"{text}: this machine knows no home for {user}; write ./{text} if {user} is a name and not a user")
    return Path(expanded)


def absolute_path(written: str | Path) -> str:
    """The path from the root on, so that it means the same from another folder; links in it stay as they are."""
    return os.path.abspath(user_path(written))


def expand_word(word: str) -> str:
    """A word of a command line, `~/x` or `--flag=~/x`, as a shell would have expanded it. ValueError as user_path raises it."""
    found = _LEADING_HOME.fullmatch(word)
    return word if found is None else f"{found[1] or ''}{user_path(found[2])}"


def quoted(path: str | Path) -> str:
    """A path for a message: in quotes where its ends, or what cannot be printed in it, would not be seen."""
    text = os.fspath(path)
    return text if text.isprintable() and text == text.strip() and text else repr(text)
