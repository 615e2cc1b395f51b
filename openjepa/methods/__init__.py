"""One file, one paper, one contract (`Method`). METHODS makes them from the image's size and channels and recipe sections."""

from openjepa.methods.contract import Method
from openjepa.methods.ijepa import IJEPA
from openjepa.methods.mae import MAE

__all__ = ["IJEPA", "MAE", "METHODS", "Method"]

METHODS: dict[str, type[IJEPA] | type[MAE]] = {"ijepa": IJEPA, "mae": MAE}
