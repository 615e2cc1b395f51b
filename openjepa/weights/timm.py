"""timm's I-JEPA models: state dicts of its `vit_*_gap_*` models, whose weight names are ours.

timm makes its I-JEPA weights from the release's `encoder`, which is the context encoder (timm 1.0, checkpoint_filter_fn in
its vision_transformer.py). Written are PATH.safetensors and, beside it, PATH.json with the timm.create_model call that takes
it. The call spells out every value, because a name alone can mislead: timm's vit_base_patch16_gap_224 has 16 heads, the
paper's ViT-B/16 has 12, and a state dict fits both. Pinned by tests/parity/test_bridge.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.data.config import resolve_data_config
from torch import Tensor, nn

from openjepa.nn.encoder import Encoder, EncoderOutput, normalise, require_images
from openjepa.runs.folder import read_json, write_json
from openjepa.weights.match import Weights, read_safetensors, read_torch_file, strip_wrappers, unwrap
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
    return "patch_embed.proj.weight" in strip_wrappers(tensors)


def read_timm(tensors: dict[str, Tensor], facts: dict[str, Any], encoder: str | None) -> Weights:
    """A state dict of timm, wrapped or not, as our context or target encoder; the recorded one, else context, if encoder is None.

    facts: what we recorded in the file; empty if it is not ours.
    """
    part = settle_encoder(facts, encoder)
    weights = Weights("timm state dict", {f"{part}_encoder.{name}": value for name, value in strip_wrappers(tensors).items()})
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


class TimmEncoder(nn.Module):
    """Any timm model as an encoder: pooled features as the model pools them before its classifier, and its feature map."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, size: tuple[int, int], channels: int, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model, self.size, self.channels = model, size, channels
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> EncoderOutput:
        """Features of uint8 images (B, C, H, W), or of float images in [0, 1]."""
        require_images(images)
        features = self.model.forward_features(normalise(images, self.mean, self.std))
        pooled = self.model.forward_head(features, pre_logits=True)
        if features.ndim == 3:  # tokens, those of no patch first
            grid = self.model.patch_embed.grid_size
            return EncoderOutput(pooled, features[:, -grid[0] * grid[1] :].unflatten(1, grid))
        if getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            return EncoderOutput(pooled, features)
        return EncoderOutput(pooled, features.permute(0, 2, 3, 1))


def load_timm_encoder(name: str, file: Path | None, channels: int) -> TimmEncoder:
    """A timm model with random weights (seed 0), or those of a safetensors or PyTorch state dict. Nothing is downloaded.

    ValueError if timm has no such model, or the file does not fit it.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.0)
        raise ValueError(f"timm has no model {name!r}; did you mean {near[0]}?")
    torch.manual_seed(0)
    model: Any = timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels)
    settings: dict[str, Any] = resolve_data_config({}, model=model)  # type: ignore[no-untyped-call]
    if file is not None:
        tensors = read_safetensors(file)[0] if file.suffix == ".safetensors" else unwrap(read_torch_file(file))
        if not isinstance(tensors, dict):
            raise ValueError(f"{file} holds no state dict but a {type(tensors).__name__}")
        tensors = strip_wrappers({str(key): value for key, value in tensors.items()})
        found = model.load_state_dict({key: value for key, value in tensors.items() if isinstance(value, Tensor)}, strict=False)
        if found.missing_keys:
            raise ValueError(f"{file} does not fit timm's {name}: it lacks {', '.join(found.missing_keys[:3])}")
    mean, std = list(settings["mean"]), list(settings["std"])
    if channels != len(mean):
        mean, std = [sum(mean) / len(mean)] * channels, [sum(std) / len(std)] * channels
    _, height, width = settings["input_size"]
    return TimmEncoder(model.eval(), (height, width), channels, mean, std)
