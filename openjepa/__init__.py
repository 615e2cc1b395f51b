"""OpenJEPA: I-JEPA on your own images. From a folder of images to features, and the truth about whether it is learning.

Names are imported when first used, so that `import openjepa` and `openjepa --help` do not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openjepa.apply import embed, evaluate, load_encoder
    from openjepa.bridge import export, import_weights
    from openjepa.config import load_recipe
    from openjepa.data.sources import open_source
    from openjepa.methods.ijepa import IJEPA
    from openjepa.nn.encoder import Encoder
    from openjepa.run import pretrain

__version__ = "0.1.0"
__all__ = [
    "IJEPA", "Encoder", "embed", "evaluate", "export", "import_weights", "load_encoder", "load_recipe", "open_source", "pretrain",
]  # fmt: skip

_HOMES = {
    "IJEPA": "methods.ijepa",
    "Encoder": "nn.encoder",
    "embed": "apply",
    "evaluate": "apply",
    "export": "bridge",
    "import_weights": "bridge",
    "load_encoder": "apply",
    "load_recipe": "config",
    "open_source": "data.sources",
    "pretrain": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'openjepa' has no attribute {name!r}")
    return getattr(import_module(f"openjepa.{_HOMES[name]}"), name)
