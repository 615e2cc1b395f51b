"""Features of every readable image of a source: one pass of a frozen encoder, in order, with a progress bar.

An evaluation sees only what is here: an encoder called on (B, C, H, W) images gives one vector an image and one a patch.
Raw pixels obey the same contract and are the baseline that costs nothing. Features are kept on disk for the next task on
the same encoder and data. Left out: views other than the one resized, centre-cropped one (openjepa/data/views.py).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor, nn

from openjepa.data.fingerprint import stamp
from openjepa.data.loader import evaluation_batches
from openjepa.data.sources import ImageSource
from openjepa.engine.precision import Precision, autocast
from openjepa.nn.encoder import Encoder, EncoderOutput, require_images
from openjepa.nn.vit import patchify
from openjepa.runs.atomic import write_atomic

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

MOST_BYTES = 6e9  # patch features held in memory
MOST_KEPT_BYTES = 5e8  # of a file of features; larger ones are computed again


@runtime_checkable
class ImageEncoder(Protocol):
    """What can be evaluated: openjepa.nn.encoder.Encoder, RawPixels, or anything else that is called like them."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of the images it is given."""

    @property
    def channels(self) -> int:
        """Channels of the images it is given."""

    def __call__(self, images: Tensor, /) -> tuple[Tensor, Tensor]:
        """Pooled (B, D) and patch (B, h, w, D) features of uint8 images (B, C, H, W)."""


@dataclass(frozen=True)
class RawPixels:
    """The baseline without an encoder: pooled features are the pixels in [0, 1], in a row; a patch's are its pixels."""

    size: tuple[int, int]
    channels: int
    patch_size: int = 1

    def __call__(self, images: Tensor) -> EncoderOutput:
        """uint8 images, or float images in [0, 1]; ValueError as Encoder raises it."""
        require_images(images)
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        grid = (self.size[0] // self.patch_size, self.size[1] // self.patch_size)
        return EncoderOutput(scaled.flatten(1), patchify(scaled, self.patch_size).unflatten(1, grid))


@dataclass(frozen=True)
class Features:
    """Features of the images that could be read, with their classes where the source has any."""

    rows: Floats = field(repr=False)  # pooled (n, D), or of patches (n, P, D)
    labels: Integers | None = field(repr=False)  # (n,) indices into classes
    image_idx: Integers = field(repr=False)  # (n,) numbers in the source
    classes: list[str]
    spec: str  # what the user called the source
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (path, reason) of images that could not be read


class FeatureBatch(NamedTuple):
    """Features of one batch, on the CPU."""

    rows: Floats  # pooled (B, D), or of patches (B, P, D)
    image_idx: Integers  # (B,)
    skipped: list[tuple[str, str]]


def extract_features(
    encoder: ImageEncoder,
    source: ImageSource,
    *,
    batch_size: int = 256,
    workers: int = 0,
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
    label: str | None = None,
    patches: bool = False,
) -> Features:
    """Features of all readable images of a source, in its order. Arguments and errors as for stream_features."""
    batches = list(
        stream_features(
            encoder, source, batch_size=batch_size, workers=workers, device=device, precision=precision, label=label,
            patches=patches,
        )
    )  # fmt: skip
    image_idx = np.concatenate([batch.image_idx for batch in batches])
    return Features(
        rows=np.concatenate([batch.rows for batch in batches]),
        labels=None if source.labels is None else source.labels[image_idx],
        image_idx=image_idx,
        classes=list(source.classes),
        spec=source.spec,
        skipped=[pair for batch in batches for pair in batch.skipped],
    )


def stream_features(
    encoder: ImageEncoder,
    source: ImageSource,
    *,
    batch_size: int = 256,
    workers: int = 0,
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
    label: str | None = None,
    patches: bool = False,
) -> Iterator[FeatureBatch]:
    """Features batch by batch, in float32 whatever the precision of the products; unreadable images are left out.

    An encoder that is a module is moved to `device` and, meanwhile, is in eval mode. label: what the progress bar on a
    terminal says; None shows none (a bar inside another bar would stop older versions of rich). patches: features of patches,
    row by row, in place of pooled ones.
    Raises ValueError if the source's channels are not the encoder's, no image can be read, or a feature is not finite.
    """
    if source.channels != encoder.channels:
        raise ValueError(f"{source.spec} was opened with {source.channels} channels, the encoder takes {encoder.channels}")
    assert len(source) > 0, source.spec
    place = torch.device(device)
    batches = evaluation_batches(source, encoder.size, batch_size=batch_size, workers=workers)
    with _evaluating(encoder, place), closing(batches), progress_bar(label) as progress:
        task = progress.add_task(label or "", total=len(source))
        for images, image_idx, skipped in batches:
            with torch.inference_mode(), autocast(place, precision):  # not around the yield: it would reach the caller
                pooled, tokens = encoder(images.to(place, non_blocking=True))
                rows = (tokens.flatten(1, 2) if patches else pooled).float().cpu()
            if not bool(rows.isfinite().all()):
                bad = source.path(int(image_idx[~rows.flatten(1).isfinite().all(1)][0]))
                raise ValueError(
                    f"the encoder's features of {bad} are not finite: its weights are damaged; use an earlier checkpoint"
                )
            yield FeatureBatch(rows.numpy(), image_idx.numpy(), skipped)
            progress.advance(task, len(image_idx) + len(skipped))


class FeatureStore:
    """The features of one encoder, computed once for each source; pooled ones are also kept in a folder, where one is given.

    weights: a name that is another one for other weights; features on disk are found by it, the images, the size of the view
    and the layers.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        weights: str,
        *,
        folder: Path | None = None,
        device: str | torch.device = "cpu",
        label: str | None = None,
    ) -> None:
        self.encoder, self.weights, self.folder, self.device, self.label = encoder, weights, folder, device, label
        self.known: dict[str, Features] = {}

    def extract(self, source: ImageSource, layers: int = 1) -> Features:
        """Pooled features of the encoder's last layers. ValueError as extract_features raises it, or if it lacks layers."""
        return self._find(source, f"pooled-{layers}", self.with_layers(layers), patches=False)

    def with_layers(self, layers: int) -> ImageEncoder:
        """The encoder whose pooled features are of its last layers. ValueError if it lacks them."""
        if layers == 1:
            return self.encoder
        if not isinstance(self.encoder, Encoder):
            raise ValueError(f"{self.label} has no choice of layers, which encoders of OpenJEPA have: use --layers 1")
        return self.encoder.with_layers(layers)

    def patch_shape(self) -> tuple[int, int, int]:
        """Patches down and across, and the width, of what the encoder gives for an image."""
        with torch.inference_mode(), _evaluating(self.encoder, torch.device(self.device)):
            blank = torch.zeros(1, self.encoder.channels, *self.encoder.size, dtype=torch.uint8, device=self.device)
            down, across, width = self.encoder(blank)[1].shape[1:]
        return down, across, width

    def extract_patches(self, source: ImageSource) -> Features:
        """Patch features (n, P, D) of the encoder's last layer. ValueError if they would take more than MOST_BYTES."""
        num_bytes = 4 * len(source) * math.prod(self.patch_shape())
        if num_bytes > MOST_BYTES:
            raise ValueError(
                f"patch features of the {len(source):,} images of {source.spec} take {num_bytes / 1e9:.0f} GB of memory, more "
                f"than {MOST_BYTES / 1e9:.0f}; use fewer labelled images"
            )
        return self._find(source, "patches", self.encoder, patches=True)

    def _find(self, source: ImageSource, kind: str, encoder: ImageEncoder, patches: bool) -> Features:
        key = [kind, self.weights, stamp(source), source.spec, list(self.encoder.size), self.encoder.channels]
        name = f"{kind}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]}"
        if name not in self.known:
            path = None if self.folder is None or patches else self.folder / f"{name}.safetensors"
            found = None if path is None else read_features(path, source)
            if found is None:
                label = None if self.label is None else f"{self.label}: {source.spec}"
                found = extract_features(encoder, source, device=self.device, label=label, patches=patches)
                if path is not None:
                    keep_features(path, found)
            self.known[name] = found
        return self.known[name]


def read_features(path: Path, source: ImageSource) -> Features | None:
    """Features that keep_features wrote of a source; None if there are none, or the file is damaged."""
    try:
        with safe_open(path, "numpy") as file:
            rows, image_idx = file.get_tensor("rows"), file.get_tensor("image_idx")
            skipped = json.loads(file.metadata()["skipped"])
    except (OSError, ValueError, KeyError, SafetensorError):
        return None
    labels = None if source.labels is None else source.labels[image_idx]
    return Features(rows, labels, image_idx, list(source.classes), source.spec, [(bad, reason) for bad, reason in skipped])


def keep_features(path: Path, features: Features) -> None:
    """Write features for read_features, unless they are large or the disk has no room: it is only a convenience."""
    if features.rows.nbytes > MOST_KEPT_BYTES:
        return
    tensors: dict[str, npt.NDArray[Any]] = {"rows": np.ascontiguousarray(features.rows), "image_idx": features.image_idx}
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, save(tensors, metadata={"skipped": json.dumps(features.skipped)}))
    except OSError:
        return


@contextmanager
def _evaluating(encoder: ImageEncoder, device: torch.device) -> Iterator[None]:
    """A module on the device and in eval mode, and in its former mode afterwards."""
    if not isinstance(encoder, nn.Module):
        yield
        return
    was_training = encoder.training
    encoder.to(device).eval()
    try:
        yield
    finally:
        encoder.train(was_training)


def progress_bar(label: str | None) -> Progress:
    """A bar on standard error that leaves nothing behind; silent unless standard error is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=label is None or not console.is_terminal)
