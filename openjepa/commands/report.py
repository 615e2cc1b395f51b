"""The report of a run: its records, and pictures of what its context encoder sees.

The pictures are of held-out images where there are any, else of training images; neighbours are training images.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from openjepa.data.annotations import open_for
from openjepa.data.fingerprint import describe_difference, fingerprint
from openjepa.data.loader import evaluation_batches
from openjepa.data.reading import Reading
from openjepa.data.sources import ImageSource, name_held_out, open_source, spread
from openjepa.engine.neighbours import find_neighbours
from openjepa.health.verdict import LEARNED_VARIANCE_FRAC, MAX_GRAD_NORM, MIN_FEATURE_VARIANCE, RunFacts, find_healthy_rank
from openjepa.methods.masked import MaskedMethod
from openjepa.nn.encoder import Encoder, EncoderOutput
from openjepa.recipe.check import build_recipe
from openjepa.report.contact import draw_contact_sheet
from openjepa.report.page import build_report
from openjepa.report.pictures import Beliefs, Neighbours, Pictures
from openjepa.report.reconstructions import show_beliefs
from openjepa.runs.folder import Row, RunFolder
from openjepa.runs.paths import user_path
from openjepa.weights.load import find_checkpoint, load_encoder, load_method, load_reading

Array = npt.NDArray[Any]

NUM_MAPS = 8  # images with a map of their patch features
NUM_BELIEFS = 9  # images of which hidden blocks are shown
NUM_QUERIES = 6  # images whose neighbours are shown
NUM_NEIGHBOURS = 8
MAX_SEARCHED = 5000  # images among which neighbours are looked for


def list_thresholds(run: Row, health_rows: Sequence[Row]) -> dict[str, float]:
    """The levels that the verdict and the alarms go by, for the curves; the rank's depends on the run's untrained encoder."""
    levels = {
        "explained_variance": LEARNED_VARIANCE_FRAC,
        "feature_variance": MIN_FEATURE_VARIANCE,
        "grad_norm": MAX_GRAD_NORM,
    }
    facts = RunFacts.read(run)
    ranks = [row["effective_rank_pooled"] for row in health_rows if "effective_rank_pooled" in row]
    if not ranks or facts.num_classes is not None:  # a classifier is not judged by its rank
        return levels
    first = ranks[0] if facts.untrained_rank is None else facts.untrained_rank
    return levels | {"effective_rank_pooled": find_healthy_rank(first, facts.rank_limit)}


def write_report(
    run: str | Path,
    device: str = "auto",
    out: str | Path | None = None,
    warn: Callable[[str], None] = lambda words: print(f"openjepa: {words}", file=sys.stderr),
) -> Path:
    """Write RUN/report.html, or `out`, and give its path. What the run lacks, the report says in place of pictures.

    warn receives a line where there is a checkpoint and its pictures cannot be drawn.
    """
    folder = RunFolder(run)
    facts = folder.read_run()
    levels = list_thresholds(facts, folder.read_metrics("health"))
    pictures = None
    try:
        pictures = _draw(folder, facts, device)
    except (ValueError, OSError) as error:  # verdict and curves need no images
        warn(f"no pictures: {error}")
    for path, what in ((folder.skipped, "images could not be read"), (folder.left_out, "files were passed over")):
        if path.is_file() and (count := path.read_bytes().count(b"\n")):
            warn(f"{count} {what} when the run was trained, listed in {path}")
    return build_report(folder, pictures, levels, None if out is None else user_path(out))


def _draw(folder: RunFolder, facts: Row, device: str) -> Pictures | None:
    """Pictures of the encoder, or None where the run has no checkpoint yet. ValueError or OSError where its images are gone."""
    if not any(folder.checkpoints.glob("step-*.safetensors")):
        return None
    data, channels = facts["data"], facts["recipe"]["data"]["channels"]
    checkpoint = find_checkpoint(folder.path)
    encoder = load_encoder(checkpoint, device=device)
    reading = load_reading(checkpoint)
    recipe = build_recipe(facts["recipe"], where=str(folder.run_json))
    pool = open_for(recipe.method, data, channels, reading)
    if difference := _tell_apart(facts, pool):
        raise ValueError(f"the images that the run was trained on are no longer at {data}: there is now a folder {difference}")
    held_out = _open(name_held_out(data), channels, reading)
    beliefs, problem = _draw_beliefs(checkpoint, held_out or pool, pool)
    sheet = draw_contact_sheet(build_recipe(facts["recipe"], where="run.json"), pool)
    return replace(draw_pictures(encoder, pool, held_out), beliefs=beliefs, beliefs_problem=problem, contact_sheet=sheet)


def _tell_apart(facts: Row, pool: ImageSource) -> str:
    """How the images that are there now differ from those that the run was trained on; empty where they are the same."""
    recorded = facts.get("num_images", len(pool))
    if recorded != len(pool):
        return f"of {len(pool):,} images, not {recorded:,}"
    return describe_difference(facts["fingerprint"], fingerprint(pool)) if "fingerprint" in facts else ""


def _open(spec: str | None, channels: int, reading: Reading) -> ImageSource | None:
    """The images that a spec names, or None where there is no spec or there are none."""
    if spec is None:
        return None
    try:
        return open_source(spec, channels, reading)
    except (ValueError, OSError):
        return None


def _draw_beliefs(checkpoint: Path, source: ImageSource, pool: ImageSource) -> tuple[Beliefs | None, str]:
    """What the checkpoint's predictor believes of images of a source, or None and why not."""
    try:
        trained = load_method(checkpoint)
    except ValueError as error:
        return None, f"Nothing is known of what the predictor believes: {error}."
    if not isinstance(trained.method, MaskedMethod):
        return None, ""
    is_held_out = source.spec != pool.spec
    num_shown = min(NUM_BELIEFS, len(source) if is_held_out else len(source) // 2)
    wanted_idx = spread(len(source), num_shown)
    images, _ = _load(source, trained.recipe.data.size, wanted_idx)
    pool_idx = spread(len(pool), MAX_SEARCHED)
    if not is_held_out:
        pool_idx = np.setdiff1d(pool_idx, wanted_idx)  # no image stands for itself
    return show_beliefs(trained, images, pool, pool_idx), ""


def draw_pictures(encoder: Encoder, pool: ImageSource, held_out: ImageSource | None = None) -> Pictures:
    """Feature maps of images spread evenly over the held-out ones, or over the training images `pool` if there are none, and the
    training images nearest to the first of them."""
    shown = pool if held_out is None else held_out
    images, shown_idx = _load(shown, encoder.size, spread(len(shown), NUM_MAPS))
    output = _encode(encoder, images)
    queries = _Queries(images[:NUM_QUERIES], output.pooled[:NUM_QUERIES], shown_idx[:NUM_QUERIES], shown)
    return Pictures(_channels_last(images), output.patches.numpy(), _find_neighbours(encoder, queries, pool))


class _Queries(NamedTuple):
    """Images whose neighbours are wanted."""

    images: torch.Tensor
    pooled: torch.Tensor
    image_idx: Array  # numbers in the source
    source: ImageSource


def _find_neighbours(encoder: Encoder, queries: _Queries, pool: ImageSource) -> Neighbours | None:
    """The training images most similar to each query, never itself; None if there are too few.

    At most MAX_SEARCHED training images, spread evenly, are searched.
    """
    parts = []
    for images, kept_idx, _ in evaluation_batches(pool, encoder.size, indices=spread(len(pool), MAX_SEARCHED)):
        parts.append((_encode(encoder, images).pooled, kept_idx))
    pooled, searched_idx = (torch.cat([part[place] for part in parts]) for place in (0, 1))
    is_itself = torch.zeros(len(queries.image_idx), len(searched_idx), dtype=torch.bool)
    if queries.source is pool:
        is_itself = torch.from_numpy(queries.image_idx)[:, None] == searched_idx
    num_searched = len(searched_idx) - int(is_itself.sum(1).max())
    if num_searched < NUM_NEIGHBOURS:
        return None
    places = find_neighbours(queries.pooled, pooled, NUM_NEIGHBOURS, is_itself).idx
    cosines = functional.cosine_similarity(queries.pooled[:, None], pooled[places], dim=-1)
    found_idx = searched_idx[places].numpy()
    found = [_channels_last(_load(pool, encoder.size, row)[0]) for row in found_idx]
    classes, own_classes = _name_classes(pool, found_idx), _name_classes(queries.source, queries.image_idx)
    return Neighbours(
        _channels_last(queries.images),
        np.stack(found),
        match_mask=None if classes is None or own_classes is None else classes == own_classes[:, None],
        cosines=cosines.numpy(),
        is_held_out=queries.source is not pool,
        num_searched=num_searched,
    )


def _name_classes(source: ImageSource, image_idx: Array) -> Array | None:
    """The class names of images, which agree between two sources where class numbers need not; None without labels."""
    return None if source.labels is None else np.array(source.classes)[source.labels[image_idx]]


def _encode(encoder: Encoder, images: torch.Tensor) -> EncoderOutput:
    """Features on the CPU, computed where the encoder is."""
    with torch.inference_mode():
        output = encoder(images.to(encoder.mean.device))
    return EncoderOutput(output.pooled.cpu(), output.patches.cpu())


def _load(source: ImageSource, size: tuple[int, int], image_idx: Array) -> tuple[torch.Tensor, Array]:
    """The readable ones of these images (n, C, H, W), and their numbers."""
    parts = [(images, numbers) for images, numbers, _ in evaluation_batches(source, size, indices=image_idx)]
    return torch.cat([images for images, _ in parts]), torch.cat([numbers for _, numbers in parts]).numpy()


def _channels_last(images: torch.Tensor) -> Array:
    return images.permute(0, 2, 3, 1).numpy()
