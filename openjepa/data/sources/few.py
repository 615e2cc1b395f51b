"""Some images of each class of another source: `few:LABELS:DRAW:DATA`, as if only these had been labelled.

LABELS images of each class, or all where a class has no more, drawn without replacement by the number DRAW. A draw of more
labels holds every image of a smaller one, so that a curve over labels adds images and exchanges none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64

from openjepa.data.decode import Picture, Pixels
from openjepa.data.sources.contract import ImageSource, Labels

PURPOSE = 12  # what a generator is for: the second number of its seed


@dataclass(frozen=True)
class FewSource:
    """A source's images of the given numbers, in their order."""

    spec: str
    whole: ImageSource = field(repr=False)
    image_idx: Int64[np.ndarray, " chosen"] = field(repr=False)

    @property
    def channels(self) -> int:
        """The whole source's."""
        return self.whole.channels

    @property
    def labels(self) -> Labels | None:
        """A class number (N,) per image."""
        return None if self.whole.labels is None else self.whole.labels[self.image_idx]

    @property
    def classes(self) -> list[str]:
        """The whole source's."""
        return self.whole.classes

    def __len__(self) -> int:
        return len(self.image_idx)

    def open(self, index: int) -> Picture:
        """As the whole source gives it."""
        return self.whole.open(int(self.image_idx[index]))

    def load(self, index: int) -> Pixels:
        """As the whole source gives it."""
        return self.whole.load(int(self.image_idx[index]))

    def path(self, index: int) -> str:
        """As the whole source names it."""
        return self.whole.path(int(self.image_idx[index]))


def whole_of(source: ImageSource) -> ImageSource:
    """The source that some images were drawn from; any other source itself."""
    return source.whole if isinstance(source, FewSource) else source


def split_few(spec: str, rest: str) -> tuple[int, int, str]:
    """Labels a class, number of the draw, and the whole source's spec. ValueError if the spec is anything else."""
    labels, _, after = rest.partition(":")
    draw, _, whole = after.partition(":")
    if not (labels.isdecimal() and draw.isdecimal() and int(labels) >= 1 and whole):
        raise ValueError(f"{spec} is not few:LABELS:DRAW:DATA, as in few:10:0:sample:train: 10 images of each class, draw 0")
    return int(labels), int(draw), whole


def open_few(spec: str, rest: str, open_whole: Callable[[str], ImageSource]) -> FewSource:
    """Open the whole source and draw from it. ValueError if it cannot be opened or has no labels."""
    count, draw, name = split_few(spec, rest)
    whole = open_whole(name)
    if whole.labels is None:
        raise ValueError(
            f"{name} has no labels, of which {spec} draws some; put each class's images into a sub-folder of its own"
        )
    return FewSource(spec, whole, draw_labels(whole.labels, count, draw))


def draw_labels(labels: Labels, count: int, draw: int) -> Int64[np.ndarray, " chosen"]:
    """Numbers of the first `count` images of each class in the order that the draw gives them, rising."""
    order = np.random.default_rng([draw, PURPOSE]).permutation(len(labels))
    chosen = [order[labels[order] == number][:count] for number in np.unique(labels)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)
