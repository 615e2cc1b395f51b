"""Statistics of the released mask draws against those measured on the reference release itself.

Every number of the golden file is compared: means in standard errors that are measured, not guessed (`compare_masks` says how),
and the extremes of the counts. Two more tests say what the comparison can tell apart, here and where the file is missing.
"""

from __future__ import annotations

import numpy as np
import pytest

from openjepa.masks import released, sample_masks
from openjepa.recipe.views import Mask
from tests.parity.agreement import STANDARD_ERRORS, compare_masks, load_release, measure_masks

# Ours are many, so that the release's own sampling error is most of the difference's.
SAMPLES = [(14, 1, 6000), (14, 64, 800), (14, 256, 300), (16, 64, 600)]


@pytest.fixture(scope="module")
def golden(shared) -> dict[tuple[int, int], dict]:
    return {(row["grid"], row["batch"]): row for row in load_release(shared)[1]["mask_statistics"]}


def test_every_row_of_the_file_is_compared(golden):
    assert set(golden) == {(grid, batch) for grid, batch, _ in SAMPLES}


@pytest.mark.parametrize(("grid", "batch", "num_batches"), SAMPLES)
def test_means_agree_within_sampling_error(golden, grid, batch, num_batches):
    expected = golden[grid, batch]
    rows, values = compare_masks(expected, num_batches)
    assert {row.quantity.replace(" ", "_") for row in rows} == expected.keys() - {"grid", "batch", "batches"}
    for row in rows:
        row.check()
    blocks, contexts = values["tokens_per_block"], values["context_tokens"]
    # A block can have only a handful of sizes, so its extremes are the same ones.
    assert (blocks.min(), blocks.max()) == (expected["tokens_per_block"]["min"], expected["tokens_per_block"]["max"])
    low, high = (expected["context_tokens"][bound] for bound in ("min", "max"))
    for beyond in ((contexts > high).sum(), (contexts < low).sum()):
        assert _outlying_probability(int(beyond), num_batches, expected["batches"]) > 1e-4


def _outlying_probability(count: int, num_ours: int, num_theirs: int) -> float:
    """Probability that the `count` most extreme of all values are all ours, if both sides draw from one distribution."""
    places = np.arange(count)
    return float(np.prod((num_ours - places) / (num_ours + num_theirs - places)))


def _place_everywhere(generator, shape, height, width, grid):
    tops, lefts = generator.integers(grid[0] - height + 1, size=shape), generator.integers(grid[1] - width + 1, size=shape)
    return released.Rectangles(tops, lefts, height, width)


def _draw_shape_apart(number, grid, scale, aspect):
    other = np.random.default_rng(int(1e9 * number[0])).random(1)
    patches, ratio = grid[0] * grid[1] * (scale[0] + number * np.ptp(scale)), aspect[0] + other * np.ptp(aspect)
    return tuple(np.rint(np.sqrt(side)).clip(max=13).astype(np.int64) for side in (patches * ratio, patches / ratio))


@pytest.mark.parametrize(("part", "other"), [("_place", _place_everywhere), ("_to_shape", _draw_shape_apart)])
def test_the_comparison_notices_a_sampler_without_one_of_the_biases(golden, monkeypatch, part, other):
    """Blocks that reach the last row are far outside the sampling error; area and aspect drawn apart give other sizes."""
    monkeypatch.setattr(released, part, other)
    rows, values = compare_masks(golden[14, 64], 200)
    is_far = max(row.difference for row in rows) > 2 * STANDARD_ERRORS
    assert is_far == (part == "_place")
    assert (values["tokens_per_block"].max() > golden[14, 64]["tokens_per_block"]["max"]) == (part == "_to_shape")


def test_the_releases_defects_without_its_file():
    """What was measured once on the release and written down: rates by row at 14 x 14 and batch 256, to two digits.

    Rows 0.75, 0.61, 0.48 ... 0.05, 0.01, 0.00 from top to bottom; a context keeps 48 of its 82 patches.
    """
    measured = [measure_masks(14, 256, step) for step in range(300)]
    rates = np.mean([statistics["context_rate_by_row"] for statistics in measured], axis=0)
    np.testing.assert_allclose(rates[[0, 1, 2, 11, 12, 13]], [0.75, 0.61, 0.48, 0.05, 0.01, 0.0], atol=0.02)
    assert rates[13] == 0
    assert np.mean([statistics["context_tokens"] for statistics in measured]) == pytest.approx(48, abs=2)
    alone = [
        int(sample_masks(Mask(fidelity="released"), (14, 14), 1, seed=0, step=step).context_lengths[0]) for step in range(2000)
    ]
    assert np.mean(alone) == pytest.approx(82, abs=2)


def test_our_own_draws_are_not_the_releases():
    masks = [sample_masks(Mask(), (14, 14), 64, seed=0, step=step) for step in range(50)]
    assert np.mean([masks_of_batch.context_lengths.double().mean() for masks_of_batch in masks]) > 54 + 20
