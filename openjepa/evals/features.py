"""Pooled features of every readable image of a source: one pass of a frozen encoder, in order, with a progress bar.

An evaluation sees only what is here: an encoder called on (B, C, H, W) images gives one vector an image and one a patch.
Raw pixels obey the same contract and are the baseline that costs nothing. Left out: patch features, which a folder of images
would not fit in memory, and views other than the one resized, centre-cropped one (openjepa/data/views.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from openjepa.data.loader import evaluation_batches
from openjepa.data.sources import ImageSource
from openjepa.engine.precision import Precision, autocast
from openjepa.nn.encoder import Encoder, EncoderOutput, require_images

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


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
    """The baseline without an encoder: pooled features are the pixels in [0, 1], in a row, and each pixel is a patch."""

    size: tuple[int, int]
    channels: int

    def __call__(self, images: Tensor) -> EncoderOutput:
        """uint8 images, or float images in [0, 1]; ValueError as Encoder raises it."""
        require_images(images)
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        return EncoderOutput(scaled.flatten(1), scaled.permute(0, 2, 3, 1))


@dataclass(frozen=True)
class Features:
    """Features of the images that could be read, with their classes where the source has any."""

    pooled: Floats = field(repr=False)  # (n, D)
    labels: Integers | None = field(repr=False)  # (n,) indices into classes
    image_idx: Integers = field(repr=False)  # (n,) numbers in the source
    classes: list[str]
    spec: str  # what the user called the source
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (path, reason) of images that could not be read


class FeatureBatch(NamedTuple):
    """Features of one batch, on the CPU."""

    pooled: Floats  # (B, D)
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
) -> Features:
    """Features of all readable images of a source, in its order. Arguments and errors as for stream_features."""
    batches = list(
        stream_features(encoder, source, batch_size=batch_size, workers=workers, device=device, precision=precision, label=label)
    )
    image_idx = np.concatenate([batch.image_idx for batch in batches])
    return Features(
        pooled=np.concatenate([batch.pooled for batch in batches]),
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
) -> Iterator[FeatureBatch]:
    """Features batch by batch, in float32 whatever the precision of the products; unreadable images are left out.

    An encoder that is a module is moved to `device` and, meanwhile, is in eval mode. label: what the progress bar on a
    terminal says; None shows none (a bar inside another bar would stop older versions of rich).
    Raises ValueError if the source's channels are not the encoder's, no image can be read, or a feature is not finite.
    """
    if source.channels != encoder.channels:
        raise ValueError(f"{source.spec} was opened with {source.channels} channels, the encoder takes {encoder.channels}")
    assert len(source) > 0, source.spec
    place = torch.device(device)
    batches = evaluation_batches(source, encoder.size, batch_size=batch_size, workers=workers)
    with _evaluating(encoder, place), closing(batches), _progress_bar(label) as progress:
        task = progress.add_task(label or "", total=len(source))
        for images, image_idx, skipped in batches:
            with torch.inference_mode(), autocast(place, precision):  # not around the yield: it would reach the caller
                pooled = encoder(images.to(place, non_blocking=True))[0].float().cpu()
            if not bool(pooled.isfinite().all()):
                bad = source.path(int(image_idx[~pooled.isfinite().all(1)][0]))
                raise ValueError(
                    f"the encoder's features of {bad} are not finite: its weights are damaged; use an earlier checkpoint"
                )
            yield FeatureBatch(pooled.numpy(), image_idx.numpy(), skipped)
            progress.advance(task, len(image_idx) + len(skipped))


def take_last_layer(encoder: Encoder, features: Features) -> Features:
    """What the encoder gives as features of its last layer alone, from those of its last layers side by side."""
    if encoder.num_layers == 1:
        return features
    weight, bias = (part.detach().cpu().numpy() for part in encoder.vit.norm.parameters())
    return replace(features, pooled=features.pooled[:, -encoder.width :] * weight + bias)


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


def _progress_bar(label: str | None) -> Progress:
    """A bar on standard error that leaves nothing behind; silent where that is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=label is None or not console.is_terminal)
