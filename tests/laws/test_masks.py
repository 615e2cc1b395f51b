"""Laws of the mask samplers: what is accepted always gives valid masks, and draws favour no row, column or shape.

The statistical laws use fixed seeds and bounds of about five standard errors, so they either hold or do not.
"""

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

from openjepa.masks import SAMPLERS, Masks, check_masks, measure_coverage, sample_masks
from openjepa.masks.blocks import TRIES, draw_images
from openjepa.recipe.views import Mask

PAPER = Mask()
BRIEF = Mask(
    sampler="union",
    num_contexts=4,
    context_scale=(0.15, 0.2),
    context_aspect=(0.75, 1.5),
    num_targets=2,
    target_scale=(0.1, 0.15),
)
NUM_STANDARD_ERRORS = 5

grids = st.tuples(st.integers(2, 20), st.integers(2, 20))
shares = st.one_of(st.sampled_from([0.01, 0.15, 0.2, 0.5, 0.85, 1.0]), st.floats(0.001, 1.0))
aspects = st.one_of(st.sampled_from([0.75, 1.0, 1.5]), st.floats(0.1, 10.0))


def ranges(values):
    return st.tuples(values, values).map(lambda pair: (min(pair), max(pair)))


WAYS = [(name, "unbiased") for name in sorted(SAMPLERS)] + [("multiblock", "released")]
mask_settings = st.fixed_dictionaries(
    {
        "num_contexts": st.sampled_from([1, 2, 4, 6]),
        "context_scale": ranges(shares),
        "context_aspect": ranges(aspects),
        "num_targets": st.sampled_from([2, 1, 4, 6]),
        "target_scale": ranges(shares),
        "target_aspect": ranges(aspects),
    }
)
USUAL = BRIEF.model_dump(
    include={"num_contexts", "context_scale", "context_aspect", "num_targets", "target_scale", "target_aspect"}
)


@pytest.mark.parametrize(("sampler", "fidelity"), WAYS)
@hypothesis_settings(max_examples=60, deadline=None, derandomize=True)
@given(mask_settings, grids, st.integers(1, 9), st.integers(0, 2**63), st.integers(0, 10**7))
@example(USUAL, (14, 14), 9, 0, 0)
@example(USUAL | {"context_scale": (0.85, 1.0), "context_aspect": (1.0, 1.0)}, (6, 6), 9, 0, 0)
@example(USUAL | {"context_scale": (1.0, 1.0)}, (2, 2), 4, 0, 0)
@example(USUAL | {"target_scale": (0.9, 1.0), "num_targets": 6}, (2, 2), 9, 0, 0)
@example(USUAL | {"target_scale": (0.01, 0.01), "num_targets": 3}, (2, 2), 9, 0, 0)
def test_what_is_accepted_gives_valid_masks_and_what_is_refused_says_why(sampler, fidelity, values, grid, batch, seed, step):
    settings = Mask(sampler=sampler, fidelity=fidelity, **values)
    try:
        check_masks(settings, grid)
    except ValueError as refusal:
        _assert_helpful(str(refusal), settings, grid)
        return
    masks = sample_masks(settings, grid, batch, seed=seed, step=step)
    _assert_valid(masks, settings, grid, batch)
    again = sample_masks(settings, grid, batch, seed=seed, step=step)
    for name in ("context_idx", "context_lengths", "target_idx", "target_lengths"):
        assert torch.equal(getattr(masks, name), getattr(again, name))


def _assert_helpful(message: str, settings: Mask, grid: tuple[int, int]) -> None:
    """One line with the numbers, a key of the recipe and something to do."""
    assert "\n" not in message and len(message) < 500
    assert "use " in message and "mask." in message
    assert f"{grid[0]} x {grid[1]}" in message
    assert "patches" in message and "smaller" in message


def _assert_valid(masks: Masks, settings: Mask, grid: tuple[int, int], batch: int) -> None:
    num_patches = grid[0] * grid[1]
    assert len(masks.context_idx) == len(masks.target_idx) == batch
    assert masks.context_lengths.min() >= 1 and masks.target_lengths.min() >= 1
    assert masks.context_lengths.max() == masks.context_idx.shape[1]
    assert masks.target_lengths.max() == masks.target_idx.shape[2]
    for idx, lengths in ((masks.context_idx, masks.context_lengths), (masks.target_idx, masks.target_lengths)):
        assert idx.min() >= 0 and idx.max() < num_patches
        for row, length in zip(idx.reshape(-1, idx.shape[-1]).tolist(), lengths.flatten().tolist(), strict=True):
            assert len(set(row[:length])) == length
            assert set(row[length:]) <= {row[0]}
    for context, blocks in zip(masks.context_idx.tolist(), masks.target_idx.tolist(), strict=True):
        if settings.fidelity == "unbiased":
            assert not set(context) & set(itertools.chain(*blocks))
        if settings.sampler != "multiblock":
            assert sum(map(len, map(set, blocks))) == len(set(itertools.chain(*blocks))), "a patch is predicted twice"


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@hypothesis_settings(max_examples=8, deadline=None, derandomize=True)
@given(mask_settings, grids, st.integers(0, 2**32), st.integers(0, 10**6))
def test_steps_seeds_and_groups_of_views_draw_different_masks(sampler, values, grid, seed, step):
    settings = Mask(sampler=sampler, **values)
    try:
        check_masks(settings, grid)
    except ValueError:
        assume(False)
    places = ((seed, step, 0), (seed, step + 1, 0), (seed + 1, step, 0), (seed, step, 1))
    drawn = [sample_masks(settings, grid, 64, seed=s, step=t, group=group) for s, t, group in places]
    keys = {(str(masks.context_idx.tolist()), str(masks.target_idx.tolist())) for masks in drawn}
    assert len(keys) == 4


@hypothesis_settings(max_examples=30, deadline=None, derandomize=True)
@given(grids, st.sampled_from(["union", "multiblock"]), st.integers(0, 99))
def test_a_refusal_is_never_wrong_about_one_target(grid, name, seed):
    """Whatever rectangles a plain search finds for one context and one target, check_masks accepts."""
    generator = np.random.default_rng(seed)
    scale = tuple(sorted(generator.uniform(0.05, 1.0, 2)))
    settings = Mask(sampler=name, context_scale=scale, target_scale=scale, target_aspect=(1.0, 1.0), num_targets=1)
    found = any(_place_plainly(generator, settings, grid) for _ in range(300))
    assume(found)
    check_masks(settings, grid)


def _place_plainly(generator: np.random.Generator, settings: Mask, grid: tuple[int, int]) -> bool:
    """Whether one random context square and target square leave what the sampler needs."""
    covered = np.zeros((2, *grid), dtype=bool)
    for layer, scale in zip(covered, (settings.context_scale, settings.target_scale), strict=True):
        side = np.sqrt(generator.uniform(*scale) * grid[0] * grid[1])
        height, width = (min(max(round(side), 1), limit) for limit in grid)
        top, left = generator.integers(grid[0] - height + 1), generator.integers(grid[1] - width + 1)
        layer[top : top + height, left : left + width] = True
    context, target = covered
    return not (context & target).any() if settings.sampler == "union" else bool((context & ~target).any())


@functools.cache
def _presence(name: str, grid: tuple[int, int], num_images: int = 8192) -> np.ndarray:
    """(2, images, h, w): where context and targets are, drawn in small batches so that shapes vary."""
    settings = PAPER if name == "multiblock" else BRIEF.model_copy(update={"sampler": name})
    present = np.zeros((2, num_images, grid[0] * grid[1]), dtype=bool)
    for step, start in enumerate(range(0, num_images, 128)):
        masks = sample_masks(settings, grid, 128, seed=3, step=step)
        for kind, idx in enumerate((masks.context_idx, masks.target_idx.flatten(1))):
            np.put_along_axis(present[kind, start : start + 128], idx.numpy(), True, axis=1)
    return present.reshape(2, num_images, *grid)


@pytest.mark.parametrize("grid", [(14, 14), (6, 9)])
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_no_side_of_the_image_is_favoured(name, grid):
    """Each patch is context (and target) as often as its mirror images, within five standard errors."""
    present = _presence(name, grid)
    assert present.any(axis=1).all(), "every patch is context in some image and target in some other"
    for axis in (2, 3):
        difference = present.astype(np.int8) - np.flip(present, axis)
        standard_error = np.sqrt((difference.astype(float) ** 2).mean(axis=1) / difference.shape[1])
        assert (np.abs(difference.mean(axis=1)) <= NUM_STANDARD_ERRORS * standard_error).all()


@hypothesis_settings(max_examples=25, deadline=None, derandomize=True)
@given(mask_settings, st.tuples(st.integers(2, 12), st.integers(2, 12)), st.integers(0, 2**32))
def test_the_default_sampler_is_fair_whatever_the_settings(values, grid, seed):
    """Every row and column is reached by targets, and no rate differs from its mirror image's, on any grid.

    Six standard errors: some 20,000 pairs of patches are compared. (Contexts need not reach all: large targets may always hide
    the middle.)
    """
    settings = Mask(**values)
    try:
        check_masks(settings, grid)
    except ValueError:
        assume(False)
    present = np.zeros((2, 2048, grid[0] * grid[1]), dtype=bool)
    for step in range(16):
        masks = sample_masks(settings, grid, 128, seed=seed, step=step)
        for kind, idx in enumerate((masks.context_idx, masks.target_idx.flatten(1))):
            np.put_along_axis(present[kind, 128 * step : 128 * (step + 1)], idx.numpy(), True, axis=1)
    present = present.reshape(2, -1, *grid)
    assert present[1].any(axis=(0, 2)).all() and present[1].any(axis=(0, 1)).all()
    for axis in (2, 3):
        difference = present.astype(np.int8) - np.flip(present, axis)
        standard_error = np.sqrt((difference.astype(float) ** 2).mean(axis=1) / difference.shape[1])
        assert (np.abs(difference.mean(axis=1)) <= 6 * standard_error).all()


def test_the_symmetry_law_notices_the_releases_bias():
    rate = measure_coverage(
        PAPER.model_copy(update={"fidelity": "released"}), (14, 14), num_images=2048, batch_size=64
    ).context_rate
    assert np.abs(rate - rate[::-1]).max() > 0.3


def _first_block_shapes(settings: Mask, grid: tuple[int, int], num_shapes: int) -> tuple[np.ndarray, np.ndarray]:
    """Heights and widths of the first target block of images whose shapes are drawn independently."""
    per_batch = 1 if settings.sampler == "multiblock" else 250
    heights, widths = [], []
    for step in range(num_shapes // per_batch):
        block = sample_masks(settings, grid, per_batch, seed=1, step=step).target_idx[:, 0].numpy()
        for values, sides in ((block // grid[1], heights), (block % grid[1], widths)):
            sides.append(values.max(axis=1) - values.min(axis=1) + 1)
    return np.concatenate(heights), np.concatenate(widths)


@pytest.mark.parametrize("name", ["multiblock", "union", "block"])
def test_area_and_aspect_are_independent_and_uniform(name):
    """On a fine grid, where rounding to whole patches is small; contexts are small so that no shape is turned away."""
    grid, num_shapes = (64, 64), 500
    settings = BRIEF.model_copy(update={"sampler": name, "context_scale": (0.02, 0.03), "target_scale": (0.05, 0.1)})
    heights, widths = _first_block_shapes(settings, grid, num_shapes)
    area, aspect = heights * widths / 64**2, widths / heights
    bound = NUM_STANDARD_ERRORS / np.sqrt(num_shapes)
    assert abs(stats.pearsonr(area, aspect).statistic) < bound
    assert abs(stats.spearmanr(area, aspect).statistic) < bound
    for values, low, high in ((area, 0.05, 0.1), (aspect, 0.75, 1.5)):
        unit = (values - low) / (high - low)
        assert abs(unit.mean() - 0.5) < bound * np.sqrt(1 / 12) + 0.01
        # Kolmogorov-Smirnov distance; sides of about 18 patches round area and aspect by up to 6 % of their values.
        assert stats.kstest(unit, "uniform").statistic < 2 / np.sqrt(num_shapes) + 0.05


def test_the_independence_law_notices_the_releases_single_number():
    settings = PAPER.model_copy(update={"fidelity": "released"})
    heights, widths = _first_block_shapes(settings, (64, 64), 300)
    assert abs(stats.pearsonr(heights * widths, widths / heights).statistic) > 0.9


@pytest.mark.parametrize("kind", ["context", "target"])
def test_positions_are_uniform_over_all_places(kind):
    """3 x 4 blocks on a 7 x 9 grid have 5 x 6 places; every one is as likely (chi-squared)."""
    other = "target" if kind == "context" else "context"
    shapes = {f"{kind}_scale": (12 / 63, 12 / 63), f"{kind}_aspect": (4 / 3, 4 / 3)}
    shapes |= {f"{other}_scale": (1 / 63, 1 / 63), f"{other}_aspect": (1.0, 1.0)}
    masks = sample_masks(Mask(num_targets=1, **shapes), (7, 9), 30_000, seed=0, step=0)
    first, lengths = getattr(masks, f"{kind}_idx")[..., 0].flatten(), getattr(masks, f"{kind}_lengths").flatten()
    # A context that the single target patch falls into is left out: 12 of 63, for every place alike.
    whole = lengths == 12
    assert whole.double().mean() == pytest.approx(1 if kind == "target" else 51 / 63, abs=0.012)
    counts = np.bincount(first[whole].numpy(), minlength=63).reshape(7, 9)
    assert counts[5:].sum() == counts[:, 6:].sum() == 0
    assert stats.chisquare(counts[:5, :6].ravel()).pvalue > 1e-4


def test_union_targets_are_uniform_over_the_places_that_are_free():
    """Against a plain enumeration: 1 x 2 targets beside a 2 x 2 context on a 4 x 5 grid."""
    settings = Mask(sampler="union", context_scale=(0.2, 0.2), num_targets=1, target_scale=(0.1, 0.1), target_aspect=(2.0, 2.0))
    masks = sample_masks(settings, (4, 5), 60_000, seed=0, step=0)
    contexts, starts = masks.context_idx[:, 0].numpy(), masks.target_idx[:, 0, 0].numpy()
    assert len(np.unique(contexts)) == 12
    assert stats.chisquare(np.bincount(contexts)[np.unique(contexts)]).pvalue > 1e-4
    for context in np.unique(contexts):
        taken = {context, context + 1, context + 5, context + 6}
        free = [5 * top + left for top in range(4) for left in range(4) if not taken & {5 * top + left, 5 * top + left + 1}]
        counts = np.bincount(starts[contexts == context], minlength=20)
        assert counts.sum() == counts[free].sum()
        assert stats.chisquare(counts[free]).pvalue > 1e-4


def test_a_later_block_adds_a_patch_and_is_uniform_over_such_places():
    """Two single patches beside a single patch on a 2 x 2 grid: all 4 x 3 x 2 arrangements are as likely."""
    settings = BRIEF.model_copy(update={"num_contexts": 1, "context_scale": (0.25, 0.25), "target_scale": (0.25, 0.25)})
    settings = settings.model_copy(update={"context_aspect": (1.0, 1.0), "target_aspect": (1.0, 1.0)})
    masks = sample_masks(settings, (2, 2), 24_000, seed=0, step=0)
    codes = 16 * masks.context_idx[:, 0] + 4 * masks.target_idx[:, 0, 0] + masks.target_idx[:, 1, 0]
    values, counts = np.unique(codes.numpy(), return_counts=True)
    assert len(values) == 24
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("sampler", ["multiblock", "union"])
def test_work_is_bounded_by_the_number_of_tries(sampler, monkeypatch):
    """Settings that almost never fit cost TRIES draws and one fallback, whatever the batch."""
    calls = []

    def counting(batch, draw, fallback):
        return draw_images(batch, lambda n: calls.append("draw") or draw(n), lambda n: calls.append("fallback") or fallback(n))

    monkeypatch.setattr(f"openjepa.masks.{sampler}.draw_images", counting)
    crowded = {
        "multiblock": PAPER.model_copy(update={"num_targets": 200}),
        "union": BRIEF.model_copy(update={"context_scale": (0.6, 0.7), "num_contexts": 8}),
    }[sampler]
    masks = sample_masks(crowded, (8, 8), 64, seed=0, step=0)
    _assert_valid(masks, crowded, (8, 8), 64)
    assert calls == ["draw"] * TRIES + ["fallback"]
