"""Linear probe: multinomial logistic regression on standardised, cached features, tested once.

Minimises mean cross-entropy + l2 / 2 * |W|^2 (the bias is free). l2 is the one with the best accuracy on a held-out, stratified
tenth of the training images; then all of them are fitted. Left out: augmented views and features of several layers.
Solver: L-BFGS (Liu and Nocedal 1989) on the whole set, warm-started from strong to weak, in coordinates scaled by Boehning's
bound on the Hessian (1992). 10,000 x 784 raw pixels take 1 to 2 s a strength on one core; scikit-learn's lbfgs took 3 to 29 s
on two and had not converged after 300 iterations from C = 0.01 on. tests/unit/test_linear.py pins that both agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from torch.optim import LBFGS

from openjepa.evals.features import Features
from openjepa.evals.labels import pair_up
from openjepa.evals.result import HOLD_OUT, Result

# Fashion-MNIST, 10,000 labels: raw pixels do best at 1e-2, a random encoder, whose features are nearly parallel, at 1e-8.
L2_STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
PATIENCE = 2  # strengths in a row that better nothing end the search
EVERY = 10  # one training image in so many is held out
MAX_ITERATIONS = 500
GRADIENT_TOLERANCE = 1e-4  # largest entry, in scaled coordinates; 1e-5 moved no accuracy by more than 0.1 % there
# Problems of so many numbers use one thread: on a busy machine two that wait for one another took 106 s instead of 6 s.
ONE_THREAD_NUMBERS = 2**23


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
    """Eigenvalues and eigenvectors (columns) of the mean outer product of the training rows."""

    values: Float[Tensor, " dim"]
    vectors: Float[Tensor, "dim dim"]


@dataclass(frozen=True)
class Attempt:
    """A strength that was tried, the probe fitted with it and its accuracy on the held-out images."""

    l2: float
    probe: Probe
    accuracy: float


def evaluate_linear(train: Features, test: Features, seed: int = 0) -> Result:
    """Accuracy of a probe fitted on train. The seed draws the held-out images and the bootstrap interval.

    Raises ValueError as labels.pair_up does.
    """
    pair = pair_up(train, test)
    mean, std = measure_columns(pair.train)
    rows, labels, num_classes = (pair.train - mean) / std, pair.train_labels, len(pair.classes)
    held_out_mask = hold_out(labels, seed)
    with _threads_for(rows):
        moments = measure_moments(rows)
        attempts = try_strengths(rows, labels, num_classes, held_out_mask, moments)
        best = max(attempts, key=lambda attempt: attempt.accuracy)  # the strongest of those that tie
        probe = fit_probe(rows, labels, num_classes, best.l2, moments, start=best.probe)
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
    std, mean = torch.std_mean(rows.double(), dim=0, correction=0)
    return mean.float(), std.where(std > 1e-6 * std.max(), 1.0).float()


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
    """Fit on what is not held out with L2_STRENGTHS, each started from the one before, until weaker ones help no more."""
    attempts: list[Attempt] = []
    for l2 in L2_STRENGTHS:
        start = attempts[-1].probe if attempts else None
        probe = fit_probe(rows[~held_out_mask], labels[~held_out_mask], num_classes, l2, moments, start)
        correct = probe.predict(rows[held_out_mask]) == labels[held_out_mask]
        attempts.append(Attempt(l2, probe, float(correct.double().mean())))
        accuracies = [attempt.accuracy for attempt in attempts]
        if accuracies.index(max(accuracies)) < len(attempts) - PATIENCE:
            break
    return attempts


def measure_moments(rows: Float[Tensor, "num_rows dim"]) -> Moments:
    """What fit_probe scales its coordinates by."""
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    return Moments(values.clamp_min(0), vectors)


def fit_probe(
    rows: Float[Tensor, "num_rows dim"],
    labels: Int[Tensor, " num_rows"],
    num_classes: int,
    l2: float,
    moments: Moments,
    start: Probe | None = None,
) -> Probe:
    """The minimum of mean cross-entropy + l2 / 2 * |weights|^2; where to start and what to scale by change only the time.

    Boehning: the Hessian is at most moments / 2 + l2. Weights are searched as `scaled @ narrow`, where that bound is 1.
    """
    bound = (moments.values / 2 + l2).sqrt()
    narrow, widen = (moments.vectors / bound) @ moments.vectors.T, (moments.vectors * bound) @ moments.vectors.T
    scaled = torch.zeros(num_classes, rows.shape[1]) if start is None else start.weights @ widen
    bias = torch.zeros(num_classes) if start is None else start.bias.clone()
    variables = [scaled.requires_grad_(), bias.requires_grad_()]
    solver = LBFGS(
        variables,
        max_iter=MAX_ITERATIONS,
        max_eval=100 * MAX_ITERATIONS,  # never reached: a line search takes 25 at most
        tolerance_grad=GRADIENT_TOLERANCE,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        weights = scaled @ narrow
        value = functional.cross_entropy(functional.linear(rows, weights, bias), labels) + l2 / 2 * weights.square().sum()
        value.backward()
        return value

    solver.step(loss)
    num_iterations = solver.state[scaled]["n_iter"]
    return Probe((scaled @ narrow).detach(), bias.detach(), converged=num_iterations < MAX_ITERATIONS)


@contextmanager
def _threads_for(rows: Float[Tensor, "num_rows dim"]) -> Iterator[None]:
    """One thread for small problems, all of them for large ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if rows.numel() <= ONE_THREAD_NUMBERS else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
