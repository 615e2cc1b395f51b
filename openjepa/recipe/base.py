"""What every section of a recipe is: strict, frozen, and free of torch, so that `openjepa --help` stays fast."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

Probability = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
DecayRate = Annotated[float, Field(ge=0, lt=1)]
Range = tuple[float, float]


class Section(BaseModel):
    """A group of recipe keys. Frozen; unknown keys, infinities and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_yes_for_a_number(cls, value: Any, info: Any) -> Any:
        """YAML reads yes and on as true, which would otherwise pass for the number 1."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true and false (YAML: also yes, no, on, off) do not fit here")
        return value


def check_range(key: str, limits: Range, most: float | None = None) -> None:
    """ValueError unless 0 < smallest <= largest, and largest <= most."""
    low, high = limits
    if not 0 < low <= high or (most is not None and high > most):
        limit = "" if most is None else f" <= {most:g}"
        raise ValueError(f"{key} ({low:g}, {high:g}) must satisfy 0 < smallest <= largest{limit}")


def check_width(key: str, width: int, heads: int) -> None:
    """ValueError unless heads divide the width, and its sine-cosine positions too."""
    if width % heads:
        raise ValueError(f"{key} {width} is not a multiple of its {heads} heads; try {max(width // heads, 1) * heads}")
    if width % 4:
        raise ValueError(f"{key} {width} is not a multiple of 4, which its positions need; try {width // 4 * 4 or 4}")
