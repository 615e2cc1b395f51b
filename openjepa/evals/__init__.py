"""Evaluations see an encoder, never a method: ours, the baselines and other people's go through the same code.

A task is called on (encoder's features, training source, test source, settings, seed) and gives an Outcome. A new one is a
file and a row of TASKS: the command line, the report and the docs take their names from here, and
tests/contract/test_tasks.py holds every row to the same contract.
"""

from __future__ import annotations

from openjepa.evals.anomaly import AnomalyTask
from openjepa.evals.attentive import score_attentive
from openjepa.evals.knn import score_knn
from openjepa.evals.labels_needed import score_labels_needed
from openjepa.evals.linear import score_linear
from openjepa.evals.lowshot import score_lowshot
from openjepa.evals.retrieval import score_retrieval
from openjepa.evals.robustness import Robustness
from openjepa.evals.segmentation import SegmentationTask
from openjepa.evals.task import FeatureTask, Task

TASKS: dict[str, Task] = {
    "knn": FeatureTask("knn", "20-NN", score_knn),
    "linear": FeatureTask("linear", "Linear probe", score_linear),
    "attentive": FeatureTask("attentive", "Attentive probe", score_attentive, needs_patches=True),
    "lowshot": FeatureTask("lowshot", "Few labels", score_lowshot),
    "labels-needed": FeatureTask("labels-needed", "Labels needed", score_labels_needed, options=("accuracy",)),
    "retrieval": FeatureTask("retrieval", "Retrieval", score_retrieval),
    "robustness": Robustness(),
    "segmentation": SegmentationTask("segmentation", "Segmentation"),
    "anomaly": AnomalyTask("anomaly", "Anomaly detection"),
}
