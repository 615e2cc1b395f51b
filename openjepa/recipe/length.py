"""The length of a run: one word of a number and a unit, 300epochs, 5000steps or 30minutes."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, cast

Unit = Literal["epochs", "steps", "minutes"]

_WORDS = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*(epoch|step|minute)s?\s*", re.IGNORECASE)


class Length(NamedTuple):
    """amount: above 0, and whole for steps."""

    amount: float
    unit: Unit

    def __str__(self) -> str:
        return f"{self.amount:.12g}{self.unit}"


def parse_length(words: str) -> Length:
    """Read "300epochs", "300 epochs" or "1 epoch". ValueError names the form if it is another."""
    found = _WORDS.fullmatch(words)
    try:
        amount = float(found[1]) if found else 0.0
    except ValueError:
        amount = 0.0
    if found is None or not 0 < amount < float("inf"):
        raise ValueError("a length is a number above 0 with its unit: 300epochs, 5000steps or 30minutes")
    unit = cast(Unit, f"{found[2].lower()}s")
    if unit == "steps" and amount != int(amount):
        raise ValueError(f"a run has a whole number of steps: {round(amount) or 1}steps")
    return Length(amount, unit)
