"""Training views with objects: boxes and masks stay on what they are of, whatever is done to the image."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from openjepa.data.annotations import Objects, open_annotated
from openjepa.data.batch import BatchObjects
from openjepa.data.decode import Decoded
from openjepa.data.loader import GroupSettings, StreamSettings, training_batches
from openjepa.data.object_views import ObjectSettings, draw_object_view
from openjepa.data.views import ViewPlan
from openjepa.recipe.views import ViewGroup

GROUP = ViewGroup(crop_scale=None, flip=0.5)


def draw_square(height, width, box):
    """A white rectangle on black, and its annotation."""
    left, top, right, bottom = box
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    counts = np.diff([0, *(np.flatnonzero(np.diff(mask.ravel(order="F").astype(int))) + 1), mask.size]).tolist()
    counts = [0, *counts] if mask[0, 0] else counts
    objects = Objects(
        (height, width), np.array([box], np.float32), np.array([3], np.int64), np.zeros(1, bool),
        np.array([mask.sum()], np.float32), [{"size": [height, width], "counts": counts}],
    )  # fmt: skip
    return Decoded(np.repeat(255 * mask.astype(np.uint8)[:, :, None], 3, axis=2)), objects


@given(
    height=some.integers(20, 90), width=some.integers(20, 90), size=some.sampled_from([(32, 32), (48, 32), (64, 64)]),
    jitter=some.sampled_from([(1.0, 1.0), (0.3, 0.6), (1.2, 2.0), (0.5, 1.5)]), seed=some.integers(0, 99),
)  # fmt: skip
def test_box_and_mask_are_where_the_object_is_seen(height, width, size, jitter, seed):
    """The rectangle is the only thing that is bright, so the pixels themselves say where it went."""
    picture, objects = draw_square(height, width, (width // 4, height // 3, width // 4 + width // 2, height // 3 + height // 2))
    plan = ViewPlan(GROUP, size, np.random.default_rng(seed))
    view = draw_object_view(picture, objects, plan, ObjectSettings(jitter, with_masks=True))
    filled = view.pixels[0, : view.filled[0], : view.filled[1]]
    assert view.pixels.shape == (3, *size)
    assert not view.pixels[:, view.filled[0] :].any() and not view.pixels[:, :, view.filled[1] :].any()
    bright = filled > 127
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    if not len(view.target.labels):
        assert len(rows) < 3 or len(columns) < 3, "only a sliver may be left out"
        return
    assert view.target.labels.tolist() == [3]
    seen = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    assert np.abs(view.target.boxes[0].numpy() - seen).max() <= 1.5
    mask = view.target.masks[0].numpy()
    assert mask.shape == bright.shape
    edge = 2 * sum(mask.shape)  # interpolation and nearest pixels differ by a pixel along the outline
    assert (mask != bright).sum() <= edge


def test_at_scale_one_an_image_of_the_views_size_is_itself():
    picture, objects = draw_square(32, 32, (4, 8, 20, 30))
    still = ViewGroup(crop_scale=None, flip=0.0)
    view = draw_object_view(
        picture, objects, ViewPlan(still, (32, 32), np.random.default_rng(0)), ObjectSettings((1.0, 1.0), with_masks=True)
    )
    assert np.array_equal(view.pixels.transpose(1, 2, 0), picture.decode())
    assert view.target.boxes.tolist() == [[4, 8, 20, 30]]
    assert np.array_equal(view.target.masks.numpy(), objects.masks())


def test_crowds_are_not_learnt_from():
    picture, objects = draw_square(32, 32, (4, 8, 20, 30))
    crowd = Objects(objects.size, objects.boxes, objects.labels, np.ones(1, bool), objects.areas, objects.segmentations)
    view = draw_object_view(
        picture, crowd, ViewPlan(GROUP, (32, 32), np.random.default_rng(0)), ObjectSettings((1.0, 1.0), with_masks=False)
    )
    assert len(view.target.labels) == 0 and view.target.masks is None


def test_batches_depend_on_seed_and_position_alone(scenes):
    """However many workers and micro-batches, and whatever step they start from."""
    source = open_annotated(str(scenes / "train"), 3, need_masks=True)
    group = (GroupSettings("main", GROUP, (32, 32), (4, 4)),)

    def read(start, **more):
        settings = StreamSettings(
            group, 6, seed=1, with_objects=ObjectSettings((0.5, 1.5), with_masks=True), **{"workers": 0} | more
        )
        return list(training_batches(source, settings, start_step=start, total_steps=5))

    whole, late, shared = read(0), read(3), read(0, workers=2)
    for first, second in [(whole[3], late[0]), (whole[4], late[1]), *zip(whole, shared, strict=True)]:
        assert torch.equal(first.views["main"].images, second.views["main"].images)
        for ours, theirs in zip(first.objects.split(), second.objects.split(), strict=True):
            assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    halves = read(0, accumulation_steps=2)
    targets = [target for half in halves[:2] for target in half.objects.split()]
    assert all(torch.equal(one.boxes, other.boxes) for one, other in zip(whole[0].objects.split(), targets, strict=True))


def test_objects_go_round_through_a_batch(scenes):
    source = open_annotated(str(scenes / "train"), 3, need_masks=True)
    views = [
        draw_object_view(
            source.open_checked(number), source.objects[number], ViewPlan(GROUP, (48, 40), np.random.default_rng(number)),
            ObjectSettings((0.5, 1.5), with_masks=True),
        )
        for number in range(5)
    ]  # fmt: skip
    batch = BatchObjects.gather([view.target for view in views], [view.filled for view in views], (48, 40))
    for view, target in zip(views, batch.split(), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(view.target, target, strict=True))


@pytest.mark.parametrize("count", [1, 7, 24, 100])
def test_few_draws_so_many_images_nested_in_larger_draws(scenes, count):
    folder = str(scenes / "train")
    whole, few = open_annotated(folder, 3), open_annotated(f"few:{count}:3:{folder}", 3)
    assert len(few) == min(count, 24) and few.categories == whole.categories
    known = dict(zip(whole.files, whole.objects, strict=True))
    assert all(np.array_equal(known[file].boxes, found.boxes) for file, found in zip(few.files, few.objects, strict=True))
    assert set(few.files) <= set(open_annotated(f"few:{count + 3}:3:{folder}", 3).files)
    assert few.files == open_annotated(f"few:{count}:3:{folder}", 3).files
    if count == 7:
        assert few.files != open_annotated(f"few:{count}:4:{folder}", 3).files
