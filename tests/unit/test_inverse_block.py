"""Inverse block masks: exact numbers, visible patches in blocks, everything else hidden."""

import numpy as np
import pytest

from openjepa.masks import sample_masks
from openjepa.recipe.views import Mask

GRID = (14, 14)
SETTINGS = Mask(sampler="inverse_block", num_contexts=6, context_scale=(9 / 196, 9 / 196), target_scale=(0.8, 0.8))


def draw(settings, grid=GRID, batch=200):
    masks = sample_masks(settings, grid, batch, seed=0, step=0)
    visible = np.zeros((batch, grid[0] * grid[1]), bool)
    for row, idx, length in zip(visible, masks.context_idx.numpy(), masks.context_lengths.tolist(), strict=True):
        row[idx[:length]] = True
    return masks, visible.reshape(batch, *grid)


def test_a_fifth_is_visible_and_the_rest_is_one_target_block():
    masks, visible = draw(SETTINGS)
    assert set(masks.context_lengths.tolist()) == {39} and set(masks.target_lengths.flatten().tolist()) == {157}
    assert masks.target_idx.shape[1] == 1
    for row, idx in zip(visible, masks.target_idx[:, 0].numpy(), strict=True):
        assert set(idx) == set(np.flatnonzero(~row.ravel()))


def test_visible_patches_lie_together():
    """Beside a visible patch lies another far more often than the fifth of random masks."""
    _, visible = draw(SETTINGS)
    assert visible[:, :, 1:][visible[:, :, :-1]].mean() > 0.5


def test_shares_are_drawn_for_each_image_in_their_range():
    masks, _ = draw(SETTINGS.model_copy(update={"target_scale": (0.5, 0.9)}))
    hidden = masks.target_lengths.flatten()
    assert 98 <= int(hidden.min()) < 110 and 165 < int(hidden.max()) <= 176


@pytest.mark.parametrize("share", [0.001, 1.0])
def test_nothing_hidden_or_nothing_visible_is_refused(share):
    with pytest.raises(ValueError, match="target_scale"):
        draw(SETTINGS.model_copy(update={"target_scale": (share, share)}))
