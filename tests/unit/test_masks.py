"""Mask samplers: closed forms, the shapes of outputs, refusals in words, and the preset with the brief's coverage."""

import numpy as np
import pytest
import torch

from openjepa.masks import SAMPLERS, Masks, check_masks, measure_coverage, sample_masks
from openjepa.masks.blocks import draw_shapes, find_room, list_shapes
from openjepa.recipe.files import load_recipe
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


def with_(settings: Mask, **changes: object) -> Mask:
    return settings.model_copy(update=changes)


def rows(idx, lengths):
    """Real entries of each padded row, as sets."""
    return [set(row[:length].tolist()) for row, length in zip(idx, lengths.tolist(), strict=True)]


@pytest.mark.parametrize(
    ("scale", "aspect", "height", "width"),
    # 196 patches: area 29.4 = 6.26 x 4.70 at aspect 0.75; 39.2 = 5.11 x 7.67 at 1.5; a full grid; a single patch.
    [(0.15, 0.75, 6, 5), (0.2, 1.5, 5, 8), (1.0, 1.0, 14, 14), (1e-4, 1.0, 1, 1), (1.0, 4.0, 7, 14)],
)
def test_shape_has_the_drawn_area_and_aspect(scale, aspect, height, width):
    drawn = draw_shapes(np.random.default_rng(0), 5, (14, 14), (scale, scale), (aspect, aspect))
    assert [side.tolist() for side in drawn] == [[height] * 5, [width] * 5]


@pytest.mark.parametrize("grid", [(2, 2), (3, 7), (8, 8), (14, 14), (20, 5)])
@pytest.mark.parametrize(("scale", "aspect"), [((0.1, 0.3), (0.75, 1.5)), ((0.3, 1.0), (0.2, 5.0)), ((0.5, 0.5), (1.0, 1.0))])
def test_listed_shapes_are_those_that_are_drawn(grid, scale, aspect):
    drawn = set(
        zip(*(side.tolist() for side in draw_shapes(np.random.default_rng(0), 200_000, grid, scale, aspect)), strict=True)
    )
    listed = set(zip(*(side.tolist() for side in list_shapes(grid, scale, aspect)), strict=True))
    assert drawn <= listed
    # A listed shape may be a corner case that 200,000 draws miss, but hardly more than two of them.
    assert len(listed - drawn) <= 2


def test_find_room_against_a_plain_loop():
    generator = np.random.default_rng(0)
    weights = generator.integers(0, 3, size=(40, 5, 7))
    heights, widths = generator.integers(1, 6, size=40), generator.integers(1, 8, size=40)
    room = find_room(weights, heights, widths)
    for image, top, left in np.ndindex(room.shape):
        window = weights[image, top : top + heights[image], left : left + widths[image]]
        fits = window.shape == (heights[image], widths[image])
        assert room[image, top, left] == (fits and window.sum() < heights[image] * widths[image])


@pytest.mark.parametrize("name", SAMPLERS)
def test_shapes_types_and_padding(name):
    masks = sample_masks(with_(BRIEF, sampler=name), (14, 14), 64, seed=0, step=3)
    num_targets = {"multiblock": 2, "union": 2, "random": 1, "block": 1, "inverse_block": 1}[name]
    assert masks.context_idx.shape == (64, int(masks.context_lengths.max()))
    assert masks.target_idx.shape == (64, num_targets, int(masks.target_lengths.max()))
    for tensor in (masks.context_idx, masks.context_lengths, masks.target_idx, masks.target_lengths):
        assert tensor.dtype == torch.int64
    for idx, lengths, real in (
        (masks.context_idx, masks.context_lengths, masks.context_mask),
        (masks.target_idx, masks.target_lengths, masks.target_mask),
    ):
        assert torch.equal(real.sum(-1), lengths)
        assert torch.equal(idx[~real], idx[..., :1].expand_as(idx)[~real])
        assert (idx.diff(dim=-1)[real[..., 1:]] > 0).all()
    assert len(set(masks.context_lengths.tolist())) > 1, "contexts are padded, not cut to the shortest"


def test_masks_are_a_function_of_seed_and_step():
    drawn = sample_masks(BRIEF, (14, 14), 8, seed=5, step=7)
    again = SAMPLERS["union"](np.random.default_rng([5, 1, 7]), (14, 14), 8, BRIEF)
    assert torch.equal(drawn.context_idx, again.context_idx)
    assert torch.equal(drawn.target_idx, again.target_idx)


def test_split_trims_each_part_and_loses_nothing():
    whole = sample_masks(BRIEF, (14, 14), 12, seed=0, step=0)
    parts = whole.split(3)
    assert [len(part.context_lengths) for part in parts] == [4, 4, 4]
    contexts = [row for part in parts for row in rows(part.context_idx, part.context_lengths)]
    assert contexts == rows(whole.context_idx, whole.context_lengths)
    targets = [row for part in parts for row in rows(part.target_idx.flatten(0, 1), part.target_lengths.flatten())]
    assert targets == rows(whole.target_idx.flatten(0, 1), whole.target_lengths.flatten())
    for part in parts:
        assert part.context_idx.shape[1] == part.context_lengths.max()
        assert part.target_idx.shape[2] == part.target_lengths.max()
    assert isinstance(whole.to("meta"), Masks) and whole.to("meta").target_idx.device.type == "meta"


def test_multiblock_batch_shares_one_target_shape():
    masks = sample_masks(PAPER, (14, 14), 64, seed=0, step=0)
    assert len(masks.target_lengths.unique()) == 1
    top, left = masks.target_idx // 14, masks.target_idx % 14
    heights, widths = top.amax(-1) - top.amin(-1) + 1, left.amax(-1) - left.amin(-1) + 1
    assert len(heights.unique()) == len(widths.unique()) == 1
    assert torch.equal(heights * widths, masks.target_lengths)


def test_union_blocks_tile_rectangles():
    """An image's first block is a whole rectangle; a later one is its rectangle less the earlier blocks."""
    masks = sample_masks(BRIEF, (14, 14), 256, seed=0, step=0)
    for image in range(256):
        first, second = rows(masks.target_idx[image], masks.target_lengths[image])
        assert first == _bounding_box(first)
        assert not first & second
        assert any(second == box - first for box in _boxes_around(second))


def _bounding_box(patches: set[int]) -> set[int]:
    tops, lefts = [patch // 14 for patch in patches], [patch % 14 for patch in patches]
    return {14 * top + left for top in range(min(tops), max(tops) + 1) for left in range(min(lefts), max(lefts) + 1)}


def _boxes_around(patches: set[int]) -> list[set[int]]:
    """The bounding box, and those grown on one side by up to six patches (the part that an earlier block hid)."""
    box = _bounding_box(patches)
    tops, lefts = sorted({patch // 14 for patch in box}), sorted({patch % 14 for patch in box})
    boxes = [box]
    for grow in range(1, 7):
        for step, edge in ((-14, tops[0] * 14), (14, tops[-1] * 14)):
            boxes.append(_bounding_box(box | {edge + left + step * grow for left in lefts}))
        for step, edge in ((-1, lefts[0]), (1, lefts[-1])):
            boxes.append(_bounding_box(box | {14 * top + edge + step * grow for top in tops}))
    return boxes


@pytest.mark.parametrize(
    ("settings", "grid", "words"),
    [
        (with_(PAPER, sampler="multblock"), (14, 14), ["'multblock'", "did you mean multiblock?"]),
        (with_(PAPER, sampler="onion"), (14, 14), ["did you mean union?"]),
        (PAPER, (1, 14), ["1 x 14", "2 x 2", "data.image_size", "model.patch_size"]),
        (
            with_(PAPER, target_scale=(0.95, 1.0), target_aspect=(1.0, 1.0)),
            (8, 8),
            ["8 x 8", "0.95 to 1", "64 patches"],
        ),
        (
            with_(BRIEF, context_scale=(0.9, 1.0), context_aspect=(1.0, 1.0)),
            (8, 8),
            [
                "8 x 8",
                "mask.context_scale 0.9 to 1 gives context blocks of 64 patches",
                "blocks of 6 to 12",
                "no target block fits",
            ],
        ),
        (with_(BRIEF, num_targets=9), (3, 3), ["at most 8 of 9 fit", "fewer num_targets"]),
        (with_(PAPER, sampler="block"), (14, 14), ["context blocks of 169 to 196", "target blocks of 25 to 42", "smaller"]),
        (with_(BRIEF, sampler="random", context_scale=(0.9, 0.9), target_scale=(0.2, 0.3)), (8, 8), ["58", "13", "71 of 64"]),
        (with_(PAPER, fidelity="released"), (5, 5), ["5 x 5", "4 patches", "more than 4", "fidelity unbiased"]),
        (with_(BRIEF, fidelity="released"), (14, 14), ["multiblock", "fidelity unbiased"]),
    ],
)
def test_impossible_settings_are_refused_with_numbers_and_the_fix(settings, grid, words):
    with pytest.raises(ValueError, match=".") as refusal:
        check_masks(settings, grid)
    assert "\n" not in str(refusal.value)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize("settings", [PAPER, BRIEF, with_(BRIEF, sampler="block"), with_(BRIEF, sampler="random")])
@pytest.mark.parametrize("grid", [(2, 2), (2, 5), (4, 4), (6, 6), (7, 7), (14, 14), (28, 28)])
def test_usual_settings_are_accepted_on_every_grid(settings, grid):
    check_masks(settings, grid)


def test_crowded_contexts_fall_back_instead_of_hanging():
    """Four contexts of half the image almost never leave room for two targets, yet every image gets both."""
    crowded = with_(BRIEF, context_scale=(0.45, 0.55), target_scale=(0.3, 0.4))
    masks = sample_masks(crowded, (8, 8), 512, seed=0, step=0)
    contexts = rows(masks.context_idx, masks.context_lengths)
    targets = rows(masks.target_idx.flatten(1), torch.full((512,), masks.target_idx[0].numel()))
    assert all(context and target and not context & target for context, target in zip(contexts, targets, strict=True))
    coverage = measure_coverage(crowded, (8, 8), num_images=512)
    assert coverage.context_frac > 0.3 and coverage.target_frac > 0.3
    assert min(coverage.context_rate.min(), coverage.target_rate.min()) > 0.02


def test_released_draws_keep_the_releases_defects():
    coverage = measure_coverage(with_(PAPER, fidelity="released"), (14, 14), num_images=2048, batch_size=256)
    assert coverage.context_rate[-1].max() == coverage.context_rate[:, -1].max() == 0
    assert coverage.target_rate[-1].max() == coverage.target_rate[:, -1].max() == 0
    assert coverage.padding_frac == 0
    assert coverage.context_rate[0].mean() > 10 * coverage.context_rate[12].mean()


def test_released_context_gives_up_target_blocks_when_they_leave_too_little():
    """At 6 x 6 the context is always the top left 5 x 5, of which six 3 x 3 blocks often leave 4 patches or fewer."""
    settings = with_(PAPER, fidelity="released", num_targets=6, target_scale=(0.3, 0.3), target_aspect=(1.0, 1.0))
    overlaps = 0
    for step in range(200):
        masks = sample_masks(settings, (6, 6), 1, seed=0, step=step)
        context, blocks = set(masks.context_idx[0].tolist()), [set(block) for block in masks.target_idx[0].tolist()]
        assert len(context) > 4
        overlapped = [bool(context & block) for block in blocks]
        overlaps += any(overlapped)
        # What is given up is the last block first: the blocks still taken out are the first few, whole.
        given_up = overlapped.index(True) if any(overlapped) else 6
        assert context == _top_left_five() - set().union(*blocks[:given_up])
    assert 0 < overlaps < 200


def _top_left_five() -> set[int]:
    return {6 * top + left for top in range(5) for left in range(5)}


def test_coverage_counts_by_hand():
    """A 2 x 2 grid, one patch of context and one of target in each image: everything is a quarter or a half."""
    coverage = measure_coverage(
        Mask(sampler="random", context_scale=(0.25, 0.25), target_scale=(0.25, 0.25)),
        (2, 2),
        num_images=10,
        batch_size=4,
    )
    assert (coverage.context_frac, coverage.target_frac, coverage.unseen_frac) == pytest.approx((0.25, 0.25, 0.5))
    assert coverage.context_rate.shape == coverage.target_rate.shape == (2, 2)
    assert coverage.context_rate.sum() == pytest.approx(1)
    assert (coverage.context_tokens, coverage.target_tokens, coverage.padding_frac) == (1, 1, 0)


def test_coverage_counts_a_patch_of_two_blocks_once():
    coverage = measure_coverage(PAPER, (14, 14), num_images=512)
    assert coverage.context_frac + coverage.target_frac + coverage.unseen_frac == pytest.approx(1)
    assert coverage.target_tokens > 1.2 * 196 * coverage.target_frac
    assert coverage.context_tokens == pytest.approx(196 * coverage.context_frac)


def test_solved_scales_give_the_briefs_stated_coverage():
    """The brief says about 25 % context, 15 % target, 60 % unseen; its own scales give 46 %, 18 % and 35 %."""
    solved = with_(BRIEF, context_scale=(0.0625, 0.083), target_scale=(0.066, 0.099))
    coverage = measure_coverage(solved, (14, 14), num_images=8192, seed=1, batch_size=256)
    assert coverage.context_frac == pytest.approx(0.25, abs=0.005)
    assert coverage.target_frac == pytest.approx(0.15, abs=0.005)
    assert coverage.unseen_frac == pytest.approx(0.60, abs=0.005)
    stated = measure_coverage(BRIEF, (14, 14), num_images=2048, batch_size=256)
    assert stated.context_frac > 0.4


def test_masks_that_show_every_patch_leave_exactly_none_unseen():
    recipe = load_recipe("demo")
    coverage = measure_coverage(recipe.mask, recipe.grid)
    assert (coverage.context_frac, coverage.target_frac) == pytest.approx((12 / 49, 37 / 49))
    assert str(coverage.unseen_frac) == "0.0"  # summed as 1 - seen it was -4e-16, and printed as -0.0 %
