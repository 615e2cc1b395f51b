"""Is it learning? Label-free measurements of an encoder's features, and a verdict in words with one piece of advice.

Effective rank: RankMe, Garrido et al. 2023 (arXiv 2210.02885, equation 2). An untrained encoder's pooled features lie on about a
line, so the verdict compares how far the rank is above 1 with how far it was at the first measurement: the `growth` below. The
limits are ours, chosen on the runs of benchmarks/health_bed.py (docs/health.md); those of the seed description are marked. Left
out: anything that needs labels (see the probe in run.py), and LiDAR, which did worse there and costs more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

MIN_FEATURE_VARIANCE = 0.01  # the seed's warning level for the mean variance of pooled features
MAX_GRAD_NORM = 10.0  # the seed's warning level
HEALTHY_GROWTH = 3.5  # after a fifth of the run, the bed's learned runs had 3.6 and more, the others 2.8 and less, but for a few
COLLAPSED_GROWTH = 0.5
MOST_UNTRAINED_RANK = 4.0  # a first rank above this is of weights that were trained before: --init
LEAST_UNTRAINED_RANK = 1.05  # at a first rank below this all images look the same to any encoder
COLLAPSING_FRAC = 0.5  # share of the best rank so far, counted from 1, while still falling
EXPLODED_LOSS = 10.0  # times the loss at the first measurement
LEARNED_VARIANCE_FRAC = 0.05  # a predictor that explains less knows next to nothing
KNOWN_VARIANCE_FRAC = 0.3  # a predictor that has explained this much once had learned something ...
LOST_FRAC = 0.55  # ... and lost it at this share: 98 runs that learned kept 0.65 or more, three at too high a rate 0.53 or less
MIN_MEASUREMENTS = 3  # below this there is no trend to judge


@dataclass(frozen=True)
class Verdict:
    """label: too early, not learning yet, healthy, collapsing, collapsed or diverging."""

    label: str
    reason: str
    advice: str
    step: int

    def to_record(self) -> dict[str, Any]:
        """The verdict as plain values."""
        return asdict(self)


def effective_rank(features: Float[Tensor, "samples dim"]) -> float:
    """RankMe: exp of the entropy of the normalised singular values; between 1 and min(samples, dim)."""
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + 1e-7  # 1e-7 as in RankMe
    return math.exp(float(-(shares * shares.log()).sum()))


def measure_features(
    context_pooled: Float[Tensor, "images dim"],
    context_patches: Float[Tensor, "tokens dim"],
    target_patches: Float[Tensor, "tokens dim"] | None,
) -> dict[str, float]:
    """Rank, spread and drift of features of the same images, in float32.

    feature_std: mean over dimensions of the standard deviation over images. image_cosine: mean cosine between the pooled
    features of different images. context_target_drift: 1 - mean cosine between the two encoders' tokens of a patch, left out
    where there is no target encoder.
    """
    num_images = len(context_pooled)
    unit = functional.normalize(context_pooled, dim=1)
    cosine = (unit.sum(0).square().sum() - num_images) / (num_images * (num_images - 1))
    drift = {}
    if target_patches is not None:
        drift["context_target_drift"] = float(1 - functional.cosine_similarity(context_patches, target_patches).mean())
    return {
        "effective_rank_pooled": effective_rank(context_pooled),
        "effective_rank_patches": effective_rank(context_patches),
        "feature_std": float(context_pooled.std(0).mean()),
        "feature_variance": float(context_pooled.var(0).mean()),
        "image_cosine": float(cosine),
    } | drift


def judge(rows: Sequence[dict[str, Any]]) -> Verdict:
    """The verdict on a run from its health rows so far, oldest first; the first row stands for the untrained encoder.

    A row holds step and effective_rank_pooled; loss, explained_variance, image_cosine and skipped_in_a_row count where they are
    there, as in rows of older versions not all are.
    """
    if not rows:
        return Verdict("too early", "nothing has been measured yet.", "Let it run until the first health measurement.", 0)
    now = rows[-1]
    step, rank = now["step"], now["effective_rank_pooled"]
    if explosion := _describe_explosion(rows):
        return Verdict("diverging", explosion, "Lower optim.lr, lengthen the warm-up or set optim.clip_grad_norm.", step)
    if len(rows) < MIN_MEASUREMENTS:
        return Verdict("too early", f"{len(rows)} of the {MIN_MEASUREMENTS} measurements it takes.", "Let it run.", step)
    first, before = rows[0]["effective_rank_pooled"], rows[-2]["effective_rank_pooled"]
    best = max(row["effective_rank_pooled"] for row in rows)
    growth = measure_growth(rows)
    ranks = f"effective rank {rank:.1f}, {first:.1f} at the start"
    cosine = f", mean cosine between images {now['image_cosine']:.3f}" if "image_cosine" in now else ""
    if growth < COLLAPSED_GROWTH and first < LEAST_UNTRAINED_RANK:
        return Verdict(
            "collapsed",
            f"the images look alike to the untrained encoder already: {ranks}{cosine}.",
            "Look at the images: are they different from one another, and not blank?",
            step,
        )
    momentum_too = " or raise momentum.start" if "context_target_drift" in now else ""  # MAE has no target encoder
    # Twice in a row: features of slow recipes first shrink towards a line, and then learn.
    if growth < COLLAPSED_GROWTH and measure_growth(rows[:-1]) < COLLAPSED_GROWTH:
        return Verdict(
            "collapsed",
            f"images look more alike to the encoder than before training: {ranks}{cosine}.",
            f"Start again with method.regularizer vicreg or a lower optim.lr{momentum_too}.",
            step,
        )
    if rank < before and rank - 1 < COLLAPSING_FRAC * (best - 1):
        return Verdict(
            "collapsing",
            f"the effective rank fell from {best:.1f} to {rank:.1f} and is still falling.",
            f"If it keeps falling, turn on method.regularizer vicreg or lower optim.lr{momentum_too}.",
            step,
        )
    explained = now.get("explained_variance")
    most_explained = max(row.get("explained_variance", 0.0) for row in rows)
    if explained is not None and most_explained > KNOWN_VARIANCE_FRAC and explained < LOST_FRAC * most_explained:
        return Verdict(
            "diverging",
            f"the predictor explains {explained:.0%} of the targets' variance, {most_explained:.0%} at its best; {ranks}.",
            f"Start again with a lower optim.lr, a half or less{momentum_too}.",
            step,
        )
    if growth < HEALTHY_GROWTH:
        return Verdict(
            "not learning yet",
            f"features are hardly richer than an untrained encoder's: {ranks}.",
            "Give it more steps; if this stays, turn on method.regularizer vicreg or change optim.lr.",
            step,
        )
    knows = "" if explained is None else f"; the predictor explains {explained:.0%} of the targets' variance"
    advice = "Go on. Rich features need not be useful ones: with labels, compare with --encoder random and --encoder pixels."
    if explained is not None and explained < LEARNED_VARIANCE_FRAC:
        advice = "Go on, but the predictor does no better than the mean target: if that stays, change optim.lr or the masks."
    return Verdict("healthy", f"{ranks}{cosine}{knows}.", advice, step)


def measure_growth(rows: Sequence[dict[str, Any]]) -> float:
    """How far the pooled features' effective rank is above 1, as a multiple of how far it was at the first measurement."""
    return float((rows[-1]["effective_rank_pooled"] - 1) / (_limit_first(rows[0]["effective_rank_pooled"]) - 1))


def find_healthy_rank(first: float) -> float:
    """The effective rank from which on a run whose first one was `first` counts as healthy."""
    return 1 + HEALTHY_GROWTH * (_limit_first(first) - 1)


def _limit_first(first: float) -> float:
    return min(max(first, LEAST_UNTRAINED_RANK), MOST_UNTRAINED_RANK)


def replay(rows: Sequence[dict[str, Any]]) -> list[Verdict]:
    """The verdict after each health row, as it would have been given then by the rules of today."""
    return [judge(rows[: count + 1]) for count in range(len(rows))]


def warnings(row: dict[str, Any]) -> list[str]:
    """The seed's two alarms, in words: gradient norm above 10, feature variance below 0.01."""
    found = []
    if row["grad_norm"] > MAX_GRAD_NORM:
        found.append(f"step {row['step']}: gradient norm {row['grad_norm']:.1f} is above {MAX_GRAD_NORM:g}; lower optim.lr")
    if row.get("feature_variance", math.inf) < MIN_FEATURE_VARIANCE:
        found.append(
            f"step {row['step']}: feature variance {row['feature_variance']:.2g} is below {MIN_FEATURE_VARIANCE:g}; "
            "may be collapsing"
        )
    return found


def _describe_explosion(rows: Sequence[dict[str, Any]]) -> str | None:
    """What is not finite or far above its start at the last measurement; None if nothing is."""
    now = rows[-1]
    measured = [now.get(name, 0.0) for name in ("loss", "explained_variance", "grad_norm", "effective_rank_pooled")]
    if now.get("skipped_in_a_row", 0) > 0 or not all(map(math.isfinite, measured)):
        return "the loss or its gradient is not finite."
    if "loss" in now and "loss" in rows[0] and now["loss"] > EXPLODED_LOSS * rows[0]["loss"] > 0:
        return f"the loss is {now['loss']:.3g}, {now['loss'] / rows[0]['loss']:.0f} times what it was at the start."
    return None
