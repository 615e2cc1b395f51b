"""The target encoder's update: an exponential moving average of the context encoder's weights.

Source: Grill et al. 2020 (arXiv 2006.07733), as I-JEPA uses it (2301.08243, section 3): after every optimizer step,
target <- momentum * target + (1 - momentum) * context. Buffers are fixed and are not averaged.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor, nn


@torch.no_grad()
def update_target(target: nn.Module, context: nn.Module, momentum: float | Float64[Tensor, ""]) -> None:
    """Move the target's trainable weights towards the context's, in place; momentum in [0, 1].

    A momentum that lies on a GPU stays there: the CPU does not wait to know it.
    """
    pairs = [(old, new) for old, new in zip(target.parameters(), context.parameters(), strict=True) if new.requires_grad]
    if isinstance(momentum, Tensor) and momentum.is_cuda:
        share = (1 - momentum).float()
        torch._foreach_lerp_([old for old, _ in pairs], [new for _, new in pairs], [share] * len(pairs))
        return
    momentum = float(momentum)
    for old, new in pairs:  # weight by weight: the second pass finds it in the cache
        old.mul_(momentum).add_(new, alpha=1 - momentum)
