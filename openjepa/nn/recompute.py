"""Activation checkpointing: what a layer keeps for the backward pass, and what it computes again there.

Source: Chen et al. 2016 (arXiv 1604.06174) for `full`: a layer keeps its input alone, and costs another forward pass. `selective`
after Korthikanti et al. 2022 (2205.05198, section 5): keep what is dear to compute and small, the outputs of linear maps and of
fused attention; compute again what is cheap or large: norms, GELU, casts, explicit attention scores. Gradients are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Checkpointing = Literal["none", "selective", "full"]

KEPT = {
    torch.ops.aten.addmm.default,
    torch.ops.aten.mm.default,
    torch.ops.aten._scaled_mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def call_layer(checkpointing: Checkpointing, layer: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """What the layer gives; without gradients nothing is kept anyhow."""
    if checkpointing == "none" or not torch.is_grad_enabled():
        return layer(*arguments)
    if checkpointing == "selective":
        contexts = partial(create_selective_checkpoint_contexts, _choose)
        with _without_cached_casts():
            return checkpoint(layer, *arguments, use_reentrant=False, context_fn=contexts)
    return checkpoint(layer, *arguments, use_reentrant=False)


@contextmanager
def _without_cached_casts() -> Iterator[None]:
    """Each pass casts weights by itself. A second pass that used the first's casts would do other operations when repeated."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


def _choose(_context: Any, operation: Any, *_arguments: Any, **_named: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
