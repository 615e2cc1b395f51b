"""Hugging Face transformers' IJepaModel: a folder of config.json, model.safetensors and preprocessor_config.json.

Two sets of weight names are in use: those of the published folders, which every version reads and which we write, and those
of transformers 5's modules, which its own save_pretrained may leave; RENAMED maps the second to the first. Query, key and value
are three matrices there and one here. The processor is PerceiverImageProcessor, which cuts the middle square out and resizes
it, as our evaluation does: up to half a pixel of the picture aside, where BitImageProcessor, which crops after resizing, is up
to half a pixel of the view aside. ViTImageProcessor, transformers' choice for I-JEPA, squashes, and serves where the view is not
square. transformers does not say which encoder a published folder holds (tests/parity/test_bridge.py).

Pipelines read images as colour. A grey encoder is therefore written as one of colour that weighs red, green and blue as
Pillow does when it turns colour to grey: the same features, another patch projection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from openjepa.data.colour import LUMA
from openjepa.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from openjepa.nn.encoder import Encoder, EncoderOutput, normalise, require_images
from openjepa.runs.folder import read_json
from openjepa.weights.match import Weights, read_safetensors
from openjepa.weights.safetensors import read_facts, settle_encoder, to_metadata

NAMES = {
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "norm.": "layernorm.",
}
LAYER_NAMES = {
    "norm1.": "layernorm_before.",
    "attn.proj.": "attention.output.dense.",
    "norm2.": "layernorm_after.",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
}
QKV = ("attention.attention.query.", "attention.attention.key.", "attention.attention.value.")
RENAMED = {
    "attention.q_proj.": QKV[0],
    "attention.k_proj.": QKV[1],
    "attention.v_proj.": QKV[2],
    "attention.o_proj.": "attention.output.dense.",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
}
LAYER_NORM_EPS = 1e-6  # of the release and ours
ENCODER_NOTE = (
    "A Hugging Face folder does not say which encoder it holds; it is taken as the {encoder} encoder (--encoder decides)."
)


def is_hf(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of an I-JEPA model of transformers."""
    return config.get("model_type") == "ijepa"


def read_hf(folder: Path, encoder: str | None) -> Weights:
    """The weights of a folder as our context or target encoder; the recorded one, else context, if encoder is None."""
    settings = read_json(folder / "config.json")
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no model.safetensors; other files of weights are not read")
    theirs: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    for file in files:  # one, or the shards of a large one
        tensors, metadata = read_safetensors(file)
        theirs |= tensors
        facts |= read_facts(metadata)
    part = settle_encoder(facts, encoder)
    tensors = {f"{part}_encoder.{name}": value for name, value in from_hf(theirs).items()}
    weights = Weights("Hugging Face I-JEPA folder", tensors)
    if "encoder" not in facts:
        weights.notes.append(ENCODER_NOTE.format(encoder=part))
    weights.heads, weights.size = _read_settings(folder, settings)
    weights.mean, weights.std = _read_normalization(folder)
    if settings.get("layer_norm_eps") != LAYER_NORM_EPS:
        weights.notes.append(f"config.json has layer_norm_eps {settings.get('layer_norm_eps')}; ours is {LAYER_NORM_EPS}.")
    return weights


def to_hf(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """An encoder's tensors under transformers' published names."""
    theirs: dict[str, Tensor] = {}
    for name, value in tensors.items():
        _, layer, rest = _split_layer(name, "blocks.")
        if not layer:
            theirs[_rename(name, NAMES)] = value
        elif rest.startswith("attn.qkv."):
            kind = rest.removeprefix("attn.qkv.")
            # Copies, because safetensors takes no tensors that share memory.
            theirs |= {f"encoder.layer.{layer}.{to}{kind}": third.clone() for to, third in zip(QKV, value.chunk(3), strict=True)}
        else:
            theirs[f"encoder.layer.{layer}.{_rename(rest, LAYER_NAMES)}"] = value
    return theirs


def from_hf(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of to_hf, for either set of names; names that are in no table stay as they are."""
    back = {to: ours for ours, to in NAMES.items()}
    layer_back = {to: ours for ours, to in LAYER_NAMES.items()}
    ours: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    for name, value in theirs.items():
        prefix = "encoder.layer." if name.startswith("encoder.layer.") else "layers."
        _, layer, rest = _split_layer(name, prefix)
        if not layer:
            ours[_rename(name, back)] = value
            continue
        rest = _rename(rest, RENAMED)
        third = next((third for third in QKV if rest.startswith(third)), None)
        if third is None:
            ours[f"blocks.{layer}.{_rename(rest, layer_back)}"] = value
        else:
            thirds.setdefault(f"blocks.{layer}.attn.qkv.{rest.removeprefix(third)}", {})[third] = value
    for name, parts in thirds.items():
        if len(parts) == len(QKV):  # else it is missing, and the check of names says so
            ours[name] = torch.cat([parts[third] for third in QKV])
    return ours


def write_hf(path: Path, encoder: Encoder, facts: dict[str, Any]) -> None:
    """Write the folder. ValueError for channels that no image of a pipeline has."""
    transformers = _transformers()
    mean, std = facts["mean"], facts["std"]
    tensors = dict(encoder.vit.state_dict())
    if facts["channels"] == 1:
        tensors["patch_embed.proj.weight"] = tensors["patch_embed.proj.weight"] * torch.from_numpy(LUMA).view(1, 3, 1, 1)
        facts = facts | {"channels": 3, "mean": mean * 3, "std": std * 3, "was_grey": True}
    elif facts["channels"] != 3:
        raise ValueError(
            f"--format hf takes 1 or 3 channels, this encoder has {facts['channels']}; timm, onnx and safetensors take any"
        )
    path.mkdir()
    height, width = facts["size"]
    config = transformers.IJepaConfig(
        hidden_size=facts["width"], num_hidden_layers=facts["depth"], num_attention_heads=facts["heads"],
        intermediate_size=round(facts["width"] * facts["mlp_ratio"]), layer_norm_eps=LAYER_NORM_EPS,
        image_size=height if height == width else (height, width), patch_size=facts["patch_size"], num_channels=3,
        architectures=["IJepaModel"],
    )  # fmt: skip
    config.save_pretrained(path)
    normalization = {"image_mean": facts["mean"], "image_std": facts["std"], "resample": Image.Resampling.BILINEAR}
    size = {"height": height, "width": width}
    if height == width:  # equal sizes: nothing of the middle square is cut off
        processor = transformers.PerceiverImageProcessor(size=size, crop_size=size, do_convert_rgb=True, **normalization)
    else:
        processor = transformers.ViTImageProcessor(size=size, do_convert_rgb=True, **normalization)
    processor.save_pretrained(path)
    save_file(to_hf(tensors), path / "model.safetensors", metadata=to_metadata(facts))


def reload_hf(path: Path) -> Callable[[Iterable[Tensor]], EncoderOutput]:
    """The features of transformers' own pipeline on the written folder, as a function of uint8 images (C, H, W) of any size."""
    transformers = _transformers()
    extract = transformers.pipeline("image-feature-extraction", model=str(path), device="cpu")
    config = extract.model.config
    size = config.image_size if isinstance(config.image_size, list | tuple) else (config.image_size, config.image_size)
    grid = (size[0] // config.patch_size, size[1] // config.patch_size)

    def features(images: Iterable[Tensor]) -> EncoderOutput:
        pictures = [Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()) for image in images]
        tokens = torch.cat(extract(pictures, return_tensors=True))
        return EncoderOutput(tokens.mean(1), tokens.unflatten(1, grid))

    return features


def _read_settings(folder: Path, settings: dict[str, Any]) -> tuple[int, tuple[int, int]]:
    """Heads and image size; ValueError for what our encoder does not compute."""
    for key, ours in (("hidden_act", "gelu"), ("qkv_bias", True)):
        if settings.get(key, ours) != ours:
            raise ValueError(f"{folder}/config.json: no architecture that we have, {key} is {settings[key]} and not {ours}")
    size = settings.get("image_size", 224)
    try:
        height, width = size if isinstance(size, list) else (size, size)
        return int(settings.get("num_attention_heads", 12)), (int(height), int(width))
    except (TypeError, ValueError):
        raise ValueError(f"{folder}/config.json: image_size or num_attention_heads is not a number") from None


def _read_normalization(folder: Path) -> tuple[list[float] | None, list[float] | None]:
    """Mean and standard deviation of the folder's processor; None without one."""
    file = folder / "preprocessor_config.json"
    if not file.exists():
        return None, None
    settings = read_json(file)
    if not settings.get("do_normalize", True) or "image_mean" not in settings or "image_std" not in settings:
        raise ValueError(f"{file} does not say image_mean and image_std")
    if not math.isclose(settings.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        raise ValueError(f"{file}: rescale_factor is {settings['rescale_factor']}, ours is 1/255")
    try:
        return [float(value) for value in settings["image_mean"]], [float(value) for value in settings["image_std"]]
    except (TypeError, ValueError):
        raise ValueError(f"{file}: image_mean or image_std is not a list of numbers") from None


def _split_layer(name: str, prefix: str) -> tuple[str, str, str]:
    """Prefix, layer number and rest of a name such as blocks.3.norm1.weight; the last two empty if it is not of a layer."""
    if not name.startswith(prefix):
        return name, "", ""
    layer, _, rest = name.removeprefix(prefix).partition(".")
    return prefix, layer, rest


def _rename(name: str, table: dict[str, str]) -> str:
    """The name with its beginning replaced as the table says."""
    for old, new in table.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ValueError("Hugging Face folders need transformers: pip install 'openjepa[hf]'") from None
    library: Any = transformers
    library.utils.logging.disable_progress_bar()
    return library


class HFEncoder(nn.Module):
    """A vision transformer that transformers reads, as an encoder: pooled is the mean over patches."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, mean: list[float], std: list[float]) -> None:
        super().__init__()
        size = model.config.image_size
        self.model, self.channels = model, int(model.config.num_channels)
        self.size: tuple[int, int] = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.grid = (self.size[0] // model.config.patch_size, self.size[1] // model.config.patch_size)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> EncoderOutput:
        """Features of uint8 images (B, C, H, W), or of float images in [0, 1]."""
        require_images(images)
        tokens = self.model(pixel_values=normalise(images, self.mean, self.std)).last_hidden_state
        patches = tokens[:, -self.grid[0] * self.grid[1] :]
        return EncoderOutput(patches.mean(1), patches.unflatten(1, self.grid))


def load_hf_encoder(folder: Path) -> HFEncoder:
    """A folder of config.json and model.safetensors, read by transformers and nothing else; no code in it is run.

    ValueError for another folder, or a model that is not a vision transformer with patches.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; hf:FOLDER is a folder of config.json and model.safetensors")
    transformers = _transformers()
    try:
        model = transformers.AutoModel.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"transformers cannot read {folder}: {str(error).splitlines()[0]}") from None
    if not all(hasattr(model.config, key) for key in ("image_size", "patch_size", "num_channels")):
        raise ValueError(f"{folder} holds a {model.config.model_type} model, which has no patches of images")
    mean, std = _read_normalization(folder)
    channels = int(model.config.num_channels)
    return HFEncoder(model.eval(), mean or list(IMAGENET_MEAN)[:channels], std or list(IMAGENET_STD)[:channels])
