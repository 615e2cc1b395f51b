"""The contract of a task, and the tasks that need no more than features of labelled images.

A task opens its own data, since what a label is differs: a class an image, or a map of classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from openjepa.data.reading import AS_STORED, Reading
from openjepa.data.sources import ImageSource, open_labelled
from openjepa.evals.features import FeatureStore
from openjepa.evals.outcome import Outcome

Head = Literal["linear", "upernet"]


@dataclass(frozen=True)
class TaskSettings:
    """What a user may choose of a task. layers: how many last layers of the encoder the features are of.

    Of tasks on pixels: train_annotations and test_annotations, where they do not lie beside the images; ignore_zero, of label
    maps; pictures, a folder to draw into. accuracy: what labels-needed asks for, in (0, 1]; None is what it asks by itself.
    """

    layers: int = 1
    train_annotations: str | None = None
    test_annotations: str | None = None
    ignore_zero: bool = False
    pictures: Path | None = None
    accuracy: float | None = None
    head: Head = "linear"


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
    """A task on features of labelled images.

    score: (train features, test features, seed) -> Outcome; it is also given the settings that `options` names, by name.
    """

    name: str
    title: str
    score: Callable[..., Outcome]
    needs_patches: bool = False
    options: tuple[str, ...] = ()

    def open(
        self, train: str, test: str, channels: int, settings: TaskSettings, reading: Reading = AS_STORED
    ) -> tuple[ImageSource, ImageSource]:
        """Images with a class each."""
        return open_classified(self.name, self.options, train, test, channels, settings, reading)

    def evaluate(
        self, features: FeatureStore, train: ImageSource, test: ImageSource, settings: TaskSettings, seed: int
    ) -> Outcome:
        """Extract features, or take those that the store has, and score them."""
        options = {name: getattr(settings, name) for name in self.options}
        if self.needs_patches:
            if settings.layers != 1:
                raise ValueError(f"task {self.name} reads the last layer's patches: drop --layers {settings.layers}")
            return self.score(features.extract_patches(train), features.extract_patches(test), seed, **options)
        return self.score(features.extract(train, settings.layers), features.extract(test, settings.layers), seed, **options)


def open_classified(
    task: str, options: tuple[str, ...], train: str, test: str, channels: int, settings: TaskSettings, reading: Reading
) -> tuple[ImageSource, ImageSource]:
    """The data of a task that takes one label an image. ValueError as refuse_unread raises it, or without labels."""
    refuse_unread(task, options, settings)
    return open_labelled(train, channels, reading), open_labelled(test, channels, reading)


def refuse_unread(task: str, options: tuple[str, ...], settings: TaskSettings) -> None:
    """ValueError for a setting that the task does not read. options: those that it reads, beyond layers."""
    unread = vars(settings).keys() - {"layers", *options}
    for key in (key for key in vars(settings) if key in unread and getattr(settings, key) != getattr(TaskSettings, key)):
        raise ValueError(f"task {task} does not read --{key.replace('_', '-')}: drop it")
