"""The contract of a task, and the tasks that need no more than features of labelled images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from openjepa.data.sources import ImageSource
from openjepa.evals.features import Features, FeatureStore
from openjepa.evals.outcome import Outcome


@dataclass(frozen=True)
class TaskSettings:
    """What a user may choose of a task. layers: how many last layers of the encoder the features are of."""

    layers: int = 1


class Task(Protocol):
    """A row of evals.TASKS."""

    @property
    def title(self) -> str:
        """The name in tables."""

    def evaluate(
        self, features: FeatureStore, train: ImageSource, test: ImageSource, settings: TaskSettings, seed: int
    ) -> Outcome:
        """Fit on train, measure on test once. ValueError for data that the task cannot use."""


@dataclass(frozen=True)
class FeatureTask:
    """A task on features of labelled images. score: (train features, test features, seed) -> Outcome."""

    name: str
    title: str
    score: Callable[[Features, Features, int], Outcome]
    needs_patches: bool = False

    def evaluate(
        self, features: FeatureStore, train: ImageSource, test: ImageSource, settings: TaskSettings, seed: int
    ) -> Outcome:
        """Extract features, or take those that the store has, and score them."""
        if self.needs_patches:
            if settings.layers != 1:
                raise ValueError(f"task {self.name} reads the last layer's patches: drop --layers {settings.layers}")
            return self.score(features.extract_patches(train), features.extract_patches(test), seed)
        return self.score(features.extract(train, settings.layers), features.extract(test, settings.layers), seed)
