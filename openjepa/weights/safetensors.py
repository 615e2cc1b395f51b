"""Plain safetensors: an encoder's weights under our names, which are timm's, with what a reader must know in the metadata.

The metadata entry `openjepa` is JSON: encoder (context or target), size, patch_size, channels, width, depth, heads, mlp_ratio,
mean and std of images in [0, 1]. timm's and Hugging Face's files that we write carry the same entry.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from openjepa.nn.encoder import Encoder
from openjepa.nn.vit import VisionTransformer
from openjepa.runs.folder import from_json, to_json
from openjepa.weights.match import Weights, read_safetensors

ENTRY = "openjepa"


def describe_encoder(encoder: Encoder, name: str) -> dict[str, Any]:
    """The facts that go into the metadata; name: context or target."""
    block: Any = encoder.vit.blocks[0]
    return {
        "encoder": name,
        "size": list(encoder.size),
        "patch_size": encoder.patch_size,
        "channels": encoder.channels,
        "width": encoder.width,
        "depth": len(encoder.vit.blocks),
        "heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / encoder.width,
        "mean": _shortest(encoder.mean),
        "std": _shortest(encoder.std),
    }


def to_metadata(facts: dict[str, Any]) -> dict[str, str]:
    """Metadata of a safetensors file; Hugging Face wants to read that it comes from torch."""
    return {"format": "pt", ENTRY: to_json(facts)}


def read_facts(metadata: dict[str, str]) -> dict[str, Any]:
    """The facts in a file's metadata; empty where there are none."""
    try:
        facts = from_json(metadata.get(ENTRY, "{}"))
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise ValueError(f"damaged metadata: {ENTRY} is not a JSON object")
    return facts


def settle_encoder(facts: dict[str, Any], asked: str | None) -> str:
    """Which encoder a file of one encoder holds: the one that its facts record, else the one asked for, else context.

    ValueError if another one was asked for than is recorded.
    """
    recorded = facts.get("encoder")
    if recorded is None:
        return asked or "context"
    if recorded not in ("context", "target"):
        raise ValueError(f"damaged metadata: {ENTRY} records the encoder {recorded!r}, neither context nor target")
    if asked not in (None, recorded):
        raise ValueError(f"it records that it holds the {recorded} encoder, not the {asked} encoder: drop --encoder {asked}")
    return str(recorded)


def apply_facts(weights: Weights, facts: dict[str, Any]) -> Weights:
    """The weights, with heads, image size and normalization as recorded."""
    try:
        weights.heads, weights.size = int(facts["heads"]), (int(facts["size"][0]), int(facts["size"][1]))
        weights.mean, weights.std = [float(value) for value in facts["mean"]], [float(value) for value in facts["std"]]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"damaged metadata: {ENTRY} has no proper {error}") from None
    return weights


def write_safetensors(path: Path, encoder: Encoder, facts: dict[str, Any]) -> None:
    """Write the weights of an encoder and the facts."""
    save_file({name: value.contiguous() for name, value in encoder.vit.state_dict().items()}, path, metadata=to_metadata(facts))


def reload_safetensors(path: Path) -> Encoder:
    """An encoder made from the file alone."""
    tensors, metadata = read_safetensors(path)
    facts = read_facts(metadata)
    shape = (facts["width"], facts["depth"], facts["heads"], facts["mlp_ratio"])
    height, width = facts["size"]
    with torch.device("meta"):  # no random weights to be thrown away
        vit = VisionTransformer((height, width), facts["patch_size"], facts["channels"], shape)
    vit.load_state_dict(tensors, strict=True, assign=True)
    return Encoder(vit, facts["mean"], facts["std"]).eval()


def _shortest(statistics: Tensor) -> list[float]:
    """The shortest decimals that are these float32 values: 0.485, not 0.48500001430511475."""
    return [float(str(value)) for value in statistics.flatten().numpy()]
