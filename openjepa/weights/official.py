"""The reference release's checkpoints (facebookresearch/ijepa at 52c1ae9): its names and ours.

A `.pth.tar` that torch.save wrote: state dicts encoder, target_encoder and predictor, names prefixed `module.` by DDP or
`_orig_mod.` by torch.compile, and opt, scaler, epoch, loss, batch_size, world_size, lr beside them. Left
out: the optimizer's state, which is not read.
Names are pinned by tests/parity/test_golden_step.py, the reading by tests/parity/test_bridge.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from openjepa.weights.match import Weights, require_tensors, strip_wrappers

PARTS = ("encoder", "target_encoder", "predictor")
PREDICTOR_NAMES = {
    "predictor_embed.": "input_proj.",
    "predictor_blocks.": "blocks.",
    "predictor_norm.": "norm.",
    "predictor_proj.": "output_proj.",
    "predictor_pos_embed": "pos_embed",
    "mask_token": "mask_token",
}


def our_name(official: str) -> str:
    """Our name for one of the release's: `encoder.x` is `context_encoder.x`; the predictor's parts are in the table above."""
    part, _, name = official.partition(".")
    if part == "encoder":
        return f"context_encoder.{name}"
    if part == "predictor":
        for theirs, ours in PREDICTOR_NAMES.items():
            if name.startswith(theirs):
                return f"predictor.{ours}{name.removeprefix(theirs)}"
    return official


def is_release(content: Any) -> bool:
    """Whether what a torch file holds looks like a checkpoint of the release."""
    return isinstance(content, dict) and any(isinstance(content.get(part), dict) for part in PARTS[:2])


def read_release(content: dict[str, Any]) -> Weights:
    """The weights of a checkpoint of the release; ValueError if a part is not a state dict."""
    tensors: dict[str, Tensor] = {}
    for part in PARTS:
        if part in content:
            for name, value in strip_wrappers(require_tensors(content[part], part)).items():
                tensors[our_name(f"{part}.{name}")] = value
    weights = Weights("release checkpoint", tensors)
    absent = [part for part in PARTS if part not in content]
    weights.notes += [f"The file has no {part}." for part in absent]
    if "opt" in content:
        weights.notes.append("The optimizer's state is not taken: a run from these weights starts a fresh AdamW.")
    return weights
