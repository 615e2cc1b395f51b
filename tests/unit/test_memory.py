"""Memory: the line from two small batches holds for a larger one, and data.batch_size auto stays under it."""

import subprocess
import sys

import pytest
import torch

from openjepa.data.sources import open_source
from openjepa.masks import sample_masks
from openjepa.recipe.sections import Recipe
from openjepa.training import memory
from openjepa.training.memory import MemoryLine, find_batch_size, heaviest_batches, settle_batch_size
from tests.models import small_recipe

SHAPE = {
    "data__image_size": 96, "model__width": 96, "model__depth": 4, "model__heads": 3, "model__patch_size": 8,
    "method__predictor__width": 48, "method__predictor__heads": 3, "train__device": "cpu",
}  # fmt: skip


def make(**changes) -> Recipe:
    return small_recipe(**SHAPE | changes)


@pytest.mark.slow
def test_two_small_batches_tell_a_large_one():
    """In a process of its own, whose memory is all from here."""
    program = (
        "import json, sys; from openjepa.training import memory; from openjepa.recipe.check import build_recipe; "
        "recipe = build_recipe(json.loads(sys.argv[1])); line = memory.fit_memory(recipe); "
        "measured = memory.measure_peak_bytes(memory.with_changes(recipe, {'data.batch_size': 96})); "
        "print(line.fixed, line.predict(96), measured)"
    )
    done = subprocess.run([sys.executable, "-c", program, make().model_dump_json()], capture_output=True, text=True, check=True)
    fixed, predicted, measured = (float(word) for word in done.stdout.split())
    assert measured - fixed > 100e6  # enough that noise of some MB does not matter
    # A tenth to a quarter too much here, a third on a busy machine: too much costs some images of a batch, too little the run.
    assert 0.8 * (measured - fixed) < predicted - fixed < 1.6 * (measured - fixed)


def test_the_heaviest_batch_is_one_mask_heavier_than_nearly_all():
    recipe = make()
    (batch,) = heaviest_batches(recipe)
    masks = batch.views["main"].masks
    assert len(batch.views["main"].images) == len(masks.context_idx) == 8
    assert all(torch.equal(row, masks.target_idx[0]) for row in masks.target_idx)
    tokens = masks.context_lengths + masks.target_lengths.sum(1)
    fresh = sample_masks(recipe.mask, recipe.grid, 32, seed=5, step=7)
    assert float(((fresh.context_lengths + fresh.target_lengths.sum(1)) <= tokens[0]).float().mean()) > 0.99


@pytest.mark.parametrize(("free_gb", "parts"), [(2.0, 1), (2.0, 3), (0.35, 1), (1000.0, 1)])
def test_the_batch_found_is_the_largest_under_the_line(monkeypatch, free_gb, parts):
    line = MemoryLine(fixed=0.25 * 2**30, per_image=10 * 2**20)
    monkeypatch.setattr(memory, "fit_memory", lambda *_: line)
    monkeypatch.setattr(memory, "free_bytes", lambda _: int(free_gb * 2**30))
    recipe = make(data__batch_size="auto", train__accumulation_steps=parts)
    batch, usable = find_batch_size(recipe, num_images=5000), memory.USABLE_FRAC * free_gb * 2**30
    assert batch % parts == 0
    assert line.predict(batch) <= usable
    assert line.predict(batch + 8 * parts) > usable or batch + 8 * parts > 5000


def test_too_little_memory_is_one_line(monkeypatch):
    monkeypatch.setattr(memory, "fit_memory", lambda *_: MemoryLine(2.0**30, 2.0**20))
    monkeypatch.setattr(memory, "free_bytes", lambda _: 2**29)
    with pytest.raises(ValueError, match="need 1.0 GB, 0.4 GB can be used"):
        find_batch_size(make(), 100)


def test_auto_becomes_the_number_found_and_a_number_stays(monkeypatch):
    """For a run on 2,000 images, of which no batch holds one twice, with room for more."""
    monkeypatch.setattr(memory, "fit_memory", lambda *_: MemoryLine(0.0, 1.0))
    monkeypatch.setattr(memory, "free_bytes", lambda _: 2**30)
    source = open_source("sample:test", 1)
    settled = settle_batch_size(make(data__batch_size="auto"), source)
    assert settled == make(data__batch_size=2000) and len(source) == 2000
    assert settle_batch_size(make(), source) == make()


def test_what_pytorch_keeps_and_no_tensor_uses_is_free(monkeypatch):
    """24 GB: others have 3, tensors 1, and 12 are what earlier tensors have left in PyTorch's hands."""
    gb, device = 2**30, torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (8 * gb, 24 * gb))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 13 * gb)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 1 * gb)
    assert memory.free_bytes(device) == 20 * gb
