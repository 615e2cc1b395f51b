"""Weights that come from outside: read without running anything in the file, matched name by name, checked value by value.

Every reader of this folder gives `Weights`: tensors under our names, and what the file says of itself. What it does not say is
inferred from the shapes: width, depth, patch, channels and grid are in them; attention heads are not, and come from the table
of presets (arXiv 2010.11929, table 1) or the user. A file fits as a whole or is refused.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from openjepa.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from openjepa.methods.make import make_method
from openjepa.recipe.edit import with_changes
from openjepa.recipe.files import list_recipes, load_recipe
from openjepa.recipe.sections import ENCODERS, Model, Recipe

ENCODER_PARTS = ("context_encoder", "target_encoder")
SHOWN_NAMES = 3  # of each kind of misfit
STATE_DICTS = ("state_dict", "model", "model_state_dict")
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # torch.compile, FSDP, recomputation: anywhere
ZIP_START = b"PK\x03\x04"  # what torch.save has written since 1.6; older files cannot be mapped into memory


@dataclass
class Weights:
    """Tensors by our names, `context_encoder.*`, `target_encoder.*` and `predictor.*`, and what their file says of them."""

    kind: str  # what was read, in the user's words
    tensors: dict[str, Tensor] = field(repr=False)
    heads: int | None = None
    size: tuple[int, int] | None = None  # height and width in pixels
    mean: list[float] | None = None  # of images in [0, 1], one value a channel
    std: list[float] | None = None
    notes: list[str] = field(default_factory=list)  # lines that the user should read

    @property
    def parts(self) -> list[str]:
        """Which of context_encoder, target_encoder and predictor there are."""
        return [part for part in (*ENCODER_PARTS, "predictor") if any(name.startswith(f"{part}.") for name in self.tensors)]

    def part(self, name: str) -> dict[str, Tensor]:
        """One part's tensors, without its name in front."""
        return {key.removeprefix(f"{name}."): value for key, value in self.tensors.items() if key.startswith(f"{name}.")}


def read_torch_file(path: Path) -> Any:
    """What torch.save wrote, mapped into memory where possible. Only tensors and plain values: code is never run.

    ValueError if the file is damaged or holds anything else.
    """
    with path.open("rb") as file:
        is_zip = file.read(len(ZIP_START)) == ZIP_START
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # about pickles of a kind that torch.save does not write: read or refused, in one line
            with torch.serialization.safe_globals(NUMPY_SCALARS):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # whatever damaged bytes can raise
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            raise ValueError(
                f"{path}: refused, it holds {code[1]}, which is neither a tensor nor a plain value and could be code; "
                "nothing in it was run"
            ) from None
        # PyTorch's own words on a pickle that it refuses advise to load it all the same.
        reason = "a pickle that may hold code; nothing in it was run" if "weights_only" in str(error) else _first_line(error)
        raise ValueError(f"{path}: damaged, or not a file that torch.save wrote ({reason})") from None


def _numpy_scalar(dtype: np.dtype[Any], data: bytes = b"") -> np.generic:
    """What `numpy._core.multiarray.scalar` makes of a number's bytes, for kinds that cannot hold an object."""
    if dtype.kind not in "biufcSUmM" or not isinstance(data, bytes):
        raise ValueError(f"a NumPy scalar of {dtype} is no number")
    scalar: np.generic = np.frombuffer(data.ljust(dtype.itemsize, b"\0"), dtype, count=1)[0] if dtype.itemsize else dtype.type()
    return scalar


# A loss that was logged as a NumPy number. NumPy 1 and 2 keep the function in modules of different names.
NUMPY_SCALARS: list[Any] = [
    *((_numpy_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (*"?bBhHiIlLqQefdgFDGSU", "m8", "M8")),
]


def unwrap(content: Any) -> Any:
    """The state dict in a training program's checkpoint, which has it under one of the common names; else what was given."""
    if not isinstance(content, dict):
        return content
    inner = [content[key] for key in STATE_DICTS if isinstance(content.get(key), dict)]
    return inner[0] if inner else content


def strip_wrappers(tensors: dict[str, Any]) -> dict[str, Any]:
    """State dict names without what DDP, torch.compile and the like put in front of, or between, a model's own, in any order.

    ValueError if two names become one.
    """
    found: dict[str, Any] = {}
    for name, value in tensors.items():
        parts = [part for part in name.split(".") if part not in WRAPPERS]
        while len(parts) > 1 and parts[0] == "module":  # only in front: a model may have a part of that name
            del parts[0]
        own = ".".join(parts)
        if own in found:
            raise ValueError(f"it holds {own} twice, once as {name}")
        found[own] = value
    return found


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a safetensors file, mapped into memory, and its metadata. ValueError if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged or not a safetensors file ({_first_line(error)})") from None


def infer_recipe(weights: Weights, heads: int | None = None) -> Recipe:
    """The paper's recipe for these weights, with the values that their shapes give; heads as recorded, given or tabled.

    ValueError if this is not an encoder of ours, or other heads are given than the file records.
    """
    if heads is not None and weights.heads not in (None, heads):
        raise ValueError(f"it records {weights.heads} attention heads, not {heads}: drop --heads {heads}")
    model, channels, num_patches = infer_encoder(weights.part(_an_encoder(weights)), heads or weights.heads)
    size = weights.size or _square_size(num_patches, model.patch_size)
    base = _nearest_paper_recipe(model, size)
    changes: dict[str, Any] = {"data.image_size": size[0] if size[0] == size[1] else size, "data.channels": channels}
    changes |= {f"model.{key}": value for key, value in model.model_dump().items()}
    changes |= {f"method.predictor.{key}": value for key, value in infer_predictor(weights, model).items()}
    recipe = with_changes(base, changes, weights.kind)
    return recipe if recipe == base else recipe.model_copy(update={"name": "imported", "description": f"From a {weights.kind}."})


def infer_encoder(encoder: dict[str, Tensor], heads: int | None) -> tuple[Model, int, int]:
    """An encoder's model section, its channels and its number of patches, from the shapes of its tensors."""
    projection, table = encoder.get("patch_embed.proj.weight"), encoder.get("pos_embed")
    hidden = encoder.get("blocks.0.mlp.fc1.weight")
    if projection is None or table is None or hidden is None or (projection.ndim, table.ndim, hidden.ndim) != (4, 3, 2):
        raise ValueError(
            f"no architecture that we have: no plain ViT among {', '.join(sorted(encoder)[:SHOWN_NAMES]) or 'nothing'}"
        )
    width, channels, patch_size, patch_width = projection.shape
    if patch_size != patch_width:
        raise ValueError(f"no architecture that we have: patches of {patch_size} x {patch_width} px are not square")
    depth = _count_layers(encoder)
    presets = [name for name, (wide, _, _, ratio) in ENCODERS.items() if wide == width and int(wide * ratio) == len(hidden)]
    if not presets and len(hidden) != 4 * width:
        raise ValueError(f"no architecture that we have: an MLP {len(hidden)} wide at width {width}; ours are four times as wide")
    preset = presets[0] if presets else "base"
    tabled_width, tabled_depth, tabled_heads, _ = ENCODERS[preset]
    if heads is None and width != tabled_width:
        known = ", ".join(str(wide) for wide, *_ in ENCODERS.values())
        raise ValueError(f"no architecture that we know: width {width} is none of {known}; if it is right, add --heads N")
    return (
        Model.model_validate({
            "encoder": preset,
            "width": None if width == tabled_width else width,
            "depth": None if depth == tabled_depth else depth,
            "heads": None if heads in (None, tabled_heads) else heads,
            "patch_size": patch_size,
        }),
        channels,
        table.shape[1],
    )  # fmt: skip


def infer_predictor(weights: Weights, encoder: Model) -> dict[str, Any]:
    """The predictor's section of a recipe; nothing without one. It has the encoder's heads, as in the release."""
    predictor = weights.part("predictor")
    if not predictor:
        return {}
    projection = predictor.get("input_proj.weight")
    if projection is None or projection.ndim != 2:
        raise ValueError(f"no predictor that we have: no input projection among {', '.join(sorted(predictor)[:SHOWN_NAMES])}")
    return {
        "width": len(projection),
        "depth": _count_layers(predictor),
        "heads": encoder.encoder_shape[2],
        "positions": "own",
    }


def check_fit(weights: Weights, recipe: Recipe) -> None:
    """ValueError, with counts and the first names, unless the parts that there are match the recipe's, name by name."""
    with torch.device("meta"):
        method = make_method(recipe)
    parts = tuple(f"{part}." for part in weights.parts)
    expected = {name: value.shape for name, value in method.state_dict().items() if name.startswith(parts)}
    missing = [name for name in expected if name not in weights.tensors]
    unexpected = [name for name in weights.tensors if name not in expected]
    misshapen = [
        f"{name} {tuple(value.shape)} for {tuple(expected[name])}"
        for name, value in weights.tensors.items()
        if name in expected and value.shape != expected[name]
    ]
    if missing or unexpected or misshapen:
        matched = len(expected) - len(missing) - len(misshapen)
        wrong = [
            _count(names, word)
            for names, word in ((missing, "missing"), (unexpected, "unexpected"), (misshapen, "of another shape"))
        ]
        raise ValueError(f"not a whole {weights.kind}: {matched} of {len(expected)} weights matched, {', '.join(wrong)}")


def check_values(weights: Weights, to_float32: bool) -> None:
    """ValueError for a weight that is not float32, unless it may be converted in place, or that is not finite."""
    for name, value in weights.tensors.items():
        if value.layout != torch.strided or not value.is_floating_point():
            raise ValueError(f"{name} is {value.dtype}, not floating point")
        if value.dtype != torch.float32:
            if not to_float32:
                raise ValueError(
                    f"weights are {str(value.dtype).removeprefix('torch.')}, such as {name}; add --to-float32 to convert"
                )
            weights.tensors[name] = value = value.float()
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinity: these weights are broken")


def normalization(weights: Weights, channels: int) -> tuple[list[float], list[float]]:
    """The file's own mean and standard deviation, or ImageNet's, which the release's weights were trained with."""
    if weights.mean is not None and weights.std is not None:
        if not len(weights.mean) == len(weights.std) == channels:
            raise ValueError(f"{len(weights.mean)} means and {len(weights.std)} deviations for {channels} channels")
        return weights.mean, weights.std
    if channels != len(IMAGENET_MEAN):
        raise ValueError(
            f"nothing says how images of {channels} channels are normalised; only 3 have ImageNet's mean and deviation"
        )
    return list(IMAGENET_MEAN), list(IMAGENET_STD)


def require_tensors(value: Any, what: str) -> dict[str, Tensor]:
    """The value as a dictionary of tensors; ValueError if it is none."""
    if not isinstance(value, dict) or not value or not all(isinstance(item, Tensor) for item in value.values()):
        raise ValueError(f"{what} is not a dictionary of tensors")
    return {str(name): tensor.detach() for name, tensor in value.items()}


def _an_encoder(weights: Weights) -> str:
    found = [part for part in ENCODER_PARTS if part in weights.parts]
    if not found:
        raise ValueError(f"no encoder in this {weights.kind}")
    return found[0]


def _nearest_paper_recipe(model: Model, size: tuple[int, int]) -> Recipe:
    """The shipped paper recipe of this encoder at this size, else of this encoder, else the paper's ViT-B/16."""
    papers = [load_recipe(name) for name in list_recipes() if name.startswith("paper_")]
    same = [paper for paper in papers if paper.model.encoder_shape == model.encoder_shape]
    same.sort(key=lambda paper: (paper.model.patch_size != model.patch_size, paper.data.size != size))
    return same[0] if same else load_recipe("paper_vit_base_16")


def _square_size(num_patches: int, patch_size: int) -> tuple[int, int]:
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise ValueError(f"no architecture that we have: {num_patches} positions are no square grid, or one is a class token's")
    return side * patch_size, side * patch_size


def _count_layers(names: Iterable[str]) -> int:
    """How many different N there are in `blocks.N.`, 1 at least."""
    return len({match[1] for name in names if (match := re.match(r"blocks\.(\d+)\.", name))}) or 1


def _count(names: list[str], word: str) -> str:
    """As "2 missing (a, b)"."""
    shown = ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")
    return f"{len(names)} {word}" + (f" ({shown})" if names else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
