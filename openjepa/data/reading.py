"""How the values of a data set become grey levels: what a recipe's `data` says of it, and what was measured.

One object for a whole set and for everything that is computed from a run: training, evaluation, features, report.
Source: none; the rules are ours. Images of 8 bits have their own scale and take no part in any of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from openjepa.recipe.sections import Data

Layout = Literal["channels_last", "channels_first"]
Pages = Literal["first", "all"]
Window = Literal["file", "ignore"]


@dataclass(frozen=True)
class Reading:
    """How files are read. white None: each file's own scale (raster.py)."""

    white: float | None = None
    black: float = 0.0
    layout: Layout = "channels_last"
    """Of .npy arrays of three dimensions."""
    pages: Pages = "first"
    """Of TIFF and DICOM files."""
    nodata: float | None = None
    """Value of missing pixels in images of more than 8 bits that name none of their own."""
    window: Window = "file"
    """Of DICOM files: whether the file's own black and white go before `white` and `black`."""


AS_STORED = Reading()


def keep_levels(asked: Data, recorded: Data) -> Data:
    """The settings with the levels that were measured for an earlier run, where they leave the white level to be measured."""
    if asked.white_level != "auto":
        return asked
    white = None if recorded.white_level == "auto" else recorded.white_level
    return asked.model_copy(update={"white_level": white, "black_level": recorded.black_level, "nodata": recorded.nodata})


def reading_of(settings: Data) -> Reading:
    """What a recipe says. A white level that is still to be measured (data/depth.py) counts as none."""
    white = None if settings.white_level == "auto" else settings.white_level
    return Reading(white, settings.black_level, settings.layout, settings.pages, settings.nodata, settings.window)
