"""The target encoder's update: an exponential moving average of the context encoder's weights.

Source: Grill et al. 2020 (arXiv 2006.07733), as I-JEPA uses it (2301.08243, section 3): after every optimizer step,
target <- momentum * target + (1 - momentum) * context. Buffers are fixed and are not averaged.
Pinned by tests/unit/test_ema.py.
"""

from __future__ import annotations

import torch
from jaxtyping import Float32, Float64
from torch import Tensor, nn


@torch.no_grad()
def update_target(target: nn.Module, context: nn.Module, momentum: float | Float64[Tensor, ""]) -> None:
    """Move the target's trainable weights towards the context's, in place; momentum in [0, 1].

    A momentum that lies on a GPU stays there: the CPU does not wait to know it.
    """
    pairs = [(old, new) for old, new in zip(target.parameters(), context.parameters(), strict=True) if new.requires_grad]
    if isinstance(momentum, Tensor) and momentum.is_cuda:
        _move([old for old, _ in pairs], [new for _, new in pairs], (momentum - 1).float())
        return
    momentum = float(momentum)
    for old, new in pairs:  # weight by weight: the second pass finds it in the cache
        old.mul_(momentum).add_(new, alpha=1 - momentum)


def _move(targets: list[Tensor], contexts: list[Tensor], minus_share: Float32[Tensor, ""]) -> None:
    """target + share * (context - target) for all weights in one operation, whose share may lie on their device.

    It is PyTorch's fused SGD with the context as gradient, weight decay -1 and rate -share: the one operation on lists of
    weights that reads such a number on the device. `_foreach_lerp_` with one on the device starts a kernel for each weight.
    """
    torch._fused_sgd_(
        targets, contexts, [], lr=minus_share, weight_decay=-1.0, momentum=0.0, dampening=0.0,
        nesterov=False, maximize=False, is_first_step=False,
    )  # fmt: skip
