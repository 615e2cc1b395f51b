"""Linear probe: multinomial logistic regression on standardised, cached features, tested once.

Minimises mean cross-entropy + l2 / 2 * |W|^2 (the bias is free). l2 is the one with the best
accuracy on a held-out, stratified tenth of the training images; then all of them are fitted. Left
out: augmented views.

Solver: L-BFGS (Liu and Nocedal 1989) on the whole set, warm-started from strong to weak. It
minimises the logarithm of the objective, so that one tolerance serves objectives of 1 and of 0.001.
Coordinates are scaled by Boehning's bound on the Hessian (1992) along the leading eigenvectors,
which a randomised subspace iteration finds (Halko, Martinsson and Tropp 2011, arXiv 0909.4061).
Where images are few and features wide, the solution lies in the span of the images, and the search
has a coordinate an image. tests/unit/test_linear.py pins that the minimum is scikit-learn's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from torch.optim import LBFGS

from openjepa.engine.threads import threads_for
from openjepa.evals.features import Features
from openjepa.evals.labels import pair_up
from openjepa.evals.outcome import HOLD_OUT, Outcome

# Fashion-MNIST, 10,000 labels: raw pixels do best at 1e-2, a random encoder, whose features are nearly parallel, at 1e-8.
L2_STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
PATIENCE = 2  # strengths in a row that better nothing end the search, once one was better than chance
EVERY = 10  # one training image in EVERY is held out
MAX_ITERATIONS = 500
# Largest entry of the gradient relative to the objective, in scaled coordinates. On pixels and
# untrained encoders of Fashion-MNIST, and on pixels of clip art, the search ended within 3 % of the
# least objective and the last fit within 0.2 %.
SEARCH_TOLERANCE, TOLERANCE = 1e-3, 3e-4
LEADING = 64  # eigenvectors to scale along; all of them took up to five times as many iterations
WIDE = 1000  # see is_wide
COLUMNS = 2048  # held in double precision at a time


@dataclass(frozen=True)
class Probe:
    """A linear classifier of standardised features."""

    weights: Float[Tensor, "num_classes dim"]
    bias: Float[Tensor, " num_classes"]
    converged: bool

    def predict(self, rows: Float[Tensor, "num_rows dim"]) -> Int[Tensor, " num_rows"]:
        """The class with the highest score."""
        return functional.linear(rows, self.weights, self.bias).argmax(1)


@dataclass(frozen=True)
class Moments:
    """The largest eigenvalues of the mean outer product of the training rows, and their eigenvectors.

    The eigenvalues fall; the eigenvectors are columns.
    """

    values: Float[Tensor, " leading"]
    vectors: Float[Tensor, "dim leading"]


@dataclass(frozen=True)
class Attempt:
    """A strength that was tried, the probe fitted with it and its accuracy on the held-out images."""

    l2: float
    probe: Probe
    accuracy: float


def score_linear(train: Features, test: Features, seed: int = 0) -> Outcome:
    """Accuracy of a probe fitted on train. The seed draws the held-out images.

    Raises ValueError as labels.pair_up does.
    """
    pair = pair_up(train, test)
    mean, std = measure_columns(pair.train)
    rows, labels, num_classes = (pair.train - mean).div_(std), pair.train_labels, len(pair.classes)
    held_out_mask = hold_out(labels, seed)
    with threads_for(rows.numel()):
        factor = factor_gram(rows) if is_wide(len(rows), rows.shape[1], num_classes) else None
        fitted = rows if factor is None else factor.float()
        moments = measure_moments(fitted)
        attempts = try_strengths(fitted, labels, num_classes, held_out_mask, moments)
        best = max(attempts, key=lambda attempt: attempt.accuracy)  # the strongest of those that tie
        probe = fit_probe(fitted, labels, num_classes, best.l2, moments, start=best.probe)
        if factor is not None:
            probe = widen(probe, factor, rows)
    hyper_parameters = {"l2": best.l2, "num_held_out": int(held_out_mask.sum()), "held_out_accuracy": best.accuracy}
    predictions = probe.predict((pair.test - mean) / std)
    return pair.score("linear", predictions, seed, hyper_parameters, describe_doubts(attempts, best, probe))


def describe_doubts(attempts: list[Attempt], best: Attempt, probe: Probe) -> list[str]:
    """What a reader of the accuracy should know: a strength at the edge of the grid, or a probe that had not converged."""
    doubts = []
    is_flat = sum(attempt.accuracy == best.accuracy for attempt in attempts) > 1
    if not is_flat and best.l2 in (L2_STRENGTHS[0], L2_STRENGTHS[-1]):
        doubts.append(f"the chosen l2 {best.l2:g} is at the edge of the grid; a value beyond it may be better")
    if not probe.converged:
        doubts.append(f"the probe had not converged after {MAX_ITERATIONS} iterations")
    return doubts


def measure_columns(rows: Float[Tensor, "num_rows dim"]) -> tuple[Float[Tensor, " dim"], Float[Tensor, " dim"]]:
    """Mean and standard deviation of every column; a deviation that is rounding error next to the largest counts as 1."""
    means, stds = [], []
    for part in rows.split(COLUMNS, dim=1):
        columns = part.double()
        means.append(columns.mean(0))
        stds.append(columns.sub_(means[-1]).square_().mean(0).sqrt())
    mean, std = torch.cat(means), torch.cat(stds)
    return mean.float(), std.where(std > 1e-6 * std.max(), 1.0).float()


def is_wide(num_rows: int, dim: int, num_classes: int) -> bool:
    """Whether a search with a coordinate a row takes less time than one with a coordinate a column.

    factor_gram takes num_rows^2 * dim operations. It saves 4 * num_classes * num_rows *
    (dim - num_rows) in each evaluation of the objective. There are about a hundred of those, and
    their narrow products run at less than half the speed of factor_gram's.
    """
    return num_rows * dim < WIDE * num_classes * (dim - num_rows)


def factor_gram(rows: Float[Tensor, "num_rows dim"]) -> Float[Tensor, "num_rows num_rows"]:
    """The rows in an orthonormal basis of their span: L in rows = L @ basis, in double precision.

    L is the Cholesky factor of rows @ rows.T, lower triangular. Cross-entropy sees weights through
    scores alone, and of the weights with the same scores the shortest lie in the span of the rows.
    So the minimum is the same in these coordinates (Kimeldorf and Wahba 1971).
    """
    num_rows = len(rows)
    gram = np.zeros((num_rows, num_rows))
    for part in rows.split(COLUMNS, dim=1):
        columns = part.double().numpy()
        gram += columns @ columns.T  # NumPy computes one triangle and copies it
    # Centred rows are linearly dependent, as are copies of an image: make up for what rounding takes.
    rounding = 4 * np.finfo(gram.dtype).eps * num_rows * max(gram.diagonal().max(), 1.0)
    gram[np.diag_indices(num_rows)] += rounding
    return torch.from_numpy(np.linalg.cholesky(gram))


def widen(probe: Probe, factor: Float[Tensor, "num_rows num_rows"], rows: Float[Tensor, "num_rows dim"]) -> Probe:
    """A probe of factor_gram's coordinates as one of the rows' own columns."""
    shares = torch.linalg.solve_triangular(factor, probe.weights.double(), upper=False, left=False)
    parts = [(shares @ part.double()).float() for part in rows.split(COLUMNS, dim=1)]
    return replace(probe, weights=torch.cat(parts, dim=1))


def hold_out(labels: Int[Tensor, " num_train"], seed: int) -> Bool[Tensor, " num_train"]:
    """True at a tenth of the images: every tenth of a random order sorted by class, so a class gives its share to within one.

    With fewer than ten images one is held out.
    """
    generator = np.random.default_rng([seed, HOLD_OUT])
    shuffled = torch.from_numpy(generator.permutation(len(labels)))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    first = int(generator.integers(min(EVERY, len(labels))))
    held_out_mask = torch.zeros(len(labels), dtype=torch.bool)
    held_out_mask[by_class[first::EVERY]] = True
    return held_out_mask


def try_strengths(
    rows: Float[Tensor, "num_train dim"],
    labels: Int[Tensor, " num_train"],
    num_classes: int,
    held_out_mask: Bool[Tensor, " num_train"],
    moments: Moments,
) -> list[Attempt]:
    """Fit what is not held out with L2_STRENGTHS, each started from the one before.

    Ends when weaker ones help no more. While none is better than chance, the next one is tried: the
    penalty may hide what little variance tells the classes apart, as in an untrained encoder.
    """
    fitted, fitted_labels = rows[~held_out_mask], labels[~held_out_mask]
    held_out, held_out_labels = rows[held_out_mask], labels[held_out_mask]
    chance = bound_chance(fitted_labels, held_out_labels)
    attempts: list[Attempt] = []
    for l2 in L2_STRENGTHS:
        start = attempts[-1].probe if attempts else None
        probe = fit_probe(fitted, fitted_labels, num_classes, l2, moments, start, SEARCH_TOLERANCE)
        correct = probe.predict(held_out) == held_out_labels
        attempts.append(Attempt(l2, probe, float(correct.double().mean())))
        accuracies = [attempt.accuracy for attempt in attempts]
        if max(accuracies) > chance and accuracies.index(max(accuracies)) < len(attempts) - PATIENCE:
            break
    return attempts


def bound_chance(labels: Int[Tensor, " num_fitted"], held_out_labels: Int[Tensor, " num_held_out"]) -> float:
    """The held-out accuracy of naming the commonest fitted class always, plus two standard errors."""
    share = float((held_out_labels == labels.bincount().argmax()).double().mean())
    return share + 2 * math.sqrt(share * (1 - share) / len(held_out_labels))


def measure_moments(rows: Float[Tensor, "num_rows dim"]) -> Moments:
    """What fit_probe scales its coordinates by; the random start of the iteration is always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, lengths, vectors = torch.svd_lowrank(rows, min(LEADING, *rows.shape))
    return Moments(lengths.square() / len(rows), vectors)


def fit_probe(
    rows: Float[Tensor, "num_rows dim"],
    labels: Int[Tensor, " num_rows"],
    num_classes: int,
    l2: float,
    moments: Moments,
    start: Probe | None = None,
    tolerance: float = TOLERANCE,
) -> Probe:
    """The minimum of mean cross-entropy + l2 / 2 * |weights|^2.

    Where to start and what to scale by change only the time. Boehning: the Hessian is at most
    moments / 2 + l2. The search is in coordinates where that bound is 1 along the leading
    eigenvectors, and at most 1 across them.
    """
    bound = (moments.values / 2 + l2).sqrt()
    across = bound[-1]

    def stretch(weights: Tensor, along: Tensor, across: Tensor) -> Tensor:
        return weights * across + (weights @ moments.vectors * (along - across)) @ moments.vectors.T

    scaled = torch.zeros(num_classes, rows.shape[1]) if start is None else stretch(start.weights, bound, across)
    bias = torch.zeros(num_classes) if start is None else start.bias.clone()
    variables = [scaled.requires_grad_(), bias.requires_grad_()]
    solver = LBFGS(
        variables,
        max_iter=MAX_ITERATIONS,
        max_eval=100 * MAX_ITERATIONS,  # never reached: a line search takes 25 at most
        tolerance_grad=tolerance,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        weights = stretch(scaled, 1 / bound, 1 / across)
        objective = functional.cross_entropy(functional.linear(rows, weights, bias), labels) + l2 / 2 * weights.square().sum()
        value = (objective + l2).log()  # the objective alone goes to 0 if all rows are of one class
        value.backward()
        return value

    solver.step(loss)
    num_iterations = solver.state[scaled]["n_iter"]
    return Probe(stretch(scaled, 1 / bound, 1 / across).detach(), bias.detach(), converged=num_iterations < MAX_ITERATIONS)
