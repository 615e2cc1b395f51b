"""What is done with a finished run: load its encoders, evaluate and embed."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from openjepa import __version__
from openjepa.build import make_method
from openjepa.config import Recipe, build_recipe
from openjepa.data.sources import ImageSource, canonical_spec, open_source
from openjepa.engine.checkpoint import digest, find_latest, load_checkpoint
from openjepa.engine.precision import pick_device
from openjepa.evals import PROTOCOLS
from openjepa.evals.embed import write_features
from openjepa.evals.features import Features, RawPixels, extract_features
from openjepa.methods import Method
from openjepa.nn.encoder import Encoder, VisionTransformer
from openjepa.records import Row, RunFolder

EncoderName = Literal["context", "target"]
Candidate = Literal["context", "target", "random", "pixels"]


def load_encoder(run: str | Path, encoder: EncoderName = "context", device: str = "cpu", layers: int = 1) -> Encoder:
    """The encoder of a run folder's newest checkpoint, or of a checkpoint file, ready for evaluation.

    Called on (B, C, H, W) images, uint8 or floats in [0, 1], it gives `pooled` (B, D x layers) and `patches` (B, h, w, D).
    ValueError if there is no undamaged checkpoint, or it has no such encoder or not so many layers.
    """
    prefix = f"method.{encoder}_encoder."
    tensors, info = load_checkpoint(find_checkpoint(run), prefix)
    if not tensors:
        other = "target" if encoder == "context" else "context"
        raise ValueError(f"{run} holds no {encoder} encoder; --encoder {other} is there")
    with torch.device("meta"):  # no random weights to be thrown away: half the memory, and seconds for a large encoder
        vit = _make_vit(_recipe_of(info))
    vit.load_state_dict({name.removeprefix(prefix): value for name, value in tensors.items()}, strict=True, assign=True)
    return Encoder(vit, info["mean"], info["std"], layers).to(pick_device(device)).eval()


def load_random_encoder(run: str | Path, device: str = "cpu", layers: int = 1) -> Encoder:
    """The run's context encoder as it was before the first step: the same seed draws the same weights."""
    _, info = load_checkpoint(find_checkpoint(run), prefix="method.context_encoder.pos_embed")
    recipe = _recipe_of(info)
    torch.manual_seed(recipe.train.seed)
    return Encoder(_make_vit(recipe), info["mean"], info["std"], layers).to(pick_device(device)).eval()


def find_checkpoint(run: str | Path) -> Path:
    """A checkpoint file itself, or the newest undamaged one of a run folder."""
    path = Path(run)
    if path.is_file():
        return path
    folder = RunFolder(path)
    folder.require()
    latest, _ = find_latest(folder.checkpoints)
    if latest is None:
        raise ValueError(f"{path} has no checkpoint yet; train it further: openjepa pretrain DATA --out {path} --resume")
    return latest


class TrainedMethod(NamedTuple):
    """A whole method as a checkpoint holds it, its recipe, and the normalisation of its images in [0, 1]."""

    method: Method
    recipe: Recipe
    mean: list[float]
    std: list[float]


def load_method(checkpoint: Path) -> TrainedMethod:
    """Encoders and predictor of a checkpoint file, on the CPU, for evaluation. ValueError if one of them is not in it."""
    tensors, info = load_checkpoint(checkpoint, prefix="method.")
    recipe = _recipe_of(info)
    with torch.device("meta"):
        method = make_method(recipe)
    if not any(name.startswith("method.predictor.") for name in tensors):
        raise ValueError(f"{checkpoint.name} holds no predictor")
    for name in method.encoders():
        if not any(key.startswith(f"method.{name}_encoder.") for key in tensors):
            raise ValueError(f"{checkpoint.name} holds no {name} encoder")
    weights = {name.removeprefix("method."): value for name, value in tensors.items()}
    method.load_state_dict(weights, strict=True, assign=True)
    return TrainedMethod(method.eval(), recipe, info["mean"], info["std"])


def load_candidate(run: str | Path, name: Candidate, device: str = "cpu", layers: int = 1) -> Encoder | RawPixels:
    """One of the things that a probe compares: a trained encoder, the untrained one, or the pixels themselves."""
    if name == "random":
        return load_random_encoder(run, device, layers)
    if name == "pixels":
        encoder = load_encoder(run, "context")
        return RawPixels(encoder.size, encoder.channels)
    return load_encoder(run, name, device, layers)


def evaluate(
    run: str | Path,
    protocol: str,
    train: str,
    test: str,
    encoder: Candidate = "context",
    *,
    layers: int = 1,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Accuracy of an encoder on labelled data by a protocol of evals.PROTOCOLS; gives the record.

    run: a run folder, whose evals/ gets the record, or a checkpoint file. train, test: data specs with labels. layers: how many
    last layers the features are of.
    """
    return evaluate_many(run, [encoder], [protocol], train, test, layers=layers, seed=seed, device=device)[0]


def evaluate_many(
    run: str | Path,
    encoders: list[Candidate],
    protocols: list[str],
    train: str,
    test: str,
    *,
    layers: int = 1,
    seed: int = 0,
    device: str = "auto",
    note: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda words: print(f"openjepa: {words}", file=sys.stderr),
) -> list[dict[str, Any]]:
    """Every encoder by every protocol, extracting features once per encoder.

    note receives progress messages; warn a line where the run folder cannot take the record.
    """
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise ValueError(f"no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    place, checkpoint = pick_device(device), find_checkpoint(run)
    _, info = load_checkpoint(checkpoint, prefix="method.context_encoder.pos_embed")
    facts = {
        "run": str(run), "checkpoint": checkpoint.name, "step": info["step"], "sha256": digest(checkpoint),
        "version": __version__,
    }  # fmt: skip
    records: list[dict[str, Any]] = []
    for name in encoders:
        candidate = load_candidate(checkpoint, name, str(place), layers)  # the one that records name, though a run may go on
        sources = [open_labelled(spec, candidate.channels) for spec in (train, test)]
        features: list[Features] = [
            extract_features(candidate, source, device=str(place), label=f"{name}: {source.spec}") for source in sources
        ]
        for protocol in protocols:
            note(f"{protocol} on {name}")
            result = PROTOCOLS[protocol](features[0], features[1], seed)
            record = {"encoder": name, "layers": layers, "protocol": protocol, "train": train, "test": test, **facts}
            record |= {"train_path": canonical_spec(train), "test_path": canonical_spec(test), "seed": seed}
            record |= result.to_record() | {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
            records.append(record)
            if Path(run).is_dir():
                try:
                    RunFolder(run).write_eval(name_record(record), record)
                except OSError as error:  # of somebody else's run, or a full disk: the result is worth more than its record
                    warn(f"the record could not be written: {error}")
    return records


def name_record(record: Row) -> str:
    """The file name of an evaluation's record: the same for the same question, and another one for every other."""
    question = [record[key] for key in ("protocol", "encoder", "layers", "train_path", "test_path", "seed", "step", "sha256")]
    short = hashlib.sha256(json.dumps(question).encode()).hexdigest()[:8]
    return f"{record['protocol']}-{record['encoder']}-step-{record['step']}-{short}"


def open_labelled(spec: str, channels: int) -> ImageSource:
    """The data that a probe needs. ValueError, beyond open_source's, if it has no labels."""
    source = open_source(spec, channels)
    if source.labels is None:
        raise ValueError(f"{spec} has no labels; put each class's images into a sub-folder of its own")
    return source


def embed(
    run: str | Path, data: str, out: str | Path, encoder: EncoderName = "context", device: str = "auto", layers: int = 1
) -> int:
    """Write features of every readable image to a Parquet file; gives the number of rows."""
    place = pick_device(device)
    loaded = load_encoder(run, encoder, str(place), layers)
    source = open_source(data, loaded.channels)
    return write_features(
        Path(out), loaded, source, encoder_name=encoder, run=str(run), device=str(place), label="embed"
    ).num_images


def _make_vit(recipe: Recipe) -> VisionTransformer:
    data, model = recipe.data, recipe.model
    return VisionTransformer(
        data.size, model.patch_size, data.channels, model.encoder_shape, residual_rescale=model.residual_rescale
    )


def _recipe_of(info: dict[str, Any]) -> Recipe:
    return build_recipe(info["recipe"], where="the checkpoint's recipe")
