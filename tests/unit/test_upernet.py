"""The UPerNet-like head: its pyramid pooling, what it sees of an image, and what it learns that a linear head cannot."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from openjepa.evals import segmentation
from openjepa.evals.features import FeatureStore, RawPixels
from openjepa.evals.task import TaskSettings
from openjepa.nn.upernet import UPerNet
from tests.cli.console import assert_refused, openjepa

UPERNET = TaskSettings(head="upernet")


def make_head(width=8, num_classes=3):
    torch.manual_seed(0)
    return UPerNet(width, num_classes)


@pytest.mark.parametrize(("grid", "size"), [((4, 4), (32, 32)), ((3, 5), (20, 7)), ((1, 1), (4, 4))])
def test_a_score_a_class_and_pixel_and_a_gradient_a_weight(grid, size):
    head = make_head()
    scores = head(torch.randn(2, *grid, 8), size)
    assert scores.shape == (2, 3, *size)
    scores.square().mean().backward()
    assert all(weight.grad is not None and bool(weight.grad.isfinite().all()) for weight in head.parameters())


def test_images_of_a_batch_do_not_see_one_another():
    head, tokens = make_head(), torch.randn(3, 4, 6, 8)
    together = head(tokens, (16, 24))
    for number in range(3):
        assert torch.allclose(head(tokens[number : number + 1], (16, 24))[0], together[number], atol=1e-5)


def test_every_pixel_sees_the_whole_image():
    """Pyramid pooling's mean over everything: a far corner moves the scores of the opposite one."""
    head = make_head()
    with torch.no_grad():
        for weight in head.parameters():  # large enough for no path to be shut by its activations
            weight.copy_(weight.abs() + 0.1)
    tokens = torch.rand(1, 32, 32, 8, requires_grad=True)
    head(tokens, (32, 32))[0, :, 0, 0].sum().backward()
    assert float(tokens.grad[0, -1, -1].abs().sum()) > 0


def test_pooling_is_the_means_of_cells_side_by_side():
    """Read where they are fused, with 1 x 1 convolutions that change nothing."""
    head = make_head()
    level = torch.rand(1, head.channels, 6, 6)
    for place, side in enumerate((1, 2, 3, 6)):
        inputs = []
        handle = head.bottleneck.register_forward_pre_hook(lambda _, given, kept=inputs: kept.append(given[0]))
        for block in head.pooled:
            block[0].weight.data = torch.eye(head.channels)[:, :, None, None]
            block[1].forward = lambda maps: maps
        head.pool(level)
        handle.remove()
        assert torch.equal(inputs[0][:, : head.channels], level)
        found = inputs[0][:, (1 + place) * head.channels : (2 + place) * head.channels]
        cell = 6 // side
        means = level.unfold(2, cell, cell).unfold(3, cell, cell).mean((-2, -1))
        if side == 1:
            assert torch.allclose(found, means.expand_as(found), atol=1e-6)
        elif cell % 2:  # between the middles of cells it is interpolated
            assert torch.allclose(found[:, :, cell // 2 :: cell, cell // 2 :: cell], means, atol=1e-6)


def write_set(root, split, count, seed, *, size=16):
    """Squares of 2 px, half a patch: red or grey; where any of an image's corners is green, red means another class."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        squares = generator.integers(0, 2, (size // 2, size // 2)).astype(np.uint8).repeat(2, 0).repeat(2, 1)
        pixels = np.full((size, size, 3), 60, np.uint8)
        pixels[squares == 1] = (220, 60, 60)
        values = squares
        if number % 2:
            pixels[:4, :4] = (0, 255, 0)
            values = squares * 2
            values[:4, :4] = 0
        for kind, content in (("images", pixels), ("annotations", values)):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(root / kind / split / f"{number}.png")
    return str(root / "images" / split)


def evaluate(train, test, settings, seed=0):
    task = segmentation.SegmentationTask("segmentation", "")
    store = FeatureStore(RawPixels((16, 16), 3, 4), "pixels")
    return task.evaluate(store, *task.open(train, test, 3, settings), settings, seed)


def test_it_learns_what_a_linear_head_cannot(tmp_path, monkeypatch):
    """Detail within a patch, and a class that something far away decides."""
    monkeypatch.setattr(segmentation, "STEPS", 40)
    monkeypatch.setattr(segmentation, "DECAYS", (1e-3,))
    train, test = write_set(tmp_path, "training", 8, 0), write_set(tmp_path, "validation", 6, 1)
    upernet, linear = evaluate(train, test, UPERNET), evaluate(train, test, TaskSettings())
    assert upernet.scores["miou"].value > 0.8
    assert linear.scores["miou"].value < 0.5
    assert (upernet.main, upernet.note, linear.note) == ("miou", "head upernet", "")


def test_the_same_seed_gives_the_same_record_and_parts_add_up(tmp_path, monkeypatch):
    monkeypatch.setattr(segmentation, "STEPS", 4)
    train, test = write_set(tmp_path, "training", 6, 0), write_set(tmp_path, "validation", 4, 1)
    state = torch.get_rng_state()
    first = evaluate(train, test, UPERNET, seed=3).to_record()
    assert torch.equal(torch.get_rng_state(), state)
    assert evaluate(train, test, UPERNET, seed=3).to_record() == first
    assert evaluate(train, test, UPERNET, seed=4).to_record()["scores"] != first["scores"]
    monkeypatch.setattr(segmentation, "MOST_SCORES", 1)
    assert evaluate(train, test, UPERNET, seed=3).scores["miou"].value == pytest.approx(first["miou"], abs=1e-2)


def test_scenes_on_the_command_line(scenes, monkeypatch):
    monkeypatch.setattr(segmentation, "STEPS", 1)
    data = ("--train", scenes / "train", "--test", scenes / "test")
    shown = openjepa("evaluate", "pixels:32", "--task", "segmentation", *data, "--head", "upernet")
    record = json.loads(shown.stdout.splitlines()[-1])
    assert (record["main"], record["head"], record["num_classes"]) == ("miou", "upernet", 13)
    assert_refused(openjepa("evaluate", "pixels:32", "--task", "knn", *data, "--head", "upernet", check=False), "drop")
