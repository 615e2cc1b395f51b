"""The contact sheet shows the first step's own views and masks, and never takes another file's place."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openjepa.data.sources import open_source
from openjepa.report import contact
from openjepa.training.build import first_images, list_groups, make_batches
from tests.models import small_recipe


def folder_of(path: Path, channels: int, count: int = 9) -> Path:
    path.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 44, channels), dtype=np.uint8)
        np.save(path / f"{number} $x_1$ <b>.npy", pixels)
    return path


@pytest.mark.parametrize("batch_size", [8, 24, 26])
def test_first_images_are_those_of_the_first_step(tmp_path: Path, batch_size: int):
    recipe = small_recipe(data__batch_size=batch_size, data__channels=2, data__workers=0)
    source = open_source(str(folder_of(tmp_path / "a", 2)), 2)
    first, whole = first_images(recipe, source, 12), next(make_batches(recipe, source, 0, 1))
    count = len(first.image_idx)
    assert 6 <= count <= 26
    assert first.image_idx.tolist() == whole.image_idx[:count].tolist()
    assert (first.views["main"].images == whole.views["main"].images[:count]).all()
    masks, of_whole = first.views["main"].masks, whole.views["main"].masks
    assert masks is not None and of_whole is not None
    assert (masks.context_lengths == of_whole.context_lengths[:count]).all()
    for row, length in enumerate(masks.context_lengths.tolist()):
        assert masks.context_idx[row, :length].tolist() == of_whole.context_idx[row, :length].tolist()


@pytest.mark.parametrize(("channels", "method"), [(1, "ijepa"), (2, "mae"), (3, "dino"), (5, "ijepa"), (3, "simclr")])
def test_every_group_has_a_strip_of_its_views_and_what_masks_leave(tmp_path: Path, channels: int, method: str):
    recipe = small_recipe(method, data__channels=channels, data__normalization="measured")
    source = open_source(str(folder_of(tmp_path / "a", channels)), channels)
    batch = first_images(recipe, source, contact.NUM_IMAGES)
    grids = {group.name: group.grid for group in list_groups(recipe)}
    strips = contact.list_strips(batch, grids)
    assert len(strips) == sum(1 + (group.masks is not None) for group in batch.views.values())
    for name, strip in zip(batch.views, [strip for strip in strips if "context" not in strip.title], strict=True):
        view = batch.views[name].images[0, 0].permute(1, 2, 0).numpy()
        times = strip.pictures[0].shape[0] // view.shape[0]
        shown = strip.pictures[0][::times, ::times]
        np.testing.assert_array_equal(shown, view[..., :3] if channels >= 3 else view[..., :1].repeat(3, -1))
    if batch.views.get("main") is not None and (masks := batch.views["main"].masks) is not None:
        cell = len(strips[1].pictures[0]) // grids["main"][0]
        middle = strips[1].pictures[0][cell // 2 :: cell, cell // 2 :: cell, :3].reshape(-1, 3)
        of_view = strips[0].pictures[0][cell // 2 :: cell, cell // 2 :: cell].reshape(-1, 3)
        seen = masks.context_idx[0, : int(masks.context_lengths[0])].numpy()
        np.testing.assert_array_equal(middle[seen], of_view[seen])
        hidden = np.setdiff1d(np.arange(len(middle)), seen)
        assert len(np.unique(middle[hidden], axis=0)) == 1
    with Image.open(io.BytesIO(contact.draw_contact_sheet(recipe, source))) as image:
        assert image.format == "PNG" and min(image.size) > 100
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20


def test_only_an_earlier_sheet_is_replaced(tmp_path: Path):
    recipe, source = small_recipe(), open_source("sample:test", 1)
    sheet = contact.draw_contact_sheet(recipe, source)
    path = tmp_path / "deeper" / "a.png"
    assert not contact.write_contact_sheet(path, sheet)
    assert contact.write_contact_sheet(path, sheet)
    Image.new("L", (9, 9)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_text("notes")
    (tmp_path / "d.png").mkdir()
    for name in "bcd":
        with pytest.raises(ValueError, match="--sheet"):
            contact.write_contact_sheet(tmp_path / f"{name}.png", sheet)
    assert (tmp_path / "c.png").read_text() == "notes"
