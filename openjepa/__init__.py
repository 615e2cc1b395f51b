"""OpenJEPA: I-JEPA on your own images. From a folder of images to features, and the truth about whether it is learning.

Names are imported when first used, so that `import openjepa` and `openjepa --help` do not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from openjepa.runs.version import __version__ as __version__

if TYPE_CHECKING:
    from openjepa.commands.convert import export, import_weights
    from openjepa.commands.embed import embed
    from openjepa.commands.evaluate import evaluate
    from openjepa.commands.pretrain import pretrain
    from openjepa.data.sources import open_source
    from openjepa.methods.ijepa import IJEPA
    from openjepa.nn.encoder import Encoder
    from openjepa.recipe.files import load_recipe
    from openjepa.weights.load import load_encoder

__all__ = [
    "IJEPA", "Encoder", "embed", "evaluate", "export", "import_weights", "load_encoder", "load_recipe", "open_source", "pretrain",
]  # fmt: skip

_HOMES = {
    "IJEPA": "methods.ijepa",
    "Encoder": "nn.encoder",
    "embed": "commands.embed",
    "evaluate": "commands.evaluate",
    "export": "commands.convert",
    "import_weights": "commands.convert",
    "load_encoder": "weights.load",
    "load_recipe": "recipe.files",
    "open_source": "data.sources",
    "pretrain": "commands.pretrain",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'openjepa' has no attribute {name!r}")
    return getattr(import_module(f"openjepa.{_HOMES[name]}"), name)
