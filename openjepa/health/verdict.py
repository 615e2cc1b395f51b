"""Is it learning? Label-free measurements of an encoder's features, and a verdict in words with one piece of advice.

Effective rank: RankMe, Garrido et al. 2023 (arXiv 2210.02885, equation 2). How rich an untrained encoder's features are depends
on the images: their effective rank is 1.7 on small grey garments and up to 56 on textured scenes. So the verdict compares a run
with its own encoder before training, and never with a fixed rank. The limits are ours, chosen on runs of
benchmarks/health_bed.py (docs/health.md); those of the brief are marked. Left out: anything that needs labels (see
evals/probe.py), and LiDAR, which did worse there and costs more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from openjepa.recipe.methods import SECTIONS
from openjepa.recipe.migrate import migrate

MIN_FEATURE_VARIANCE = 0.01  # the brief's warning level for the mean variance of pooled features
MAX_GRAD_NORM = 10.0  # the brief's warning level
HEALTHY_ODDS = 1.2  # of a healthy rank, over the untrained encoder's odds to the power below
ODDS_POWER = 0.75  # below 1: the richer features are before training, the less they can gain
LEAST_GROWTH = 1.4  # times the untrained encoder's odds
COLLAPSED_FRAC = 0.4  # of the untrained encoder's rank, both counted from 1
LEAST_UNTRAINED_RANK = 1.05  # below this, all images look the same to any encoder
COLLAPSING_FRAC = 0.5  # share of the best rank so far, counted from 1, while still falling
EXPLODED_LOSS = 10.0  # times the loss at the first measurement
LEARNED_VARIANCE_FRAC = 0.05  # a predictor that explains less knows next to nothing
KNOWN_VARIANCE_FRAC = 0.3  # a predictor that has explained this much once had learned something ...
LOST_FRAC = 0.55  # ... and lost it at this share: 98 runs that learned kept 0.65 or more, three at too high a rate 0.53 or less
ABOVE_CHANCE = 4.0  # standard errors of the accuracy of guessing: what a classifier that learns is above chance
LEARNED_LOSS_FRAC = 0.9  # of a detector's first loss: the losses of untrained heads fall within some steps
UNIFORM_ENTROPY = 0.9999  # of assignments, as a share of the largest: they tell views apart by nothing
ONE_PROTOTYPE_ENTROPY = 1e-4  # of the batch's mean assignment: every view has the same prototype
ONE_VECTOR_UNIFORMITY = -1e-4  # mean cosine of different images above 0.99997: the projector gives them all the same vector
LEAST_TARGET_STD = 0.1  # of data2vec's targets, at which its authors' training stops by itself
MIN_MEASUREMENTS = 3  # below this there is no trend to judge
DEFAULT_LIMIT = 96  # rank_limit of runs of version 0.1, which did not record it: the demo's width

Row = Mapping[str, Any]


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


@dataclass(frozen=True)
class RunFacts:
    """What a verdict takes from run.json; None and {} where a version did not record it.

    recipe: its plain values. untrained_rank: effective rank of pooled features before training, and before --init. rank_limit:
    what a rank cannot exceed, the smaller of images and width. num_classes: of a classifier. hopeless: what in the images keeps
    any run from being healthy. too_short: the words on a run with too few steps for a verdict. stopped: step and reason, of a
    run that ended because its loss was no longer finite.
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)
    untrained_rank: float | None = None
    rank_limit: int = DEFAULT_LIMIT
    num_classes: int | None = None
    hopeless: str | None = None
    too_short: str | None = None
    stopped: tuple[int, str] | None = None

    @classmethod
    def read(cls, run: Row) -> RunFacts:
        """From the contents of run.json."""
        untrained, stopped = run.get("untrained", {}), run.get("stopped")
        return cls(
            recipe=migrate(run.get("recipe", {})),
            untrained_rank=untrained.get("effective_rank_pooled"),
            rank_limit=untrained.get("rank_limit", DEFAULT_LIMIT),
            num_classes=run.get("num_classes"),
            hopeless=next((words for words, is_hopeless in run.get("findings", []) if is_hopeless), None),
            too_short=_describe_shortness(run),
            stopped=stopped and (stopped[0], stopped[1]),
        )

    def setting(self, key: str) -> Any:
        """The recipe's value of a dotted key; None where it is not recorded, or a group on the way is off."""
        value: Any = self.recipe
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def judge(rows: Sequence[Row], run: RunFacts) -> Verdict:
    """The verdict on a run from its health rows so far, oldest first, and what run.json says of it.

    A row holds step and effective_rank_pooled. loss, explained_variance, image_cosine and skipped_in_a_row count where they
    are present, which they are not in every row of older versions.
    """
    if run.stopped is not None:
        step, reason = run.stopped
        return Verdict("diverging", reason, advise_against_divergence(run), step)
    if not rows:
        return Verdict("too early", "nothing has been measured yet.", "Let it run until the first health measurement.", 0)
    step = rows[-1]["step"]
    if explosion := _describe_explosion(rows):
        return Verdict("diverging", explosion, advise_against_divergence(run), step)
    label, reason, advice = _judge_features(rows, run)
    if run.hopeless is not None and label != "diverging":
        label = "collapsed" if label == "collapsed" else "not learning yet"
        return Verdict(label, f"{run.hopeless}.", "Train on more images, and more varied ones.", step)
    return Verdict(label, reason, advice, step)


def _judge_features(rows: Sequence[Row], run: RunFacts) -> tuple[str, str, str]:
    """Label, reason and advice, from rank and explained variance."""
    if len(rows) < MIN_MEASUREMENTS:
        reason = f"{len(rows)} of the {MIN_MEASUREMENTS} measurements that a verdict needs."
        return "too early", reason, run.too_short or "Let it run."
    if "train_accuracy" in rows[-1] and run.num_classes is not None:
        return _judge_classifier(rows[-MIN_MEASUREMENTS:], run, run.num_classes)
    if run.setting("method.name") == "detection" and "loss" in rows[-1]:
        return _judge_detector(rows, run)
    now, before = rows[-1], rows[-2]["effective_rank_pooled"]
    rank, best = now["effective_rank_pooled"], max(row["effective_rank_pooled"] for row in rows)
    first = rows[0]["effective_rank_pooled"] if run.untrained_rank is None else run.untrained_rank
    ranks = f"effective rank {rank:.1f}, {first:.1f} untrained"
    cosine = f", mean cosine between images {now['image_cosine']:.3f}" if "image_cosine" in now else ""
    collapsed_rank = 1 + COLLAPSED_FRAC * (max(first, LEAST_UNTRAINED_RANK) - 1)
    if rank < collapsed_rank and first < LEAST_UNTRAINED_RANK:
        reason = f"the images look alike to the untrained encoder already: {ranks}{cosine}."
        return "collapsed", reason, "Look at the images: are they different from one another, and not blank?"
    if max(rank, before) < collapsed_rank:  # twice in a row: features of slow recipes first shrink, and then learn
        reason = f"images look more alike to the encoder than before training: {ranks}{cosine}."
        return "collapsed", reason, f"Start again: {advise_against_collapse(run)}."
    if rank < before and rank - 1 < COLLAPSING_FRAC * (best - 1):
        reason = f"the effective rank fell from {best:.1f} to {rank:.1f} and is still falling."
        return "collapsing", reason, f"If it keeps falling, start again: {advise_against_collapse(run)}."
    if collapse := _describe_collapse(rows[-2:], run):
        reason, advice = collapse
        return "collapsed", f"{reason}; {ranks}.", f"Start again: {advice}."
    explained = now.get("explained_variance")
    most_explained = max(row.get("explained_variance", 0.0) for row in rows)
    if explained is not None and most_explained > KNOWN_VARIANCE_FRAC and explained < LOST_FRAC * most_explained:
        reason = f"the predictor explains {explained:.0%} of the targets' variance, {most_explained:.0%} at its best; {ranks}."
        return "diverging", reason, advise_against_divergence(run)
    if explained is not None and explained <= 0:
        reason = f"the predictor does no better than the mean target (it explains {explained:.0%} of the variance); {ranks}."
        return "not learning yet", reason, advise_to_learn(run)
    knows = _word_knowledge(now)
    if unfound := _describe_pairs(rows[-MIN_MEASUREMENTS:], run):
        return "not learning yet", f"{unfound}; {ranks}.", advise_to_learn(run)
    if rank < find_healthy_rank(first, run.rank_limit):
        reason = f"features are hardly richer than an untrained encoder's: {ranks}{knows}."
        return "not learning yet", reason, advise_to_learn(run)
    advice = "Go on. Rich features need not be useful ones: with labels, compare with --encoder random and --encoder pixels."
    if explained is not None and explained < LEARNED_VARIANCE_FRAC:
        advice = "Go on, but the predictor knows next to nothing: if that stays, change optim.lr or views.main.mask."
    return "healthy", f"{ranks}{cosine}{knows}.", advice


def _judge_classifier(rows: Sequence[Row], run: RunFacts, num_classes: int) -> tuple[str, str, str]:
    """By its training accuracy: features of few classes may have a low rank, and be what the labels ask for."""
    accuracy, chance = sum(row["train_accuracy"] for row in rows) / len(rows), 1 / num_classes
    images = len(rows) * (run.setting("data.batch_size") or 1)
    reason = f"the classifier is right on {accuracy:.0%} of the training images of late, {chance:.0%} by chance."
    if accuracy < chance + ABOVE_CHANCE * math.sqrt(chance * (1 - chance) / images):
        return "not learning yet", reason, advise_to_learn(run)
    return "healthy", reason, "Go on. What counts is its accuracy on test images."


def _judge_detector(rows: Sequence[Row], run: RunFacts) -> tuple[str, str, str]:
    """By its loss on training images, late against first: what it finds is measured on test images."""
    late = [row["loss"] for row in rows[-MIN_MEASUREMENTS:]]
    loss, first = sum(late) / len(late), rows[0]["loss"]
    reason = f"the detector's loss is {loss:.3g} of late, {first:.3g} at first."
    if loss > LEARNED_LOSS_FRAC * first:
        return "not learning yet", reason, advise_to_learn(run)
    return "healthy", reason, "Go on. What counts is its average precision on test images."


def _describe_collapse(rows: Sequence[Row], run: RunFacts) -> tuple[str, str] | None:
    """What is wrong in all these rows with what the method itself compares, and what to change; None if nothing is.

    The limits are where targets, assignments or vectors hold no information, whatever the features are like. Assignments collapse
    in two ways with two remedies (DINO, arXiv 2104.14294, section 5.3): without sharpening to all prototypes, without centring to
    one.
    """
    for prefix, thing in (("", "view"), ("patch_", "patch")):
        if all(row.get(f"{prefix}teacher_entropy", 0.0) > UNIFORM_ENTROPY for row in rows):
            advice = advise_against_collapse(run, first="method.teacher_temperature.end")
            return f"the target assigns every {thing} to all prototypes alike", advice
        if all(row.get(f"{prefix}usage_entropy", 1.0) < ONE_PROTOTYPE_ENTROPY for row in rows):
            advice = advise_against_collapse(run, first="method.centre_momentum")
            return f"the target assigns every {thing} to the same prototype", advice
    if all(row.get("uniformity", -math.inf) > ONE_VECTOR_UNIFORMITY for row in rows):
        return "the vectors that are compared are the same for all images", advise_against_collapse(run)
    if all(row.get("target_std", math.inf) < LEAST_TARGET_STD for row in rows):
        return "the targets of all patches are alike", advise_against_collapse(run)
    return None


def _describe_pairs(rows: Sequence[Row], run: RunFacts) -> str | None:
    """That the other view of an image is found no more often than by chance; None where it is, or nothing is looked for."""
    images = run.setting("data.batch_size")
    if not isinstance(images, int) or not all("pairs_found" in row for row in rows):
        return None
    found, chance = sum(row["pairs_found"] for row in rows) / len(rows), 1 / images
    if found >= chance + ABOVE_CHANCE * math.sqrt(chance * (1 - chance) / (images * len(rows))):
        return None
    return f"the other view of an image is found in {found:.1%} of the cases among {images} images, {chance:.1%} by chance"


def _word_knowledge(row: Row) -> str:
    """What the method can say of what it has learned, as the end of a reason."""
    if (explained := row.get("explained_variance")) is not None:
        return f"; the predictor explains {explained:.0%} of the targets' variance"
    if (found := row.get("pairs_found")) is not None:
        return f"; the other view of an image is found in {found:.0%} of the cases"
    if (own := row.get("teacher_entropy")) is not None and (usage := row.get("usage_entropy")) is not None:
        return f"; entropy of a view's assignment {own:.0%} of the largest, of the batch's mean {usage:.0%}"
    return ""


def find_healthy_rank(first: float, limit: int) -> float:
    """The effective rank from which on features count as richer than the untrained encoder's, of rank `first`.

    A rank between 1 and `limit` has the odds (rank - 1) / (limit + 1 - rank). Healthy odds are HEALTHY_ODDS times the first odds
    to the power ODDS_POWER, and at least LEAST_GROWTH times the first odds: 3.7 times from a rank of 1.7 in 64 dimensions, 1.5
    times from 17.9.
    """
    first = min(max(first, LEAST_UNTRAINED_RANK), limit)
    first_odds = (first - 1) / (limit + 1 - first)
    odds: float = max(HEALTHY_ODDS * first_odds**ODDS_POWER, LEAST_GROWTH * first_odds)
    return 1 + limit * odds / (1 + odds)


def advise_against_collapse(run: RunFacts, first: str = "") -> str:
    """What to change, of the keys that act on this run and could be set otherwise; `first` alone if it is one of them."""
    if own := [words for words in _advise_own(run) if first and first in words]:
        return own[0]
    weight = run.setting("method.regularizer.weight")
    choices = _advise_regularizer(run)
    if weight is not None:
        choices.append(f"raise method.regularizer.weight above {weight:g}")
    choices.append(_advise_rate(run, "lower"))
    return " or ".join([*choices, *_advise_own(run)])


def advise_against_divergence(run: RunFacts) -> str:
    """As advise_against_collapse, for a loss that explodes or a predictor that forgets."""
    warmup = run.setting("optim.warmup_frac")
    choices = [_advise_rate(run, "lower"), "lengthen the warm-up, optim.warmup_frac" + (f" {warmup:.2g}" if warmup else "")]
    if run.setting("optim.clip_grad_norm") is None:
        choices.append("set optim.clip_grad_norm=1")
    return f"Start again: {' or '.join(choices)}."


def advise_to_learn(run: RunFacts) -> str:
    """As advise_against_collapse, for a run whose features do not grow richer."""
    of_batch = [key for key in _advise_own(run) if "data.batch_size" in key]
    choices = [*_advise_regularizer(run), _advise_rate(run, "change"), *of_batch]
    return f"Give it more steps; if this stays, {' or '.join(choices)}."


def _advise_regularizer(run: RunFacts) -> list[str]:
    """To turn one on, where the method can have one and has none."""
    method = run.setting("method")
    is_off = isinstance(method, Mapping) and "regularizer" in method and method["regularizer"] is None
    return ["turn on method.regularizer.name=vicreg method.regularizer.weight=0.3"] if is_off else []


def _advise_own(run: RunFacts) -> list[str]:
    """The keys by which the run's own method is kept from collapse, without those that are at their limits."""
    section = SECTIONS.get(str(run.setting("method.name")))
    keys = {} if section is None else section.AGAINST_COLLAPSE
    at_limit = {("lower", 0.0), ("raise", 1.0)}  # a momentum
    return [_advise_key(run, key, verb) for key, verb in keys.items() if (verb, run.setting(key)) not in at_limit]


def _advise_rate(run: RunFacts, verb: str) -> str:
    return _advise_key(run, "optim.lr", verb)


def _advise_key(run: RunFacts, key: str, verb: str) -> str:
    value = run.setting(key)
    return f"{verb} {key}" + (f", now {value:g}" if isinstance(value, int | float) else "")


def _describe_shortness(run: Row) -> str | None:
    """What to say of a run of fewer steps than a verdict needs measurements; None if it is long enough."""
    total, step_ms = run.get("total_steps"), run.get("measured_step_ms")
    if total is None or total >= MIN_MEASUREMENTS:
        return None
    minutes = f" ({MIN_MEASUREMENTS * step_ms / 60_000:.2g} minutes here)" if step_ms else ""
    return f"A verdict needs at least {MIN_MEASUREMENTS} steps{minutes}, and this run has {total}. Give it hundreds."


def replay(rows: Sequence[Row], run: RunFacts) -> list[Verdict]:
    """The verdict after each health row, as it would have been given then by the rules of today."""
    before_the_stop = replace(run, stopped=None)
    return [judge(rows[: count + 1], before_the_stop) for count in range(len(rows))]


def warn_of_gradients(row: Row) -> str | None:
    """The brief's alarm for a gradient norm above 10, in words."""
    norm = row.get("grad_norm")
    if norm is None or norm <= MAX_GRAD_NORM:
        return None
    return f"step {row['step']}: gradient norm {norm:.1f} is above {MAX_GRAD_NORM:g}; lower optim.lr"


def warn_of_features(row: Row) -> str | None:
    """The brief's alarm for a feature variance below 0.01, in words."""
    variance = row.get("feature_variance", math.inf)
    if variance >= MIN_FEATURE_VARIANCE:
        return None
    return f"step {row['step']}: feature variance {variance:.2g} is below {MIN_FEATURE_VARIANCE:g}; may be collapsing"


def _describe_explosion(rows: Sequence[Row]) -> str | None:
    """What is not finite or far above its start at the last measurement; None if nothing is."""
    now = rows[-1]
    measured = [now.get(name, 0.0) for name in ("loss", "explained_variance")]
    if now.get("skipped_in_a_row", 0) > 0 or not all(map(math.isfinite, measured)):
        return "the loss or its gradient is not finite."
    if not math.isfinite(now["effective_rank_pooled"]):
        return "the encoder's features are not finite."
    if "loss" in now and "loss" in rows[0] and now["loss"] > EXPLODED_LOSS * rows[0]["loss"] > 0:
        return f"the loss is {now['loss']:.3g}, {now['loss'] / rows[0]['loss']:.0f} times what it was at the start."
    return None
