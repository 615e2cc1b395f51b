"""Evaluations see an encoder, never a method: ours, the baselines and other people's go through the same code.

A protocol is called on (train features, test features, seed) and returns a Result. A new one is one file and one row here;
tests/contract/test_protocols.py holds every row to the same contract.
"""

from collections.abc import Callable

from openjepa.evals.features import Features
from openjepa.evals.knn import evaluate_knn
from openjepa.evals.linear import evaluate_linear
from openjepa.evals.outcome import Result

PROTOCOLS: dict[str, Callable[[Features, Features, int], Result]] = {"knn": evaluate_knn, "linear": evaluate_linear}
