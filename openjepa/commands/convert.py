"""Weights in and out: `import_weights` makes a checkpoint from someone else's file, `export` writes one that others load.

Both write in a temporary folder beside the target and rename at the end, never over something that is there. An export is
loaded back through the other library and compared with our encoder on real images before it gets its name: from the same pixels,
and, where the other library cuts pictures to size by itself, from whole pictures too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from openjepa.data.decode import Decoded, DecodeError, Picture
from openjepa.data.sources import ImageSource, open_source
from openjepa.data.views import evaluation_view
from openjepa.engine.checkpoint import write_checkpoint
from openjepa.nn.encoder import Encoder, EncoderOutput
from openjepa.recipe.methods import IJEPA
from openjepa.runs.atomic import whole
from openjepa.runs.folder import RunFolder, read_json
from openjepa.runs.paths import user_path
from openjepa.weights import hf, onnx, safetensors, timm
from openjepa.weights.load import EncoderName, load_encoder, load_reading
from openjepa.weights.match import (
    ENCODER_PARTS,
    Weights,
    check_fit,
    check_values,
    infer_recipe,
    normalization,
    read_safetensors,
    read_torch_file,
    require_tensors,
    unwrap,
)
from openjepa.weights.official import is_release, read_release

FormatName = Literal["hf", "timm", "onnx", "safetensors"]
Features = Callable[[Any], EncoderOutput]  # of uint8 images (B, C, H, W), or (C, H, W) each where the format cuts pictures
TOLERANCE = 1e-4  # largest absolute difference of a feature of the same pixels after an export
BATCHES = (1, 2)  # images at a time in the comparison: a batch that is fixed by mistake shows
PICTURE_SIZES = ((201, 333), (480, 320), (17, 13))  # height and width: wide and odd, high and even, tiny


class Format(NamedTuple):
    """How an encoder is written to a path, and read back through the library that users of the format have."""

    write: Callable[[Path, Encoder, dict[str, Any]], None]
    reload: Callable[[Path], Features]
    library: str
    suffix: str  # of the file; empty for a folder
    cuts_pictures: bool = False  # whether the library brings pictures to the encoder's size: then they may be of any size
    beside: str = ""  # of PATH and its STEM: the second file that belongs to the first, and what it is


def describe_files(format: FormatName, out: str | Path) -> str:
    """The files of an export: those that belong together are named together."""
    path, beside = Path(out), FORMATS[format].beside
    return f"{path}; {beside.format(name=path.name, stem=path.stem)}, move both together" if beside else str(path)


class Agreement(NamedTuple):
    """How far features in another library are from ours: the largest absolute difference of any, and the least cosine."""

    same_pixels: float
    whole_pictures: float | None = None  # None where the format leaves it to its user to cut pictures to size
    least_cosine: float | None = None  # of pooled features of a whole picture

    def describe(self, library: str) -> str:
        """The numbers in words."""
        words = f"Largest absolute difference of a feature in {library}: {self.same_pixels:.2g}"
        if self.whole_pictures is None or self.least_cosine is None:
            return words
        return (
            f"{words} from the same pixels, {self.whole_pictures:.2g} from whole pictures, which it cuts to size by itself "
            f"(cosine of pooled features at least {self.least_cosine:.4f})"
        )


FORMATS = {
    "hf": Format(hf.write_hf, hf.reload_hf, "transformers", "", cuts_pictures=True),
    "timm": Format(
        timm.write_timm, timm.reload_timm, "timm", ".safetensors", beside="{stem}.json holds the call that takes them"
    ),
    "onnx": Format(onnx.write_onnx, onnx.reload_onnx, "onnxruntime", ".onnx", beside="{name}.data holds its weights"),
    "safetensors": Format(safetensors.write_safetensors, safetensors.reload_safetensors, "safetensors", ".safetensors"),
}


def import_weights(
    file: str | Path,
    out: str | Path,
    *,
    encoder: EncoderName | None = None,
    heads: int | None = None,
    to_float32: bool = False,
) -> list[str]:
    """Write a checkpoint from a release checkpoint, a Hugging Face I-JEPA folder or a timm state dict; gives lines to read.

    encoder: of a release checkpoint, keep this one alone (both and the predictor if None); of a file with one encoder, which
    one it is where the file does not record it (context if None). heads: attention heads, where neither file nor width tells.
    to_float32: convert weights of another precision. ValueError in one line if the file is damaged, holds code, is not a whole
    I-JEPA that we have, or records another encoder or other heads than were asked for.
    """
    path = user_path(file)
    with staged(user_path(out)) as temporary:
        try:
            weights = _read(path, encoder)
            recipe = infer_recipe(weights, heads)
            check_fit(weights, recipe)
            check_values(weights, to_float32)
            mean, std = normalization(weights, recipe.data.channels)
        except ValueError as error:
            raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
        info = {
            "step": 0,
            "recipe": recipe.model_dump(mode="json"),
            "mean": mean,
            "std": std,
            "imported": {"file": path.name, "kind": weights.kind, "parts": weights.parts},
        }
        write_checkpoint(temporary, {f"method.{name}": value for name, value in weights.tensors.items()}, info)
    model, size = recipe.model, recipe.data.size
    width, depth, num_heads, _ = model.encoder_shape
    lines = [
        f"{path}: {weights.kind} with {', '.join(part.replace('_', ' ') for part in weights.parts)}.",
        f"Encoder: {width} wide, {depth} layers, {num_heads} heads, patches of {model.patch_size} px, "
        f"{size[0]} x {size[1]} px, {recipe.data.channels} channels (recipe {recipe.name}).",
    ]
    if "predictor" in weights.parts:
        assert isinstance(recipe.method, IJEPA)
        predictor = recipe.method.predictor
        lines.append(
            f"Predictor: {predictor.width} wide, {predictor.depth} layers, {predictor.heads} heads "
            "(the encoder's number, as in the release)."
        )
    if heads is None and weights.heads is None:
        lines.append(f"No tensor shows the heads; {num_heads} are what encoders {width} wide have.")
    return [*lines, *weights.notes, f"{len(weights.tensors)} of {len(weights.tensors)} weights in {out}"]


def export(run: str | Path, format: FormatName, out: str | Path, *, encoder: EncoderName = "context") -> Agreement:
    """Write an encoder of a run folder or checkpoint file for another library; gives how far features there are from ours.

    out: a folder for hf, a file for the others. ValueError if it exists, or if the other library's features of the same pixels
    differ by more than TOLERANCE; nothing is left behind then.
    """
    chosen = FORMATS[format]
    if chosen.suffix and Path(out).suffix != chosen.suffix:
        raise ValueError(
            f"--format {format} writes a file: let --out end in {chosen.suffix}, as {Path(out).with_suffix(chosen.suffix)}"
        )
    with torch.no_grad(), staged(user_path(out)) as temporary:
        ours = load_encoder(run, encoder)
        chosen.write(temporary, ours, safetensors.describe_encoder(ours, encoder))
        theirs, pictures = chosen.reload(temporary), real_pictures(run, ours, sum(BATCHES))
        difference = compare(ours, theirs, torch.stack([cut_picture(picture, ours) for picture in pictures]))
        if not difference <= TOLERANCE:  # NaN is not
            raise ValueError(
                f"{out} not written: features of {chosen.library} differ from ours by {difference:.2g}, more than {TOLERANCE:g}"
            )
        if not chosen.cuts_pictures:
            return Agreement(difference)
        resized = [tile(picture, size) for picture, size in zip(pictures, PICTURE_SIZES, strict=False)]
        return Agreement(difference, *compare_pictures(ours, theirs, [pictures[0], *resized]))


def compare(ours: Features, theirs: Features, images: Tensor) -> float:
    """The largest absolute difference of any pooled or patch feature, over batches of several sizes."""
    largest = torch.zeros(())
    for batch in images.split(list(BATCHES)):
        for one, other in zip(ours(batch), theirs(batch), strict=True):
            if one.shape != other.shape:
                raise ValueError(f"features have another shape in the other library: {tuple(other.shape)} for {tuple(one.shape)}")
            largest = torch.maximum(largest, (one - other).abs().max())  # which keeps NaN, as max() would not
    return float(largest)


def compare_pictures(ours: Encoder, theirs: Features, pictures: Sequence[Picture]) -> tuple[float, float]:
    """The largest absolute difference of a feature of whole pictures, each library cutting them itself, and the least cosine."""
    largest, cosines = torch.zeros(()), []
    for picture in pictures:
        one = ours(cut_picture(picture, ours)[None])
        other = theirs([torch.from_numpy(picture.decode().transpose(2, 0, 1).copy())])
        largest = torch.stack([largest, *((a - b).abs().max() for a, b in zip(one, other, strict=True))]).max()
        cosines.append(functional.cosine_similarity(one.pooled, other.pooled))
    return float(largest), float(torch.cat(cosines).min())


def real_pictures(run: str | Path, encoder: Encoder, count: int) -> list[Picture]:
    """Pictures that can be read, whole: of the run's own data if they are still there, else embedded ones."""
    found: list[Picture] = []
    for source in _sources(run, encoder.channels):
        for index in np.linspace(0, len(source) - 1, min(len(source), 4 * count)).astype(int):
            try:
                picture = source.open(int(index))
                picture.decode()
            except DecodeError:
                continue  # a run has listed it
            found.append(picture)
            if len(found) == count:
                return found
    raise AssertionError("the embedded sample has images enough")


def cut_picture(picture: Picture, encoder: Encoder) -> Tensor:
    """The view (C, H, W) that evaluation makes of a picture for an encoder."""
    view = evaluation_view(picture, encoder.size)
    return torch.from_numpy(np.broadcast_to(view, (encoder.channels, *encoder.size)).copy())


def tile(picture: Picture, size: tuple[int, int]) -> Picture:
    """A picture of another size: this one, repeated and cut off, with all its detail."""
    pixels = picture.decode()
    times = (-(-size[0] // pixels.shape[0]), -(-size[1] // pixels.shape[1]), 1)
    return Decoded(np.tile(pixels, times)[: size[0], : size[1]].copy())


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A place to write a new file or folder whole, with what it needs beside it. ValueError if something is there already."""
    if out.exists() or out.is_symlink():
        raise ValueError(f"{out} already exists; choose another --out")
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent}; make it first or choose another --out")
    try:
        with whole(out) as temporary:
            yield temporary
    except FileExistsError as error:
        raise ValueError(f"{error}; choose another --out") from None
    except SafetensorError as error:
        raise OSError(f"{out} could not be written: {str(error).split('I/O error: ')[-1]}") from None


def _read(path: Path, encoder: EncoderName | None) -> Weights:
    """Whatever the path holds, by what it looks like; ValueError if it looks like nothing that we read."""
    if path.is_dir():
        return _read_folder(path, encoder)
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder")
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        if "info" in metadata:
            raise ValueError(f"{path} is a checkpoint of OpenJEPA already: use it without importing it")
        facts = safetensors.read_facts(metadata)
        if not timm.is_timm(tensors):
            raise ValueError(f"{path}: no encoder that we know, its names start with {', '.join(sorted(tensors)[:3])}")
        return timm.read_timm(tensors, facts, encoder)
    content = unwrap(read_torch_file(path))
    if is_release(content):
        weights = read_release(content)
        return weights if encoder is None else _keep(weights, encoder)
    if isinstance(content, dict) and all(isinstance(name, str) for name in content) and timm.is_timm(content):
        return timm.read_timm(require_tensors(content, str(path)), {}, encoder)
    found = f"its entries are {', '.join(map(str, list(content)[:3]))}" if isinstance(content, dict) else type(content).__name__
    raise ValueError(f"{path}: neither a checkpoint of the release nor a timm state dict: {found}")


def _read_folder(folder: Path, encoder: EncoderName | None) -> Weights:
    if (folder / "run.json").exists():
        raise ValueError(f"{folder} is a run of OpenJEPA already: use it without importing it")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: neither a Hugging Face folder nor one of timm")
    settings = read_json(folder / "config.json")
    if hf.is_hf(settings):
        return hf.read_hf(folder, encoder)
    if "architecture" in settings:
        return timm.read_timm_folder(folder, encoder)
    raise ValueError(f"{folder} holds another model: model_type is {settings.get('model_type')!r} and not 'ijepa'")


def _keep(weights: Weights, encoder: EncoderName) -> Weights:
    """One encoder of a release checkpoint alone."""
    part = f"{encoder}_encoder"
    if part not in weights.parts:
        held = ", ".join(part.removesuffix("_encoder") for part in weights.parts if part in ENCODER_PARTS)
        raise ValueError(f"this {weights.kind} has no {encoder} encoder, only {held}")
    weights.tensors = {name: value for name, value in weights.tensors.items() if name.startswith(f"{part}.")}
    return weights


def _sources(run: str | Path, channels: int) -> Iterator[ImageSource]:
    """The run's own images, if it is a run folder and they can be opened; then the embedded ones."""
    folder = RunFolder(run)
    if folder.exists():
        with suppress(ValueError, OSError):  # moved or deleted since: nothing that an export needs
            yield open_source(folder.read_run()["data"], channels, load_reading(run))
    yield open_source("sample:test", channels if channels == 3 else 1)
