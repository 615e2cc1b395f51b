"""Is it learning? Label-free measurements of an encoder's features, and a verdict in words with one piece of advice.

Effective rank: RankMe, Garrido et al. 2023 (arXiv 2210.02885, equation 2). Explained variance is the method's own metric: 1 -
prediction error / error of predicting the mean target. The thresholds below are ours; those taken from the seed description are
marked. Left out: anything that needs labels (see the probe in run.py).
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
COLLAPSED_COSINE = 0.995  # images that all point the same way
COLLAPSED_RANK = 2.0  # all features on about a line
COLLAPSING_RANK_FRAC = 0.5  # share of the best rank so far, while still falling
LEARNED_VARIANCE_FRAC = 0.05  # a predictor that explains less knows next to nothing
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
    """The verdict on a run from its health rows so far, oldest first.

    Each row holds step, effective_rank_pooled, feature_variance, image_cosine, explained_variance, grad_norm and
    skipped_in_a_row. The first row is the untrained encoder.
    """
    if not rows:
        return Verdict("too early", "nothing has been measured yet.", "Let it run until the first health measurement.", 0)
    now = rows[-1]
    step, rank = now["step"], now["effective_rank_pooled"]
    best = max(row["effective_rank_pooled"] for row in rows)
    momentum_too = " or raise momentum.start" if "context_target_drift" in now else ""  # MAE has no target encoder
    if now["skipped_in_a_row"] > 0 or not math.isfinite(now["explained_variance"]):
        return Verdict("diverging", "the loss or its gradient is not finite.", "Lower optim.lr or lengthen the warm-up.", step)
    if len(rows) < MIN_MEASUREMENTS:
        return Verdict("too early", f"only {len(rows)} measurements.", "Let it run; a trend needs three.", step)
    if now["image_cosine"] > COLLAPSED_COSINE or rank < COLLAPSED_RANK:
        return Verdict(
            "collapsed",
            f"all images look alike to the encoder: mean cosine {now['image_cosine']:.3f}, effective rank {rank:.1f}.",
            f"Start again with method.regularizer vicreg or a lower optim.lr{momentum_too}.",
            step,
        )
    if now["feature_variance"] < MIN_FEATURE_VARIANCE or _is_falling(rows, best):
        return Verdict(
            "collapsing",
            f"effective rank {rank:.1f}, {rank / best:.0%} of its best ({best:.1f}); "
            f"feature variance {now['feature_variance']:.3g}.",
            f"If it keeps falling, turn on method.regularizer vicreg{momentum_too}.",
            step,
        )
    if now["explained_variance"] < LEARNED_VARIANCE_FRAC:
        return Verdict(
            "not learning yet",
            f"the predictor explains {now['explained_variance']:.0%} of the targets' variance.",
            "Give it more steps; if this stays, raise optim.lr or make targets smaller.",
            step,
        )
    return Verdict(
        "healthy",
        f"the predictor explains {now['explained_variance']:.0%} of the targets' variance; effective rank {rank:.1f}, "
        f"mean cosine between images {now['image_cosine']:.2f}.",
        "Go on; compare with the random encoder in the probe table.",
        step,
    )


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


def _is_falling(rows: Sequence[dict[str, Any]], best: float) -> bool:
    """Whether the rank is under half its best and lower than at the measurement before."""
    now, before = rows[-1]["effective_rank_pooled"], rows[-2]["effective_rank_pooled"]
    return bool(now < COLLAPSING_RANK_FRAC * best and now < before)
