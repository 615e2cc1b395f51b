"""Views are functions of (seed, position), masks of (seed, step); unreadable files are replaced; workers come and go quietly."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from openjepa.data import workers as worker_pool
from openjepa.data.batch import Batch
from openjepa.data.decode import Decoded, DecodeError
from openjepa.data.loader import GroupSettings, StreamSettings, evaluation_batches, sample_order, training_batches
from openjepa.data.skipped import SkippedFiles
from openjepa.data.sources import open_source
from openjepa.data.views import evaluation_view
from openjepa.data.workers import PREFETCH_STEPS
from openjepa.masks import Masks
from openjepa.recipe.views import Mask, ViewGroup
from tests.messy_folder import build_messy_folder

STRONG = ViewGroup(colour=0.8, blur=0.5, solarize=0.2, mask=Mask())
ONE_GROUP = (GroupSettings("main", STRONG, (28, 28), (7, 7)),)
PAIRS = ViewGroup(count=2, colour=0.8, grey=0.2)
SMALL_VIEWS = ViewGroup(count=3, crop_scale=(0.05, 0.3), mask=Mask(num_targets=2))
TWO_GROUPS = (GroupSettings("main", PAIRS, (28, 20), (7, 5)), GroupSettings("local", SMALL_VIEWS, (12, 16), (6, 8)))
SMALL = StreamSettings(ONE_GROUP, batch_size=6, workers=0, seed=3)


class Levels:
    """Grey images whose level is their number; those in `broken` cannot be read."""

    def __init__(self, num_images: int = 40, broken: tuple[int, ...] = ()) -> None:
        self.num_images, self.broken = num_images, set(broken)
        self.spec, self.channels, self.labels, self.classes = "levels", 1, [7 * number % 5 for number in range(num_images)], []

    def __len__(self) -> int:
        return self.num_images

    def open(self, index: int) -> Decoded:
        return Decoded(self.load(index))

    def load(self, index: int) -> np.ndarray:
        if index in self.broken:
            raise DecodeError(self.path(index), "made unreadable")
        return np.full((9, 8, 1), index, np.uint8)

    def path(self, index: int) -> str:
        return f"levels/{index}.png"


class SlowLevels(Levels):
    """Each image takes a while."""

    def load(self, index: int) -> np.ndarray:
        time.sleep(0.01)
        return super().load(index)


def batches_of(source, settings_=SMALL, start=0, total=5, **changes) -> list[Batch]:
    return list(training_batches(source, replace(settings_, **changes), start_step=start, total_steps=total))


def images_of(batch: Batch, group: str = "main") -> torch.Tensor:
    return batch.views[group].flat


def mask_tensors(masks: Masks | None) -> tuple[torch.Tensor, ...]:
    return () if masks is None else (masks.context_idx, masks.context_lengths, masks.target_idx, masks.target_lengths)


def fingerprint(batch: Batch) -> tuple[object, ...]:
    tensors = [batch.image_idx, *([] if batch.labels is None else [batch.labels])]
    for group in batch.views.values():
        tensors += [group.images, *mask_tensors(group.masks)]
    return (batch.step, tuple(batch.views), batch.share, *(tensor.numpy().tobytes() for tensor in tensors), tuple(batch.skipped))


def test_a_batch_is_what_the_method_expects():
    source = open_source("sample:train", 1)
    (batch,) = batches_of(source, total=1)
    (main,) = batch.views.values()
    assert batch.step == 0 and main.images.shape == (6, 1, 1, 28, 28) and main.images.dtype == torch.uint8
    assert batch.image_idx.dtype == torch.int64 and batch.image_idx.tolist() == sample_order(10_000, 3, 0, 6).tolist()
    assert main.masks.context_idx.shape[0] == main.masks.target_idx.shape[0] == 6 and batch.skipped == []
    assert batch.labels is None and batch.share == 1


def test_groups_have_their_own_sizes_views_and_masks():
    (batch,) = batches_of(open_source("sample:train", 1), groups=TWO_GROUPS, with_labels=True, total=1)
    main, local = batch.views["main"], batch.views["local"]
    assert list(batch.views) == ["main", "local"]
    assert main.images.shape == (6, 2, 1, 28, 20) and main.masks is None and main.flat.shape == (12, 1, 28, 20)
    assert local.images.shape == (6, 3, 1, 12, 16) and len(local.masks.context_idx) == 18
    assert torch.equal(local.flat[4], local.images[1, 1])  # views of an image one after another
    assert local.masks.target_idx.shape[1] == 2 and int(local.masks.target_idx.max()) < 48
    assert len({bytes(view.numpy().tobytes()) for view in (*main.flat, *local.flat)}) == 30
    for views in local.masks.target_idx.reshape(6, 3, -1).tolist():
        assert views[0] != views[1] != views[2]  # each view's masks are its own


def test_the_first_view_of_the_first_group_is_what_it_is_alone():
    """More views and more groups leave those before them as they were."""
    source = open_source("sample:train", 1)
    (both,) = batches_of(source, groups=TWO_GROUPS, total=1)
    for count, groups in ((2, TWO_GROUPS[:1]), (1, (TWO_GROUPS[0]._replace(views=PAIRS.model_copy(update={"count": 1})),))):
        (alone,) = batches_of(source, groups=groups, total=1)
        assert torch.equal(alone.views["main"].images, both.views["main"].images[:, :count])


def test_labels_are_those_of_the_images_that_are_shown():
    source = Levels(broken=(0, 5, 11))
    (batch,) = batches_of(source, batch_size=40, with_labels=True, total=1)
    assert batch.skipped and batch.labels.dtype == torch.int64
    assert batch.labels.tolist() == [7 * number % 5 for number in batch.image_idx.tolist()]


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(workers, tmp_path):
    messy = build_messy_folder(tmp_path, num_good=24)
    source = open_source(str(messy.path), 3)
    groups = (GroupSettings("main", ViewGroup(colour=0.8, mask=Mask()), (32, 32), (7, 7)), TWO_GROUPS[1])
    data = replace(SMALL, groups=groups, batch_size=5)
    alone = batches_of(source, data, start=1, total=8)
    shared = batches_of(source, data, start=1, total=8, workers=workers)
    assert [batch.step for batch in shared] == list(range(1, 8))
    assert any(batch.skipped for batch in shared)
    assert [fingerprint(batch) for batch in alone] == [fingerprint(batch) for batch in shared]


WHOLE = [fingerprint(batch) for batch in batches_of(Levels(broken=(3, 8)), total=20)]


def test_batches_come_by_value_where_shared_memory_is_small(tmp_path, monkeypatch):
    """As in a container with 64 MB of it, where version 0.1 waited for ever."""
    build_messy_folder(tmp_path / "photos", num_good=30)
    source = open_source(str(tmp_path / "photos"), 1)
    alone = batches_of(source, total=4)
    monkeypatch.setattr(worker_pool, "LEAST_SHARED_BYTES", 2**62)
    shared = batches_of(source, total=4, workers=2)
    for first, second in zip(alone, shared, strict=True):
        assert fingerprint(first) == fingerprint(second)
        assert not images_of(second).is_shared()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20), st.integers(0, 20))
def test_any_step_can_be_the_first(start, total):
    piece = batches_of(Levels(broken=(3, 8)), start=start, total=total)
    assert [fingerprint(batch) for batch in piece] == WHOLE[start:total]


def test_steps_and_seeds_differ():
    source = open_source("sample:train", 1)
    first, second = batches_of(source, batch_size=12, total=2)
    other_seed = batches_of(source, batch_size=12, total=1, seed=4)[0]
    for one, other in ((first, second), (first, other_seed)):
        assert not torch.equal(images_of(one), images_of(other))
        assert one.views["main"].masks.target_idx.tolist() != other.views["main"].masks.target_idx.tolist()


def test_views_of_one_image_differ_wherever_they_stand():
    """One image, again and again: only the crop, the mirror and the level of brightness can differ."""
    picture = open_source("sample:train", 1)
    one = Levels(1)
    one.open = lambda index: picture.open(5)
    views = {bytes(image.numpy().tobytes()) for batch in batches_of(one, total=3) for image in images_of(batch)}
    assert len(views) > 15  # of 18


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(1, 4), (2, 1), (2, 2), (4, 1), (4, 3), (3, 2), (12, 1)]),
    st.integers(0, 50),
    st.integers(0, 2**32 - 1),
    st.sampled_from([(), (0, 3, 8, 21)]),
    st.sampled_from([ONE_GROUP, TWO_GROUPS, TWO_GROUPS[:1]]),
)
def test_any_number_of_processes_and_micro_batches_sees_the_same(division, start, seed, broken, groups):
    """The law of scale-out: images, labels, replacements, views and masks of a step are those of one process in one piece."""
    world_size, accumulation_steps = division
    data = replace(SMALL, groups=groups, batch_size=12, with_labels=True, seed=seed)
    alone = batches_of(Levels(broken=broken), data, start, start + 2)
    ranks = [
        batches_of(Levels(broken=broken), data, start, start + 2, rank=rank, world_size=world_size,
                   accumulation_steps=accumulation_steps)
        for rank in range(world_size)
    ]  # fmt: skip
    for number, whole in enumerate(alone):
        pieces = [batch for rank in ranks for batch in rank[number * accumulation_steps : (number + 1) * accumulation_steps]]
        assert all(piece.step == whole.step for piece in pieces)
        assert torch.equal(torch.cat([piece.image_idx for piece in pieces]), whole.image_idx)
        assert torch.equal(torch.cat([piece.labels for piece in pieces]), whole.labels)
        assert [pair for piece in pieces for pair in piece.skipped] == whole.skipped
        assert sum(piece.share for piece in pieces) == pytest.approx(1)
        for name, group in whole.views.items():
            assert torch.equal(torch.cat([piece.views[name].images for piece in pieces]), group.images)
            first = 0
            for piece in pieces:
                views = len(images_of(piece, name))
                masks = group.masks and group.masks.take(first, first + views)
                for ours, theirs in zip(mask_tensors(piece.views[name].masks), mask_tensors(masks), strict=True):
                    assert torch.equal(ours, theirs)
                if masks is not None:
                    assert piece.share == pytest.approx(float(masks.target_lengths.sum() / group.masks.target_lengths.sum()))
                elif len(groups) == 1:
                    assert piece.share == pytest.approx(views / len(group.flat))
                first += views
            assert first == len(group.flat)


def test_a_batch_that_cannot_be_shared_is_refused_at_once():
    with pytest.raises(
        ValueError,
        match="batch_size 6 cannot be shared evenly by 4 processes with train.accumulation_steps 1; make it a multiple of 4",
    ):
        training_batches(Levels(), replace(SMALL, world_size=4), start_step=0, total_steps=1)


def test_a_batch_may_be_larger_than_the_data():
    (batch,) = batches_of(Levels(4), total=1)
    assert sorted(batch.image_idx[:4].tolist()) == [0, 1, 2, 3] and len(images_of(batch)) == 6


def test_unreadable_images_are_replaced_and_named():
    broken = (0, 5, 11)
    plain = ViewGroup(crop_scale=None, flip=0.0, mask=Mask())
    data = replace(SMALL, groups=(GroupSettings("main", plain, (28, 28), (7, 7)),), batch_size=40)
    (batch,) = batches_of(Levels(broken=broken), data, total=1)
    (whole,) = batches_of(Levels(), data, total=1)
    numbers = batch.image_idx.tolist()
    assert {path for path, _ in batch.skipped} == {"levels/0.png", "levels/5.png", "levels/11.png"}
    assert {reason for _, reason in batch.skipped} == {"made unreadable"}
    assert not set(numbers) & set(broken)
    assert [int(image.max()) for image in images_of(batch)] == numbers  # what is shown is what is named
    replaced = [was in broken for was in whole.image_idx.tolist()]
    assert sum(replaced) == 3
    assert len({now for now, gone in zip(numbers, replaced, strict=True) if gone}) > 1  # not one stand-in for all
    assert [now for now, gone in zip(numbers, replaced, strict=True) if not gone] == [
        was for was, gone in zip(whole.image_idx.tolist(), replaced, strict=True) if not gone
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_readable_is_one_line_from_workers_too(workers):
    with pytest.raises(DecodeError, match="^levels: 21 images in a row cannot be read; the last is levels/") as caught:
        batches_of(Levels(broken=tuple(range(40))), workers=workers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_torchs_global_generator_is_left_alone(workers):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    batches_of(Levels(), workers=workers, total=2)
    assert torch.equal(torch.rand(1), expected)


class CountedLevels(Levels):
    """Each image that is loaded adds a byte to a file, which all processes can see."""

    def __init__(self, count: Path) -> None:
        super().__init__()
        self.count = count

    def load(self, index: int) -> np.ndarray:
        with self.count.open("ab") as file:
            file.write(b".")
        return super().load(index)


def test_a_worker_loads_ahead_while_a_step_computes(tmp_path):
    count = tmp_path / "count"
    batches = training_batches(CountedLevels(count), replace(SMALL, workers=1), start_step=0, total_steps=100)
    next(batches)
    deadline = time.perf_counter() + 30
    while count.stat().st_size < (1 + PREFETCH_STEPS) * SMALL.batch_size and time.perf_counter() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert count.stat().st_size == (1 + PREFETCH_STEPS) * SMALL.batch_size  # as many as are asked to lie ready, and no more
    batches.close()


def test_closing_ends_the_workers_at_once():
    batches = training_batches(SlowLevels(), replace(SMALL, workers=2), start_step=0, total_steps=10_000)
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    start = time.perf_counter()
    batches.close()
    assert time.perf_counter() - start < 10  # there are 10,000 steps of 60 ms to come
    assert not any(worker.is_alive() for worker in workers)


def test_workers_live_through_ctrl_c_and_a_groups_sigterm():
    batches = training_batches(Levels(), replace(SMALL, workers=2), start_step=0, total_steps=40)
    steps = [next(batches).step, next(batches).step]  # one of each worker: both have started
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    steps += [batch.step for batch in batches]
    assert steps == list(range(40))


FORGOTTEN = """
import sys
from openjepa.recipe.views import Mask, ViewGroup
from openjepa.data import workers
from openjepa.data.loader import GroupSettings, StreamSettings, training_batches
from openjepa.data.sources import open_source

group = GroupSettings("main", ViewGroup(mask=Mask()), (28, 28), (7, 7))
settings = StreamSettings((group,), batch_size=4, workers=2, seed=0)
batches = training_batches(open_source("sample:test", 1), settings, start_step=0, total_steps=10**6)
next(batches)
keep = [batches, batches]
keep.append(keep)
raise ValueError("something else went wrong")
"""


def test_a_program_that_fails_with_workers_alive_still_ends():
    result = subprocess.run(
        [sys.executable, "-c", FORGOTTEN], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2]
    )
    assert result.returncode == 1 and result.stderr.rstrip().endswith("something else went wrong")


def test_evaluation_covers_everything_in_order():
    source = open_source("sample:test", 3)
    images, numbers, skipped = zip(*evaluation_batches(source, (32, 20), batch_size=300, workers=2), strict=True)
    assert torch.cat(numbers).tolist() == list(range(2000)) and all(not pairs for pairs in skipped)
    assert [len(part) for part in images] == [300] * 6 + [200]
    np.testing.assert_array_equal(images[6][199].numpy(), evaluation_view(source.open(1999), (32, 20)))
    chosen = list(evaluation_batches(source, (32, 20), indices=[7, 5, 7]))
    assert len(chosen) == 1 and chosen[0][1].tolist() == [7, 5, 7]
    assert torch.equal(chosen[0][0][0], chosen[0][0][2]) and torch.equal(chosen[0][0][1], images[0][5])


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 11), max_size=11), st.integers(1, 13))
def test_evaluation_leaves_out_what_cannot_be_read_and_no_batch_is_empty(broken, batch_size):
    images, numbers, skipped = zip(*evaluation_batches(Levels(12, tuple(broken)), (9, 8), batch_size=batch_size), strict=True)
    readable = [number for number in range(12) if number not in broken]
    assert torch.cat(numbers).tolist() == readable
    assert torch.cat(images).amax(dim=(1, 2, 3)).tolist() == readable
    assert [path for pairs in skipped for path, _ in pairs] == [f"levels/{number}.png" for number in sorted(broken)]
    assert all(0 < len(part) <= batch_size for part in numbers)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_of_nothing_readable(workers):
    with pytest.raises(DecodeError, match="^levels: none of 3 images can be read; the first is levels/0.png"):
        list(evaluation_batches(Levels(3, (0, 1, 2)), (8, 8), workers=workers))
    assert list(evaluation_batches(Levels(3), (8, 8), indices=[])) == []


def pair(number: int) -> tuple[str, str]:
    return f"photos/{number}.jpg", "image file is truncated"


def test_skipped_files_are_listed_once_and_counted_on_after_a_resume(tmp_path):
    file = tmp_path / "skipped.txt"
    skipped = SkippedFiles(file, 100)
    skipped.add([])
    assert not file.exists()
    skipped.add([pair(1), pair(2), pair(1)])
    skipped.add([pair(2), pair(3)])
    assert file.read_text().splitlines() == [f"photos/{number}.jpg\timage file is truncated" for number in (1, 2, 3)]
    resumed = SkippedFiles(file, 100)
    resumed.add([pair(1), pair(4), pair(5)])
    assert len(file.read_text().splitlines()) == len(resumed.reasons) == 5
    with pytest.raises(ValueError, match=r"^6 of 100 image files \(6.0 %\) cannot be read, more than 5 %: ") as caught:
        resumed.add([pair(6)])
    assert str(file) in str(caught.value) and "photos/1.jpg (image file is truncated)" in str(caught.value)
    assert len(file.read_text().splitlines()) == 6  # the list is complete when it stops


def test_a_line_cut_off_by_a_kill_is_written_anew(tmp_path):
    file = tmp_path / "skipped.txt"
    file.write_text("photos/1.jpg\timage file is truncated\nphotos/2.jp")
    skipped = SkippedFiles(file, 100)
    skipped.add([pair(2)])
    assert file.read_text().splitlines() == ["\t".join(pair(1)), "\t".join(pair(2))]
    file.write_text("photos/1.j")
    SkippedFiles(file, 100).add([pair(1)])
    assert file.read_text() == "\t".join(pair(1)) + "\n"


def test_odd_file_names_stay_one_line_each(tmp_path):
    odd = [("a\tb.jpg", "bad\nfile"), ("new\nline.jpg", "x"), ("é ü.jpg", "y")]
    SkippedFiles(tmp_path / "skipped.txt", 100).add(odd)
    skipped = SkippedFiles(tmp_path / "skipped.txt", 100)
    skipped.add(odd)
    assert len((tmp_path / "skipped.txt").read_text("utf-8").splitlines()) == 3 == len(skipped.reasons)


def test_listed_files_are_tried_again_when_a_run_goes_on(tmp_path: Path):
    """Version 0.1 counted what was unreadable long ago among today's."""
    for number in range(40):
        Image.new("L", (4, 4), number).save(tmp_path / f"{number:02}.png")
    bad = [tmp_path / name for name in ("00.png", "01.png", "02.png")]
    whole = bad[0].read_bytes()
    for path in bad:
        path.write_bytes(b"<html>")
    source = open_source(str(tmp_path), 1)
    file = tmp_path / "skipped.txt"
    with pytest.raises(ValueError, match="--resume"):
        SkippedFiles(file, 40).add([(str(path), "broken") for path in bad])
    with pytest.raises(ValueError, match="3 of 40"):  # nothing has changed: it does not start again only to stop later
        SkippedFiles(file, 40).try_again(source)
    bad[0].write_bytes(whole)
    bad[1].unlink()
    skipped = SkippedFiles(file, 39)
    skipped.try_again(open_source(str(tmp_path), 1))
    assert list(skipped.reasons) == [str(bad[2])] == [line.split("\t")[0] for line in file.read_text().splitlines()]
