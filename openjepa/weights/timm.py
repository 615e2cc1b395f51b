"""timm's I-JEPA models: state dicts of its `vit_*_gap_*` models, whose weight names are ours.

timm makes its I-JEPA weights from the release's `encoder`, which is the context encoder (timm 1.0, checkpoint_filter_fn in
its vision_transformer.py). Written are PATH.safetensors and, beside it, PATH.json with the timm.create_model call that takes
it. The call spells out every value, because a name alone can mislead: timm's vit_base_patch16_gap_224 has 16 heads, the
paper's ViT-B/16 has 12, and a state dict fits both. Pinned by tests/parity/test_bridge.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from openjepa.nn.encoder import Encoder, EncoderOutput, normalise
from openjepa.runs.folder import read_json, write_json
from openjepa.weights.match import Weights, read_safetensors
from openjepa.weights.safetensors import apply_facts, read_facts, settle_encoder, write_safetensors

# By width and patch size; any other shape is a variation of the first.
MODEL_NAMES = {
    (768, 16): "vit_base_patch16_gap_224",
    (1280, 14): "vit_huge_patch14_gap_224",
    (1280, 16): "vit_huge_patch16_gap_448",
    (1408, 16): "vit_giant_patch16_gap_224",
}
CONTEXT_NOTE = "timm takes its I-JEPA weights from the release's context encoder; if these are not, say --encoder target."


def is_timm(tensors: dict[str, Any]) -> bool:
    """Whether a state dict has timm's names for a ViT."""
    return "patch_embed.proj.weight" in tensors


def read_timm(tensors: dict[str, Tensor], facts: dict[str, Any], encoder: str | None) -> Weights:
    """A state dict of timm as our context or target encoder; the recorded one, else context, if encoder is None.

    facts: what we recorded in the file; empty if it is not ours.
    """
    part = settle_encoder(facts, encoder)
    weights = Weights("timm state dict", {f"{part}_encoder.{name}": value for name, value in tensors.items()})
    if "encoder" not in facts:
        weights.notes.append(CONTEXT_NOTE)
    return apply_facts(weights, facts) if facts else weights


def read_timm_folder(folder: Path, encoder: str | None) -> Weights:
    """A folder as timm lays it out for the hub: config.json and model.safetensors."""
    settings = read_json(folder / "config.json").get("pretrained_cfg") or {}
    tensors, metadata = read_safetensors(folder / "model.safetensors")
    weights = read_timm(tensors, read_facts(metadata), encoder)
    if settings.get("mean") and settings.get("std"):
        weights.mean, weights.std = list(settings["mean"]), list(settings["std"])
    return weights


def write_timm(path: Path, encoder: Encoder, facts: dict[str, Any]) -> None:
    """Write the state dict, and the JSON beside it."""
    write_safetensors(path, encoder, facts)
    call = {
        "model_name": MODEL_NAMES.get((facts["width"], facts["patch_size"]), MODEL_NAMES[768, 16]),
        "img_size": facts["size"],
        "patch_size": facts["patch_size"],
        "in_chans": facts["channels"],
        "embed_dim": facts["width"],
        "depth": facts["depth"],
        "num_heads": facts["heads"],
        "mlp_ratio": facts["mlp_ratio"],
        "num_classes": 0,
    }
    write_json(path.with_suffix(".json"), {"create_model": call, **{key: facts[key] for key in ("mean", "std", "encoder")}})


def reload_timm(path: Path) -> Callable[[Tensor], EncoderOutput]:
    """The features that timm's own model computes from the written files, as a function of uint8 images."""
    written = read_json(path.with_suffix(".json"))
    with torch.device("meta"):  # no random weights to be thrown away
        model: Any = timm.create_model(**written["create_model"])
    model.load_state_dict(load_file(path), strict=True, assign=True)
    model.eval()
    mean, std = (torch.tensor(written[key]).view(-1, 1, 1) for key in ("mean", "std"))

    def features(images: Tensor) -> EncoderOutput:
        normalised = normalise(images, mean, std)
        tokens = model.forward_features(normalised)
        return EncoderOutput(model(normalised), tokens.unflatten(1, model.patch_embed.grid_size))

    return features
