"""Train and test features made ready for a task: classes matched by name, mistakes found before anything is computed.

Two folders number their classes each in its own way, and a test folder may lack some, so numbers are never compared.
Training images are put in the order of their number, so that no task depends on the order in which they came.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from openjepa.data.sources import ImageSource, canonical_spec
from openjepa.evals.features import Features, Integers
from openjepa.evals.outcome import Outcome, score_share

MOST_NAMED = 5  # class names in an error


@dataclass(frozen=True)
class LabelledPair:
    """Training and test features with labels that are indices into the same classes."""

    train: Float[Tensor, num_train * features]
    train_labels: Int[Tensor, " num_train"]
    test: Float[Tensor, num_test * features]
    test_labels: Int[Tensor, " num_test"]
    classes: list[str]
    warnings: list[str]

    def score(
        self,
        task: str,
        predictions: Int[Tensor, " num_test"],
        seed: int,
        hyper_parameters: dict[str, float | int],
        warnings: list[str],
    ) -> Outcome:
        """The Outcome of predicted classes: their accuracy."""
        return Outcome(
            task=task,
            scores={"accuracy": score_share(int((predictions == self.test_labels).sum()), len(self.test_labels))},
            main="accuracy",
            num_train=len(self.train_labels),
            num_test=len(self.test_labels),
            num_classes=len(self.classes),
            seed=seed,
            hyper_parameters=hyper_parameters,
            warnings=self.warnings + warnings,
            predictions=predictions.numpy(),
            classes=self.classes,
        )


def pair_up(train: Features, test: Features) -> LabelledPair:
    """Check and match two sets of features.

    Raises ValueError if one has no labels, if training has fewer than two classes, or test has one that training lacks.
    """
    train_labels, test_labels, classes = align_labels(train, test)
    assert train.rows.shape[1:] == test.rows.shape[1:], "train and test features are of different encoders"
    order = np.argsort(train.image_idx, kind="stable")
    warnings = [
        f"{len(features.skipped)} images of {features.spec} could not be read" for features in (train, test) if features.skipped
    ]
    if canonical_spec(train.spec) == canonical_spec(test.spec):
        warnings.append(f"{train.spec} was used for training and for test; the accuracy says nothing about new images")
    return LabelledPair(
        torch.from_numpy(train.rows[order]), torch.from_numpy(train_labels[order]),
        torch.from_numpy(test.rows), torch.from_numpy(test_labels), classes, warnings,
    )  # fmt: skip


def align_labels(train: Features, test: Features) -> tuple[Integers, Integers, list[str]]:
    """Labels of the training (n,) and test (m,) images as indices into one list of classes: those that have a training image.

    Raises ValueError as pair_up does.
    """
    train_names, test_names = _class_names(train), _class_names(test)
    classes = sorted(set(train_names))
    _require_classes(classes, set(test_names), train.spec, test.spec)
    number = {name: index for index, name in enumerate(classes)}
    train_labels, test_labels = (np.array([number[name] for name in names], np.int64) for names in (train_names, test_names))
    return train_labels, test_labels, classes


def require_known_classes(train: ImageSource, test: ImageSource) -> None:
    """ValueError unless training has two classes or more, and every class of the test images, by name."""
    known, asked = ({_normal(source.classes[label]) for label in set(_labels_of(source))} for source in (train, test))
    _require_classes(sorted(known), asked, train.spec, test.spec)


def _labels_of(source: ImageSource) -> list[int]:
    assert source.labels is not None, source.spec
    labels: list[int] = np.unique(source.labels).tolist()
    return labels


def match_names(features: Features, classes: list[str]) -> Integers:
    """Labels of images (n,) as indices into the classes of a trained classifier, by name. ValueError for any other class."""
    number = {_normal(name): index for index, name in enumerate(classes)}
    names = _class_names(features)
    if unknown := sorted(set(names) - number.keys()):
        raise ValueError(
            f"{features.spec} has classes that the classifier was not trained on: {_list_names(unknown)}; it has "
            f"{_list_names(classes)}; name the sub-folders alike"
        )
    return np.array([number[name] for name in names], np.int64)


def _class_names(features: Features) -> list[str]:
    """The class name of every image."""
    if features.labels is None:
        raise ValueError(
            f"{features.spec} has no labels: class sub-folders give them; put every image in one, as in {features.spec}/cat/1.jpg"
        )
    names = [_normal(name) for name in features.classes]
    return [names[label] for label in features.labels.tolist()]


def _normal(name: str) -> str:
    """A class name in one form, as two systems write one "é"."""
    return unicodedata.normalize("NFC", name)


def _require_classes(known: list[str], asked: set[str], train: str, test: str) -> None:
    """ValueError unless there are two classes to train on, and all those asked for among them."""
    if len(known) < 2:
        raise ValueError(f"{train} has images of one class only, {known[0]!r}; a classifier needs at least two sub-folders")
    if unknown := sorted(asked - set(known)):
        raise ValueError(
            f"{test} has classes that {train} has no image of: {_list_names(unknown)}; "
            f"{train} has {_list_names(known)}; name the sub-folders alike"
        )


def _list_names(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
