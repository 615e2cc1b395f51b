"""Pictures and charts, checked on their pixels and numbers."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from openjepa.masks import sample_masks
from openjepa.recipe.views import Mask
from openjepa.report import figures, masks, pictures, svg
from openjepa.report.figures import Plan

SMALL = {"num_contexts": 2, "context_scale": (0.2, 0.3), "num_targets": 2, "target_scale": (0.1, 0.2)}


def colours_of(picture: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(int(part) for part in colour) for colour in picture.reshape(-1, picture.shape[-1])}


def two_clusters(is_first: np.ndarray, dim: int = 8) -> np.ndarray:
    """Features (n, h, w, D) that take one value where is_first and another elsewhere."""
    values = np.random.default_rng(0).standard_normal((2, dim))
    return values[is_first.astype(int)]


# Patch-PCA maps


def test_two_clusters_get_exactly_two_colours() -> None:
    is_first = np.zeros((3, 4, 5), dtype=bool)
    is_first[:, 1:3, 2:4] = True
    colours = pictures.colour_patches(two_clusters(is_first))
    inside, outside = colours_of(colours[is_first]), colours_of(colours[~is_first])
    assert len(inside) == len(outside) == 1
    assert inside != outside


def test_a_cluster_too_small_for_percentiles_still_shows() -> None:
    is_first = np.zeros((4, 20, 20), dtype=bool)
    is_first[0, 0, 0] = True
    colours = pictures.colour_patches(two_clusters(is_first))
    assert len(colours_of(colours)) == 2


def test_components_become_red_green_and_blue_in_order_of_variance() -> None:
    generator = np.random.default_rng(1)
    hidden = generator.uniform(-1, 1, (2, 8, 8, 3)) * [9, 3, 1]  # independent, of falling variance
    turned = np.linalg.qr(generator.standard_normal((12, 12)))[0][:3]
    colours = pictures.colour_patches(hidden @ turned).reshape(-1, 3).astype(float)
    for channel in range(3):
        correlation = abs(np.corrcoef(colours[:, channel], hidden.reshape(-1, 3)[:, channel])[0, 1])
        assert correlation > 0.9


def test_colours_do_not_depend_on_shift_scale_or_number_type() -> None:
    patches = np.random.default_rng(2).standard_normal((2, 6, 6, 5))
    colours = pictures.colour_patches(patches).astype(int)
    assert np.abs(pictures.colour_patches(3 * patches + 7).astype(int) - colours).max() <= 1
    assert np.abs(pictures.colour_patches(patches.astype(np.float32)).astype(int) - colours).max() <= 1


def test_collapsed_features_are_grey_and_broken_ones_refused() -> None:
    assert colours_of(pictures.colour_patches(np.full((2, 3, 3, 4), 0.7))) == {(128, 128, 128)}
    assert len(colours_of(pictures.colour_patches(np.arange(18.0).reshape(2, 3, 3, 1)))) > 2  # fewer than three dimensions
    with pytest.raises(ValueError, match="not finite"):
        pictures.colour_patches(np.full((1, 2, 2, 3), np.nan))


def test_a_map_is_enlarged_by_repeating_pixels() -> None:
    small = np.random.default_rng(3).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    large = pictures.enlarge(small, 112)
    assert large.shape == (112, 80, 3)
    rows, columns = np.indices((112, 80)) // 16
    assert (large == small[rows, columns]).all()


# Masks


def test_mask_colours_say_what_each_patch_is() -> None:
    grid, cell = (3, 4), 12
    picture = pictures.draw_mask(np.array([0, 1, 4]), [np.array([2, 3]), np.array([3, 7])], grid, cell)
    assert picture.shape == (36, 48, 4)
    middle = picture[cell // 2 :: cell, cell // 2 :: cell]
    expected = {0: pictures.CONTEXT, 1: pictures.CONTEXT, 4: pictures.CONTEXT, 2: pictures.TARGETS[0], 3: pictures.TARGETS[1]}
    expected[7] = pictures.TARGETS[1]
    for number in range(12):
        assert tuple(middle[number // 4, number % 4]) == (*expected.get(number, pictures.UNSEEN), 255)


def test_a_block_is_outlined_where_it_ends_and_nowhere_inside() -> None:
    cell = 16
    picture = pictures.draw_mask(np.array([0]), [np.array([5, 6])], (3, 4), cell)  # two patches side by side
    row = 1 * cell + cell // 2
    fill = np.array([*pictures.TARGETS[0], 255])
    assert (picture[row, 1 * cell][:3] < fill[:3]).any()  # left end, darker
    assert (picture[row, 3 * cell - 1][:3] < fill[:3]).any()  # right end
    assert (picture[row, 2 * cell - 1] == fill).all()  # between the two
    assert picture[row, 2 * cell][3] == 0  # the see-through line


def test_padding_of_masks_is_not_drawn() -> None:
    settings, grid = Mask(sampler="union", **SMALL), (6, 6)
    drawn = sample_masks(settings, grid, 8, seed=1, step=0)
    assert len(set(drawn.context_lengths.tolist())) > 1  # some rows are padded
    for image, picture in enumerate(pictures.colour_masks(drawn, grid, 8)):
        cell = picture.shape[0] // 6
        middle = picture[cell // 2 :: cell, cell // 2 :: cell, :3]
        is_context = (middle == pictures.CONTEXT).all(-1)
        assert is_context.sum() == drawn.context_lengths[image]


@pytest.mark.parametrize("grid", [(2, 2), (7, 7), (4, 12)])
def test_measured_shares_of_a_sheet_agree_with_its_maps(grid: tuple[int, int]) -> None:
    sheet = masks.draw_sheet(Mask(sampler="union", **SMALL), grid, num_masks=3)
    context, targets, unseen = (float(part) for part in re.findall(r"([\d.]+)\s%", sheet.caption))
    assert context == pytest.approx(100 * sheet.context_rate.mean(), abs=0.06)
    assert targets == pytest.approx(100 * sheet.target_rate.mean(), abs=0.06)
    assert context + targets + unseen == pytest.approx(100, abs=0.2)
    assert len(sheet.masks) == 3
    assert sheet.context_rate.shape == grid


def test_masks_of_a_sheet_differ_in_shape() -> None:
    """A batch shares block shapes, so masks of one batch would all look alike."""
    sheet = masks.draw_sheet(Mask(), (14, 14))
    assert len({int((mask[..., :3] == pictures.CONTEXT).all(-1).sum()) for mask in sheet.masks}) > 6


@pytest.mark.parametrize(("sampler", "num_sheets"), [("multiblock", 2), ("union", 1), ("random", 1), ("block", 1)])
def test_the_mask_picture_is_a_png_in_the_mask_colours(tmp_path: Path, sampler: str, num_sheets: int) -> None:
    settings = Mask() if sampler == "multiblock" else Mask(sampler=sampler, **SMALL)
    sheets, missing = masks.draw_sheets(settings, (14, 14))
    masks.save_mask_picture(tmp_path / "masks.png", sheets, (14, 14), title="$x$_y")
    assert (len(sheets), missing) == (num_sheets, "")
    picture = np.asarray(Image.open(tmp_path / "masks.png").convert("RGB")).astype(int)
    assert min(picture.shape[:2]) > 600
    for colour in (pictures.CONTEXT, pictures.TARGETS[0]):
        assert (np.abs(picture - colour).max(-1) <= 3).mean() > 0.01
    assert (picture[0] == 255).all()  # nothing is cut off at the upper edge
    assert (picture[:, 0] == 255).all()
    assert [path.name for path in tmp_path.iterdir()] == ["masks.png"]


def test_the_release_s_bias_is_in_its_caption() -> None:
    """shared/spec.md: at batch 256 a context keeps 48 of its 82 patches, a quarter of 196."""
    unbiased, released = masks.draw_sheets(Mask(), (14, 14), batch_size=256)[0]
    share, fair_share = (float(re.search(r"context ([\d.]+)", sheet.caption)[1]) for sheet in (released, unbiased))
    assert share == pytest.approx(100 * 48 / 196, abs=2)
    assert fair_share > 40
    rows = [float(rate) for rate in re.findall(r"[01]\.\d\d", released.rows)]
    assert (rows[0], rows[-1]) == (pytest.approx(0.75, abs=0.02), 0)
    assert rows == pytest.approx(released.context_rate.mean(axis=1), abs=0.0051)


def test_the_release_s_bias_grows_with_the_batch_and_the_title_says_how_large_it_is() -> None:
    alone, many = (masks.draw_sheets(Mask(), (14, 14), batch_size=size)[0][1] for size in (1, 64))
    assert alone.title.endswith("the shortest of 1")
    assert many.title.endswith("the shortest of 64")
    assert alone.context_rate.mean() > many.context_rate.mean() + 0.1
    assert abs(alone.context_rate[:13] - alone.context_rate[12::-1]).max() < 0.15  # alone, nothing is cut: top like bottom


def test_masks_that_only_the_release_cannot_draw_are_shown_without_its() -> None:
    sheets, missing = masks.draw_sheets(Mask(), (4, 4))
    assert len(sheets) == 1
    assert "released" in missing and "\n" not in missing
    with pytest.raises(ValueError, match="released"):
        masks.draw_sheets(Mask(fidelity="released"), (4, 4))


@pytest.mark.parametrize(("grid", "batch_size", "words"), [((1, 5), 256, "grid"), ((14, 14), 0, "--batch-size 0")])
def test_settings_that_do_not_fit_are_refused(grid: tuple[int, int], batch_size: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        masks.draw_sheets(Mask(), grid, batch_size=batch_size)


# Images


@pytest.mark.parametrize(("channels", "kept"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_any_number_of_channels_becomes_rgb(channels: int, kept: list[int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 6, channels), dtype=np.uint8)
    assert (pictures.as_rgb(image) == image[..., kept]).all()
    assert (pictures.as_rgb(image[..., 0]) == image[..., [0, 0, 0]]).all()


def test_a_thumbnail_keeps_its_shape_and_tiny_images_their_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (400, 200, 3), dtype=np.uint8)
    assert pictures.thumbnail(image).shape == (192, 96, 3)
    tiny = pictures.thumbnail(image[:48, :24])
    assert (tiny == image[:48, :24].repeat(4, axis=0).repeat(4, axis=1)).all()


def test_png_bytes_hold_the_very_pixels() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(pictures.encode_png(picture)))) == picture).all()


# Charts


def parse_svg(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def test_a_chart_is_the_same_every_time_and_changes_no_global_state() -> None:
    rows = [{"step": step, "loss": 1 / (step + 1)} for step in range(40)]
    before = dict(matplotlib.rcParams)
    one, two = figures.draw_loss(rows), figures.draw_loss(rows)
    assert one is not None
    assert one == two
    assert dict(matplotlib.rcParams) == before


def test_a_chart_is_well_formed_with_words_as_text_and_colours_from_the_page() -> None:
    chart = figures.draw_loss([{"step": step, "loss": 1 / (step + 1)} for step in range(40)])
    assert chart is not None
    root = parse_svg(chart.svg)
    texts = {"".join(element.itertext()).strip() for element in root.iter("text")}
    assert "step" in texts
    assert "http" not in chart.svg
    assert not re.search(r"#0102", chart.svg), "a placeholder colour is left"
    assert "var(--line-1)" in chart.svg
    identifiers = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    used = set(re.findall(r"url\(#([^)]*)\)", chart.svg)) | set(re.findall(r'href="#([^"]*)"', chart.svg))
    assert used
    assert used <= set(identifiers)
    assert all(name.startswith("loss-") for name in identifiers)


def test_smoothing_is_the_mean_of_what_lies_around() -> None:
    values = np.random.default_rng(0).standard_normal(50)
    values[[3, 4, 20]] = np.nan
    for width in (2, 5, 8):
        smoothed = figures.smooth(values, width)
        for place in range(50):
            low = place - width + 1 + (width - 1) // 2
            around = values[max(low, 0) : low + width]
            around = around[np.isfinite(around)]
            assert smoothed[place] == pytest.approx(around.mean() if len(around) else np.nan, nan_ok=True)
    assert np.isnan(figures.smooth(np.full(9, np.nan), 3)).all()


def test_gaps_are_counted_and_charts_without_values_left_out() -> None:
    rows = [
        {"step": 0, "grad_norm": 1.0},
        {"step": 1, "grad_norm": float("nan")},
        {"step": 2, "grad_norm": None},
        {"step": 3, "grad_norm": 2.0},
    ]
    plan = Plan("gradient", "Gradient norm", (("grad_norm", "gradient norm"),), "Before clipping.")
    (chart,) = figures.draw_plans([plan], rows, {})
    assert chart.note == "Before clipping. 2 values are missing or not finite."
    assert figures.draw_plans([plan], [{"step": 0, "grad_norm": float("inf")}], {}) == []
    assert figures.draw_loss([]) is None
    assert figures.name_unmeasured([plan], [{"step": 0}]) == ["gradient norm"]
    assert figures.name_unmeasured([plan], rows) == []


@pytest.mark.parametrize(("values", "num_dots"), [([1.0], 1), ([1.0, None, 3.0, 2.0, None, 5.0], 2), ([1.0, 2.0, 3.0], 0)])
def test_a_value_between_gaps_is_a_dot(values: list[float | None], num_dots: int) -> None:
    plan = Plan("rank", "Rank", (("rank", "rank"),), "")
    (chart,) = figures.draw_plans([plan], [{"step": step, "rank": value} for step, value in enumerate(values)], {})
    dots = [element for element in parse_svg(chart.svg).iter("use") if "var(--line-1)" in element.attrib.get("style", "")]
    assert len(dots) == num_dots


def test_a_threshold_is_in_the_key_and_in_the_picture() -> None:
    rows = [{"step": step, "image_cosine": 0.2} for step in (0, 100)]
    plans = [plan for plan in figures.HEALTH_PLANS if plan.name == "cosine"]
    (without,), (chart,) = figures.draw_plans(plans, rows, {}), figures.draw_plans(plans, rows, {"image_cosine": 0.995})
    assert ("alarm", "collapsed above 0.995") in chart.key
    assert "var(--alarm)" in chart.svg
    assert "var(--alarm)" not in without.svg


@pytest.mark.parametrize("values", [[0.996, 0.996], [0.0, 0.0], [1e-7, 2e-7], [0.99999, 1.0], [-3.0, 5000.0], [2.0]])
def test_ticks_of_any_range_differ_from_one_another(values: list[float]) -> None:
    plan = Plan("momentum", "Momentum", (("momentum", "momentum"),), "")
    rows = [{"step": 10 * step, "momentum": value} for step, value in enumerate(values)]
    (chart,) = figures.draw_plans([plan], rows, {})
    texts = ["".join(element.itertext()).strip() for element in parse_svg(chart.svg).iter("text")]
    heights = texts[texts.index("step") + 1 :]
    assert len(heights) >= 2
    assert len(set(heights)) == len(heights)
    numbers = [float(text.replace("\N{MINUS SIGN}", "-")) for text in heights]
    assert numbers == sorted(numbers)


def test_a_single_step_has_whole_steps_on_its_axis() -> None:
    chart = figures.draw_loss([{"step": 0, "loss": 1.0}])
    assert chart is not None
    texts = ["".join(element.itertext()).strip() for element in parse_svg(chart.svg).iter("text")]
    assert texts[: texts.index("step")] == ["-1", "0", "1"]


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (950.0, "950"), (1200.0, "1.2k"), (12e3, "12k"), (1.5e6, "1.5M")])
def test_steps_are_short(value: float, text: str) -> None:
    assert svg.short_number(value) == text


# --- the verdict's marks


def health_rows(labels: list[str]) -> list[dict[str, object]]:
    return [
        {"step": 10 * number, "label": label, "effective_rank_pooled": 5.0 + number, "effective_rank_patches": 9.0}
        for number, label in enumerate(labels)
    ]


def test_stretches_of_one_verdict_join_without_gap() -> None:
    labels = ["too early", "too early", "healthy", "collapsing", "collapsing", "healthy"]
    marks = figures.mark_verdicts(health_rows(labels))
    assert [(mark.label, mark.first_step, mark.end_step) for mark in marks] == [
        ("too early", 0, 20), ("healthy", 20, 30), ("collapsing", 30, 50), ("healthy", 50, 50),
    ]  # fmt: skip
    assert [mark.tone for mark in marks] == ["open", "good", "bad", "good"]
    assert figures.mark_verdicts([]) == [] == figures.mark_verdicts([{"step": 3, "effective_rank_pooled": 2.0}])


def test_marks_are_drawn_on_the_rank_in_the_page_s_colours_and_named_in_the_key() -> None:
    rows = health_rows(["too early", "too early", "healthy", "collapsed"])
    (rank,) = figures.draw_plans(figures.HEALTH_PLANS[:1], rows, {})
    (plain,) = figures.draw_plans(figures.HEALTH_PLANS[:1], health_rows(["healthy"] * 4), {})
    assert rank.key[2:] == [("mark open pale", "too early"), ("mark good", "healthy"), ("mark bad", "collapsed")]
    assert "a dot where it changed" in rank.note and "dot" not in plain.note
    assert "var(--good)" in rank.svg and "var(--alarm)" in rank.svg
    assert "var(--alarm)" not in plain.svg
    dots = [chart.svg.count("<use ") for chart in (rank, plain)]  # besides ticks, which both have alike
    assert dots[0] - dots[1] == 2  # two changes


def test_a_change_at_a_missing_value_is_a_dot_at_the_one_before() -> None:
    rows = health_rows(["healthy", "healthy", "collapsed", "collapsed"])
    rows[2]["effective_rank_pooled"] = float("nan")
    (chart,) = figures.draw_plans(figures.HEALTH_PLANS[:1], rows, {})
    assert ("mark bad", "collapsed") in chart.key
