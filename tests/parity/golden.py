"""Losses of other libraries, recorded by make_golden_methods.py."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).with_name("golden")


def load_golden(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")
