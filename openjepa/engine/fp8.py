"""fp8: the linear maps of transformer layers as products of 8-bit floating-point numbers, for GPUs that multiply them.

Source: Micikevicius et al. 2022 (arXiv 2209.05433): e4m3 for activations and weights, e5m2 for gradients, each tensor scaled to
fill the range. torchao does it, with scales measured at each use; weights stay float32 under their names, so that checkpoints
are the same. Left out: row-wise scales, and everything but linear maps within layers. Pinned by tests/unit/test_fp8.py.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

CAPABILITY = (8, 9)  # Ada; Hopper is 9.0
WIDTH_MULTIPLE = 16  # of both sides of a product, for torch._scaled_mm


def require_fp8(device: torch.device) -> None:
    """ValueError if the device has no fp8 products, or torchao is not there."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"device {device.type}"
        raise ValueError(f"train.fp8: {name} has no fp8 products, a GPU of the kinds Ada, Hopper or later has; drop train.fp8")
    try:
        import torchao  # noqa: F401
    except ImportError:
        raise ValueError("train.fp8 needs torchao: pip install 'openjepa[fp8]'") from None


def convert_to_fp8(layers: Iterable[nn.Module], emulate: bool = False) -> None:
    """Turn the layers' linear maps into fp8 ones, in place. emulate: the same rounding without the hardware, slowly.

    ValueError if a width does not fit.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training  # takes seconds to import

    # Sums over tokens need a multiple of 16 of them, too: torchao fills up with zeros where there are not.
    settings = Float8LinearConfig(emulate=emulate, pad_inner_dim=True)
    for layer in layers:
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear) and (module.in_features % WIDTH_MULTIPLE or module.out_features % WIDTH_MULTIPLE):
                raise ValueError(
                    f"train.fp8 needs widths that are multiples of {WIDTH_MULTIPLE}, and {name} maps {module.in_features} to "
                    f"{module.out_features}; change model.width or method.predictor.width, or drop train.fp8"
                )
        convert_to_float8_training(layer, config=settings)
