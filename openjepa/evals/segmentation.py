"""Segmentation on frozen features: a linear classifier of patches, whose scores are upsampled to label maps, or UPerNet's head.

Source: the linear protocol of DINOv2, Oquab et al. 2023 (arXiv 2304.07193, section 7.4): scores on the grid of patches, bilinear
to pixels. Heads of a grid of learning rates and weight decays train together by AdamW on cached features, as in attentive.py. The
one with the best mean IoU on a held-out tenth of the training images is trained again on all of them, and tested once. The head
`upernet` (nn/upernet.py), the brief's protocol, costs far more, so it trains once, by one setting, on all training images.

Images are seen through the evaluation view: shorter side resized, middle cut out. Heads train on maps of CELLS x CELLS cells a
patch, or of the view's pixels where these are fewer, each with the class at its middle: between patches scores are straight
lines, so finer maps teach little more and cost the square. Test maps keep their own pixels, and scores are upsampled to them, so
that encoders of different sizes answer for the same pixels. How maps are scored is in iou.py. Left out: sliding windows,
augmented views, and a head on several layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from openjepa.data.annotations import list_names
from openjepa.data.label_maps import IGNORED, LabelMap, MappedSource, open_mapped
from openjepa.data.reading import AS_STORED, Reading
from openjepa.data.sources import ImageSource, canonical_spec
from openjepa.data.views import find_middle
from openjepa.engine.threads import threads_for
from openjepa.evals.attentive import Setting, measure_channels
from openjepa.evals.features import Features, FeatureStore
from openjepa.evals.iou import Tally
from openjepa.evals.linear import hold_out
from openjepa.evals.outcome import Outcome
from openjepa.evals.pictures import colour_map, put_side_by_side, to_rgb, write_picture
from openjepa.evals.task import Head, TaskSettings, refuse_unread
from openjepa.nn.pyramid import SCALES
from openjepa.nn.upernet import UPerNet

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
DECAYS = (1e-3, 0.1)
UPERNET = (1e-3, 0.05)  # learning rate and weight decay; not compared with others
STEPS = 1000
BATCH = 16  # images
CELLS = 4  # a patch's side, of the maps that heads train on
WARMUP_FRAC = 0.1
MOST_SCORES = 2**25  # held at a time: of all heads, classes and pixels of a part of a batch
NUM_PICTURES = 24
PIXEL_MAPS = 16  # of an UPerNet's channels that a training step holds at the finest level, about
HEADS = 13  # what a generator is for: the second number of its seed

Box = tuple[slice, slice]  # rows, columns


@dataclass(frozen=True)
class Lesson:
    """What heads learn from: features on the grid of patches, and maps of the same view."""

    tokens: Float[Tensor, "images down across dim"] = field(repr=False)
    maps: UInt8[Tensor, "images height width"] = field(repr=False)
    num_classes: int
    mean: Float[Tensor, " dim"] = field(repr=False)
    std: Float[Tensor, " dim"] = field(repr=False)
    device: str | torch.device = "cpu"

    def take(self, chosen_idx: Int[Tensor, " chosen"]) -> tuple[Tensor, Tensor]:
        """Standardised features and maps of some images, on the device."""
        tokens = (self.tokens[chosen_idx] - self.mean) / self.std
        return tokens.to(self.device), self.maps[chosen_idx].to(self.device)


class Choice(NamedTuple):
    """The setting that was best on held-out images, how many these were, and how good it was."""

    setting: Setting
    num_held_out: int
    miou: float


class LinearHeads(nn.Module):
    """H linear classifiers of patches, side by side, all of which start at zero."""

    def __init__(self, num_heads: int, dim: int, num_classes: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(num_classes, dim) for _ in range(num_heads))
        self.bias = nn.ParameterList(torch.zeros(num_classes) for _ in range(num_heads))

    def forward(
        self, tokens: Float[Tensor, "images down across dim"], size: tuple[int, int]
    ) -> Float[Tensor, "maps classes height width"]:
        """Scores of each head at every pixel of maps of a height and width; an image's heads follow one another."""
        scores = functional.linear(tokens, torch.cat(tuple(self.weights)), torch.cat(tuple(self.bias))).permute(0, 3, 1, 2)
        upsampled = functional.interpolate(scores, size, mode="bilinear", align_corners=False)
        by_head: Tensor = upsampled.unflatten(1, (len(self.weights), -1)).flatten(0, 1)
        return by_head


SegmentationHead = LinearHeads | UPerNet


@dataclass(frozen=True)
class SegmentationTask:
    """A task on images with label maps."""

    name: str
    title: str

    def open(
        self, train: str, test: str, channels: int, settings: TaskSettings, reading: Reading = AS_STORED
    ) -> tuple[ImageSource, ImageSource]:
        """Images with label maps, of folders or COCO masks."""
        refuse_unread(self.name, ("train_annotations", "test_annotations", "ignore_zero", "pictures", "head"), settings)
        return (
            open_mapped(train, channels, settings.train_annotations, ignore_zero=settings.ignore_zero, reading=reading),
            open_mapped(test, channels, settings.test_annotations, ignore_zero=settings.ignore_zero, reading=reading),
        )

    def evaluate(
        self, features: FeatureStore, train: ImageSource, test: ImageSource, settings: TaskSettings, seed: int
    ) -> Outcome:
        """Train heads on the training images, and test the best."""
        assert isinstance(train, MappedSource) and isinstance(test, MappedSource)
        if settings.layers != 1:
            raise ValueError(f"task {self.name} reads the last layer's patches: drop --layers {settings.layers}")
        table = match_classes(train, test)
        known, seen = features.extract_patches(train), features.extract_patches(test)
        grid = features.patch_shape()[:2]
        lesson = prepare(train, known, grid, features.encoder.size, features.device)
        with threads_for(lesson.tokens.numel()):
            head, hyper_parameters = train_best(lesson, settings.head, seed)
        tally = Tally(len(train.map_classes), train.background)
        patches = ((torch.from_numpy(seen.rows) - lesson.mean) / lesson.std).unflatten(1, grid)
        for place, index in enumerate(seen.image_idx.tolist()):
            truth = table[test.read_map(index)]
            box = find_view(truth, features.encoder.size)
            guess = predict_map(head, patches[place].to(lesson.device), truth[box].shape)
            tally.add(truth[box], guess)
            if settings.pictures is not None and place < NUM_PICTURES:
                maps = [colour_map(numbers, train.background) for numbers in (truth[box], guess)]
                write_picture(settings.pictures / f"{index:06d}.png", put_side_by_side([to_rgb(test.load(index)[box]), *maps]))
        return Outcome(
            task=self.name,
            scores=tally.score(train.map_classes, seed),
            main="miou",
            num_train=len(known.image_idx),
            num_test=len(seen.image_idx),
            num_classes=len(train.map_classes),
            seed=seed,
            hyper_parameters=hyper_parameters,
            warnings=_list_warnings(train, test, known, seen),
            predictions=np.empty(0, np.int64),
            classes=train.map_classes,
            note="" if settings.head == "linear" else f"head {settings.head}",
        )


def train_best(lesson: Lesson, head: Head, seed: int) -> tuple[SegmentationHead, dict[str, float | int]]:
    """A head trained on all images, and what of its training was set or chosen."""
    all_idx = torch.arange(len(lesson.maps))
    if head == "upernet":
        setting = Setting(*UPERNET)
        network = train_upernet(lesson, all_idx, setting, seed)
        return network, {"lr": setting.lr, "weight_decay": setting.weight_decay, "channels": network.channels, "steps": STEPS}
    choice = choose_setting(lesson, seed)
    chosen: dict[str, float | int] = {
        "lr": choice.setting.lr, "weight_decay": choice.setting.weight_decay,
        "num_held_out": choice.num_held_out, "held_out_miou": choice.miou,
    }  # fmt: skip
    return train_heads(lesson, all_idx, [choice.setting], seed), chosen


def match_classes(train: MappedSource, test: MappedSource) -> UInt8[np.ndarray, " 256"]:
    """The training class of each value of a test map, matched by name.

    ValueError if training has one class only, or the test has one that training lacks.
    """
    if len(train.map_classes) < 2:
        raise ValueError(f"the maps of {train.spec} have one class only, {train.map_classes[0]}; it takes two to tell apart")
    unknown = [name for name in test.map_classes if name not in train.map_classes]
    if unknown:
        raise ValueError(
            f"the maps of {test.spec} have classes that {train.spec} lacks: {list_names(unknown)}; "
            f"{train.spec} has {list_names(train.map_classes)}"
        )
    table = np.full(IGNORED + 1, IGNORED, np.uint8)
    table[: len(test.map_classes)] = [train.map_classes.index(name) for name in test.map_classes]
    return table


def prepare(
    source: MappedSource, features: Features, grid: tuple[int, ...], size: tuple[int, int], device: str | torch.device
) -> Lesson:
    """Features and maps of training images, as heads take them. ValueError if every pixel of them is ignored."""
    tokens = torch.from_numpy(features.rows)
    cells = (min(size[0], CELLS * grid[0]), min(size[1], CELLS * grid[1]))
    maps = np.stack([shrink_map(source.read_map(index), size, cells) for index in features.image_idx.tolist()])
    if (maps == IGNORED).all():
        raise ValueError(f"every pixel of the maps of {source.spec} is ignored in the middle of its images")
    mean, std = measure_channels(tokens)
    return Lesson(tokens.unflatten(1, grid), torch.from_numpy(maps), len(source.map_classes), mean, std, device)


def find_view(truth: LabelMap, size: tuple[int, int]) -> Box:
    """The whole pixels of a map that the evaluation view of its image shows."""
    top, left, height, width = find_middle(truth.shape, size)
    first_row, first_column = round(top), round(left)
    last_row, last_column = max(round(top + height), first_row + 1), max(round(left + width), first_column + 1)
    return slice(first_row, last_row), slice(first_column, last_column)


def shrink_map(truth: LabelMap, size: tuple[int, int], cells: tuple[int, int]) -> UInt8[np.ndarray, "view_height view_width"]:
    """The map of an image's evaluation view of a size, in so many cells: at the middle of each, the class that lies there."""
    top, left, height, width = find_middle(truth.shape, size)
    rows = np.floor(top + (np.arange(cells[0]) + 0.5) * height / cells[0]).astype(np.int64)
    columns = np.floor(left + (np.arange(cells[1]) + 0.5) * width / cells[1]).astype(np.int64)
    shrunk: UInt8[np.ndarray, "view_height view_width"] = truth[rows][:, columns]
    return shrunk


def choose_setting(lesson: Lesson, seed: int) -> Choice:
    """The setting of the grid whose head is best on a held-out tenth of the images; of those that tie, the gentlest."""
    num_images = len(lesson.maps)
    grid = [Setting(*pair) for pair in product(RATES, DECAYS)]
    held_out_mask = hold_out(torch.zeros(num_images, dtype=torch.int64), seed)
    kept_idx, held_idx = (~held_out_mask).nonzero().squeeze(1), held_out_mask.nonzero().squeeze(1)
    heads = train_heads(lesson, kept_idx if len(kept_idx) else held_idx, grid, seed)
    tallies = [Tally(lesson.num_classes, None) for _ in grid]
    for part in held_idx.split(_part_size(lesson, len(grid))):
        tokens, maps = lesson.take(part)
        with torch.inference_mode():
            guesses = heads(tokens, tuple(maps.shape[1:])).argmax(1).unflatten(0, (len(part), len(grid)))
        for truth, of_heads in zip(maps.cpu().numpy(), guesses.to(torch.uint8).cpu().numpy(), strict=True):
            for tally, guess in zip(tallies, of_heads, strict=True):
                tally.add(truth, guess)
    mious = [tally.miou() for tally in tallies]
    best = max(range(len(grid)), key=lambda head: mious[head])
    return Choice(grid[best], len(held_idx), mious[best])


def train_heads(lesson: Lesson, chosen_idx: Int[Tensor, " chosen"], grid: list[Setting], seed: int) -> LinearHeads:
    """One head for each setting, trained by AdamW on the chosen images; all see the same batches."""
    heads = LinearHeads(len(grid), lesson.tokens.shape[-1], lesson.num_classes).to(lesson.device)
    groups: list[dict[str, Any]] = [
        {"params": [heads.weights[number], heads.bias[number]], "lr": 0.0, "weight_decay": setting.weight_decay}
        for number, setting in enumerate(grid)
    ]
    descend(heads, groups, [setting.lr for setting in grid], lesson, chosen_idx, seed, _part_size(lesson, len(grid)))
    return heads


def train_upernet(lesson: Lesson, chosen_idx: Int[Tensor, " chosen"], setting: Setting, seed: int) -> UPerNet:
    """A UPerNet-like head, trained by AdamW on the chosen images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UPerNet(lesson.tokens.shape[-1], lesson.num_classes)
    network.to(lesson.device)
    finest = math.prod(lesson.tokens.shape[1:3]) * int(SCALES[0]) ** 2
    part_size = max(1, MOST_SCORES // (PIXEL_MAPS * network.channels * finest))
    groups = [{"params": list(network.parameters()), "lr": 0.0, "weight_decay": setting.weight_decay}]
    descend(network, groups, [setting.lr], lesson, chosen_idx, seed, part_size)
    return network


def descend(
    heads: SegmentationHead,
    groups: list[dict[str, Any]],
    rates: list[float],
    lesson: Lesson,
    chosen_idx: Int[Tensor, " chosen"],
    seed: int,
    part_size: int,
) -> None:
    """STEPS of AdamW on batches of the chosen images; groups and rates: one a head. part_size: images at a time."""
    optimizer = torch.optim.AdamW(groups)
    generator = torch.Generator().manual_seed(int(np.random.default_rng([seed, HEADS]).integers(2**62)))
    waiting = chosen_idx[:0]
    for step in range(STEPS):
        if len(waiting) < min(BATCH, len(chosen_idx)):
            waiting = torch.cat([waiting, chosen_idx[torch.randperm(len(chosen_idx), generator=generator)]])
        batch_idx, waiting = waiting[:BATCH], waiting[BATCH:]
        share = min((step + 1) / (WARMUP_FRAC * STEPS), 0.5 * (1 + math.cos(math.pi * step / STEPS)))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share
        optimizer.zero_grad(set_to_none=True)
        num_counted = max(int((lesson.maps[batch_idx] != IGNORED).sum()), 1)
        for part_idx in batch_idx.split(part_size):
            tokens, maps = lesson.take(part_idx)
            truth = maps.long().repeat_interleave(len(rates), dim=0)
            scores = heads(tokens, tuple(maps.shape[1:]))
            loss = functional.cross_entropy(scores, truth, ignore_index=IGNORED, reduction="sum") / num_counted
            loss.backward()
        optimizer.step()


@torch.inference_mode()
def predict_map(head: SegmentationHead, tokens: Float[Tensor, "down across dim"], size: tuple[int, int]) -> LabelMap:
    """The class of every pixel of a map of a height and width, by a single head."""
    classes: LabelMap = head(tokens[None], size)[0].argmax(0).to(torch.uint8).cpu().numpy()
    return classes


def _part_size(lesson: Lesson, num_heads: int) -> int:
    """How many images' scores fit into MOST_SCORES."""
    return max(1, MOST_SCORES // (num_heads * lesson.num_classes * lesson.maps[0].numel()))


def _list_warnings(train: MappedSource, test: MappedSource, known: Features, seen: Features) -> list[str]:
    unread = [f"{len(part.skipped)} images of {part.spec} could not be read" for part in (known, seen) if part.skipped]
    left_out = list(dict.fromkeys(source.unused for source in (train, test) if source.unused))
    same = canonical_spec(train.spec) == canonical_spec(test.spec)
    reused = [f"{train.spec} was used for training and for test; the scores say nothing about new images"] if same else []
    return left_out + unread + reused
