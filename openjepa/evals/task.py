"""The contract of a task, and the tasks that need no more than features of labelled images.

A task opens its own data, since what a label is differs: a class an image, or a map of classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from openjepa.data.reading import AS_STORED, Reading
from openjepa.data.sources import ImageSource, open_labelled
from openjepa.evals.features import Features, FeatureStore
from openjepa.evals.outcome import Outcome


@dataclass(frozen=True)
class TaskSettings:
    """What a user may choose of a task. layers: how many last layers of the encoder the features are of.

    Of tasks on pixels: train_annotations and test_annotations, where they do not lie beside the images; ignore_zero, of label
    maps; pictures, a folder to draw into.
    """

    layers: int = 1
    train_annotations: str | None = None
    test_annotations: str | None = None
    ignore_zero: bool = False
    pictures: Path | None = None


class Task(Protocol):
    """A row of evals.TASKS."""

    @property
    def title(self) -> str:
        """The name in tables."""

    def open(
        self, train: str, test: str, channels: int, settings: TaskSettings, reading: Reading = AS_STORED
    ) -> tuple[ImageSource, ImageSource]:
        """The data that two specs name, with what the task takes for labels. ValueError if there is none.

        reading: how samples of more than 8 bits become grey levels for this encoder.
        """

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

    def open(
        self, train: str, test: str, channels: int, settings: TaskSettings, reading: Reading = AS_STORED
    ) -> tuple[ImageSource, ImageSource]:
        """Images with a class each."""
        if settings.train_annotations or settings.test_annotations or settings.ignore_zero or settings.pictures:
            flags = "--train-annotations, --test-annotations, --ignore-zero and --pictures"
            raise ValueError(f"task {self.name} takes one label an image, from its folder: drop {flags}")
        return open_labelled(train, channels, reading), open_labelled(test, channels, reading)

    def evaluate(
        self, features: FeatureStore, train: ImageSource, test: ImageSource, settings: TaskSettings, seed: int
    ) -> Outcome:
        """Extract features, or take those that the store has, and score them."""
        if self.needs_patches:
            if settings.layers != 1:
                raise ValueError(f"task {self.name} reads the last layer's patches: drop --layers {settings.layers}")
            return self.score(features.extract_patches(train), features.extract_patches(test), seed)
        return self.score(features.extract(train, settings.layers), features.extract(test, settings.layers), seed)
