"""What is done with a finished run: load its encoders, evaluate and embed."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from openjepa.data.sources import canonical_spec, open_labelled
from openjepa.engine.checkpoint import digest, load_checkpoint
from openjepa.engine.precision import pick_device
from openjepa.evals import PROTOCOLS
from openjepa.evals.features import Features, RawPixels, extract_features
from openjepa.nn.encoder import Encoder
from openjepa.runs.folder import Row, RunFolder
from openjepa.runs.version import __version__
from openjepa.weights.load import find_checkpoint, load_encoder, load_random_encoder

Candidate = Literal["context", "target", "random", "pixels"]


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
