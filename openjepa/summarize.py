"""The report of a run: its records, and pictures of what its context encoder sees, made from the images it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from openjepa import health
from openjepa.apply import find_checkpoint, load_encoder, load_method
from openjepa.beliefs import show_beliefs
from openjepa.data.loader import evaluation_batches
from openjepa.data.sources import ImageSource, name_held_out, open_source
from openjepa.nn.encoder import Encoder
from openjepa.records import Row, RunFolder
from openjepa.report.page import build_report
from openjepa.report.pictures import Beliefs, Neighbours, Pictures

Array = npt.NDArray[Any]

NUM_MAPS = 8  # images with a map of their patch features
NUM_BELIEFS = 9  # images of which hidden blocks are shown
NUM_QUERIES = 6  # images whose neighbours are shown
NUM_NEIGHBOURS = 8
MAX_SEARCHED = 5000  # images among which neighbours are looked for


def list_thresholds(run: Row, health_rows: Sequence[Row]) -> dict[str, float]:
    """The levels that the verdict and the alarms go by, for the curves; the rank's depends on the run's untrained encoder."""
    levels = {
        "explained_variance": health.LEARNED_VARIANCE_FRAC,
        "feature_variance": health.MIN_FEATURE_VARIANCE,
        "grad_norm": health.MAX_GRAD_NORM,
    }
    facts = health.RunFacts.read(run)
    ranks = [row["effective_rank_pooled"] for row in health_rows if "effective_rank_pooled" in row]
    if not ranks:
        return levels
    first = ranks[0] if facts.untrained_rank is None else facts.untrained_rank
    return levels | {"effective_rank_pooled": health.find_healthy_rank(first, facts.rank_limit)}


def write_report(run: str | Path) -> Path:
    """Write RUN/report.html and give its path; without a checkpoint or without the data, it says so in place of pictures."""
    folder = RunFolder(run)
    facts = folder.read_run()
    levels = list_thresholds(facts, folder.read_metrics("health"))
    return build_report(folder, _draw(folder, facts["data"], facts["recipe"]["data"]["channels"]), levels)


def _draw(folder: RunFolder, data: str, channels: int) -> Pictures | None:
    """Pictures of the encoder, or None where the run has no checkpoint yet or its data has moved away."""
    if not any(folder.checkpoints.glob("step-*.safetensors")):
        return None
    checkpoint = find_checkpoint(folder.path)
    encoder = load_encoder(checkpoint)
    try:
        pool, source = open_source(data, channels), open_source(name_held_out(data) or data, channels)
    except (ValueError, OSError):
        return None
    beliefs, problem = _draw_beliefs(checkpoint, source, pool)
    return replace(draw_pictures(encoder, source), beliefs=beliefs, beliefs_problem=problem)


def _draw_beliefs(checkpoint: Path, source: ImageSource, pool: ImageSource) -> tuple[Beliefs | None, str]:
    """What the checkpoint's predictor believes of images of a source, or None and why not."""
    try:
        trained = load_method(checkpoint)
    except ValueError as error:
        return None, f"Nothing is known of what the predictor believes: {error}."
    is_held_out = source.spec != pool.spec
    num_shown = min(NUM_BELIEFS, len(source) if is_held_out else len(source) // 2)
    wanted_idx = np.unique(np.linspace(0, len(source) - 1, num_shown).astype(np.int64))
    images, _ = _load(source, trained.recipe.data.size, wanted_idx)
    pool_idx = np.unique(np.linspace(0, len(pool) - 1, MAX_SEARCHED).astype(np.int64))
    if not is_held_out:
        pool_idx = np.setdiff1d(pool_idx, wanted_idx)  # no image stands for itself
    return show_beliefs(trained, images, pool, pool_idx), ""


def draw_pictures(encoder: Encoder, source: ImageSource) -> Pictures:
    """Feature maps and nearest neighbours of images spread evenly over a source."""
    searched_idx = np.unique(np.linspace(0, len(source) - 1, MAX_SEARCHED).astype(np.int64))
    shown_idx = searched_idx[np.linspace(0, len(searched_idx) - 1, min(NUM_MAPS, len(searched_idx))).astype(np.int64)]
    images, shown_idx = _load(source, encoder.size, shown_idx)
    with torch.inference_mode():
        patches = encoder(images).patches.numpy()
    return Pictures(_channels_last(images), patches, _find_neighbours(encoder, source, searched_idx, shown_idx))


def _find_neighbours(encoder: Encoder, source: ImageSource, searched_idx: Array, query_idx: Array) -> Neighbours | None:
    """The most similar of the searched images for the first queries; None if there are too few images."""
    found_batches = [(images, kept) for images, kept, _ in evaluation_batches(source, encoder.size, indices=searched_idx)]
    with torch.inference_mode():
        pooled = functional.normalize(torch.cat([encoder(images).pooled for images, _ in found_batches]), dim=1)
    numbers = torch.cat([kept for _, kept in found_batches]).numpy()
    queries = np.searchsorted(numbers, query_idx[:NUM_QUERIES])
    if len(numbers) <= NUM_NEIGHBOURS:
        return None
    similarity = pooled[queries] @ pooled.T
    similarity[torch.arange(len(queries)), torch.from_numpy(queries)] = -torch.inf  # not its own neighbour
    cosines, places = similarity.topk(NUM_NEIGHBOURS)
    found = numbers[places.numpy()]
    query_images, _ = _load(source, encoder.size, numbers[queries])
    flat = [_load(source, encoder.size, row)[0] for row in found]
    matches = None if source.labels is None else source.labels[found] == source.labels[numbers[queries]][:, None]
    return Neighbours(_channels_last(query_images), np.stack([_channels_last(row) for row in flat]), matches, cosines.numpy())


def _load(source: ImageSource, size: tuple[int, int], image_idx: Array) -> tuple[torch.Tensor, Array]:
    """The readable ones of these images (n, C, H, W), and their numbers."""
    parts = [(images, numbers) for images, numbers, _ in evaluation_batches(source, size, indices=image_idx)]
    return torch.cat([images for images, _ in parts]), torch.cat([numbers for _, numbers in parts]).numpy()


def _channels_last(images: torch.Tensor) -> Array:
    return images.permute(0, 2, 3, 1).numpy()
