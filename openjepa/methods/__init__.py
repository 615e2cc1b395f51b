"""One file, one paper, one contract: called on (images, masks) a method returns (loss, metrics).

It also has `update_target(momentum)`, and `encoders()`, the encoders that can be used afterwards by name.
"""

from openjepa.methods.ijepa import IJEPA

__all__ = ["IJEPA", "METHODS"]

METHODS = {"ijepa": IJEPA}
