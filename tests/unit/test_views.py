"""Views against torchvision, and the distribution of what is drawn."""

from __future__ import annotations

import colorsys
import math
import random
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from torchvision.transforms import CenterCrop, InterpolationMode, RandomResizedCrop, Resize
from torchvision.transforms import functional as tv

from openjepa.data import colour
from openjepa.data.decode import Decoded, DecodeError, Picture, open_image
from openjepa.data.normalization import measure_normalization
from openjepa.data.rand_augment import rand_augment
from openjepa.data.views import View, ViewPlan, cut, draw_crop, evaluation_view, training_views
from openjepa.recipe.views import ViewGroup
from tests.messy_folder import draw_picture

MINIMAL, MODERATE = ViewGroup(), ViewGroup(colour=0.8)
STRONG = ViewGroup(colour=0.8, blur=0.5, solarize=0.2)
NONE = ViewGroup(crop_scale=None, flip=0.0)
EVERYTHING = ViewGroup(colour=1.0, jitter=(0.8, 0.8, 0.8, 0.2), grey=0.5, blur=0.5, solarize=0.5)
ONE_HUE_STEP = 6  # a sixth of the 255 steps of the colour circle takes a channel from 0 to 255


def picture(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    image = np.asarray(draw_picture("discs", (width, height), np.random.default_rng(seed)))
    return image if channels == 3 else np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def training_view(image: Picture, size: tuple[int, int], group: ViewGroup, generator: np.random.Generator) -> View:
    (view,) = training_views(image, [ViewPlan(group, size, generator)])
    return view


def to_tensor(view: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1)))


@pytest.mark.parametrize(("width", "height"), [(28, 28), (97, 61), (300, 200)])
@pytest.mark.parametrize("channels", [1, 3])
def test_minimal_view_is_torchvisions_resized_crop(width, height, channels):
    image = picture(width, height, channels)
    shown = Image.fromarray(image if channels == 3 else image[:, :, 0])
    for seed in range(5):
        top, left, crop_height, crop_width = draw_crop((height, width), (24, 24), (0.3, 1.0), np.random.default_rng(seed))
        expected = np.asarray(tv.resized_crop(shown, top, left, crop_height, crop_width, [24, 24], InterpolationMode.BILINEAR))
        for flip, turned in ((0.0, expected), (1.0, expected[:, ::-1])):
            view = training_view(Decoded(image), (24, 24), ViewGroup(flip=flip), np.random.default_rng(seed))
            assert view.shape == (channels, 24, 24) and view.dtype == np.uint8
            assert (
                abs(view.transpose(1, 2, 0).squeeze().astype(int) - turned).max() <= 1
            )  # torch's weights are of other precision


@pytest.mark.parametrize(("width", "height"), [(100, 80), (60, 200)])
def test_crops_are_distributed_as_torchvisions(width, height):
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    image = torch.empty(3, height, width)
    ours = np.array([draw_crop((height, width), (32, 32), (0.3, 1.0), generator) for _ in range(3000)])
    theirs = np.array([RandomResizedCrop.get_params(image, [0.3, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)])
    for measure in (
        lambda crop: crop[:, 2] * crop[:, 3],
        lambda crop: np.log(crop[:, 3] / crop[:, 2]),
        lambda crop: crop[:, 0] / np.maximum(height - crop[:, 2], 1),
        lambda crop: crop[:, 1] / np.maximum(width - crop[:, 3], 1),
    ):
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-3
    area = ours[:, 2] * ours[:, 3] / (width * height)
    assert area.std() > 0.02  # not all alike


@pytest.mark.parametrize(("width", "height"), [(1000, 1), (1, 1000), (900, 20)])
def test_where_no_draw_fits_the_crop_is_torchvisions_centre(width, height):
    ours = draw_crop((height, width), (32, 32), (0.9, 1.0), np.random.default_rng(0))
    assert ours == tuple(RandomResizedCrop.get_params(torch.empty(1, height, width), [0.9, 1.0], [3 / 4, 4 / 3]))


def test_crops_of_views_that_are_not_square_have_the_views_aspect():
    generator = np.random.default_rng(0)
    crops = np.array([draw_crop((200, 400), (32, 96), (0.2, 0.4), generator) for _ in range(2000)])
    log_aspect = np.log(crops[:, 3] / crops[:, 2])
    assert abs(log_aspect.mean() - math.log(3)) < 0.02
    assert log_aspect.min() > math.log(3 * 0.75) - 0.05 and log_aspect.max() < math.log(3 * 4 / 3) + 0.05


sides = st.integers(1, 70)


@settings(max_examples=200, deadline=None)
@given(
    sides,
    sides,
    sides,
    sides,
    st.integers(1, 5),
    st.sampled_from([NONE, MINIMAL, MODERATE, STRONG, EVERYTHING]),
    st.integers(0, 99),
)
def test_any_image_gives_a_view_of_any_size(height, width, view_height, view_width, channels, group, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    view = training_view(
        Decoded(image),
        (view_height, view_width),
        group.model_copy(update={"crop_scale": group.crop_scale and (0.01, 1.0)}),
        np.random.default_rng(seed),
    )
    assert view.shape == (channels, view_height, view_width) and view.dtype == np.uint8 and view.flags.c_contiguous
    if group in (NONE, MINIMAL):
        assert image.min() <= view.min() <= view.max() <= image.max()


def test_flip_rate():
    image = np.zeros((8, 8, 1), np.uint8)
    image[:, 4:] = 255
    settings_ = ViewGroup(flip=0.3, crop_scale=(1.0, 1.0))
    views = [training_view(Decoded(image), (8, 8), settings_, np.random.default_rng([1, i])) for i in range(2000)]
    flipped = np.mean([view[0, 0, 0] > 127 for view in views])
    assert abs(flipped - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 2000)


@pytest.mark.parametrize(("width", "height", "side"), [(96, 64, 32), (64, 96, 32), (60, 60, 60), (40, 30, 64), (301, 200, 50)])
def test_evaluation_view_is_torchvisions_resize_and_centre_crop(width, height, side):
    down, across = np.mgrid[0:height, 0:width]
    smooth = np.stack([255 * down / height, 255 * across / width, 127 + 100 * np.sin(across / 9)], axis=2)
    image = np.clip(smooth, 0, 255).astype(np.uint8)
    expected = np.asarray(CenterCrop(side)(Resize(side)(Image.fromarray(image)))).astype(int)
    view = evaluation_view(Decoded(image), (side, side)).transpose(1, 2, 0).astype(int)
    exact = ((width * side / height).is_integer() and (height * side / width).is_integer()) or side == min(width, height)
    steepest = max(abs(np.diff(expected, axis=axis)).max() for axis in (0, 1))
    assert abs(view - expected).max() <= (1 if exact else 0.6 * steepest)  # else torchvision cuts up to half a pixel beside us


def test_evaluation_view_of_views_that_are_not_square():
    image = picture(120, 80)
    np.testing.assert_array_equal(evaluation_view(Decoded(image), (80, 40)), image[:, 40:80].transpose(2, 0, 1))
    np.testing.assert_array_equal(evaluation_view(Decoded(image), (30, 120)), image[25:55].transpose(2, 0, 1))


class Watched:
    """An image that notes how it was decoded."""

    def __init__(self, image: Decoded) -> None:
        self.image, self.size, self.reductions = image, image.size, []

    def decode(self, reduction: int = 1) -> np.ndarray:
        self.reductions.append(reduction)
        return self.image.decode(reduction)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 60), st.integers(1, 60), st.integers(0, 99))
def test_what_is_decoded_keeps_more_than_the_views_resolution(height, width, view_height, view_width, seed):
    image = Watched(Decoded(np.zeros((height, width, 1), np.uint8)))
    crop = draw_crop((height, width), (view_height, view_width), (0.3, 1.0), np.random.default_rng(seed))
    training_view(image, (view_height, view_width), MINIMAL, np.random.default_rng(seed))
    (reduction,) = image.reductions
    room = min(crop[2] / view_height, crop[3] / view_width)
    assert reduction in (1, 2, 4, 8) and (reduction == 1 or room / reduction >= 1.5)
    assert reduction == 8 or room / (2 * reduction) < 1.5  # and no finer than that


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("CMYK", 3)])
def test_views_of_reduced_jpegs_are_those_of_whole_ones(tmp_path, mode, channels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    draw_picture("stripes", (800, 600), np.random.default_rng(2)).convert(mode).save(tmp_path / "a.jpg", quality=92, exif=exif)
    image = Watched(open_image(str(tmp_path / "a.jpg"), channels))
    whole = Decoded(image.decode())
    pairs = []
    for side in (64, 110):
        size = (side, side)
        for i in range(8):
            views = [training_view(shown, size, MINIMAL, np.random.default_rng(i)) for shown in (image, whole)]
            pairs.append(views)
        pairs.append([evaluation_view(shown, size) for shown in (image, whole)])
    assert {2, 4} <= set(image.reductions)
    for reduced, exact in pairs:
        error = reduced.astype(float) - exact
        assert 10 * math.log10(255**2 / (error**2).mean()) > 38
        shifted = np.roll(exact, 1, axis=2) - exact.astype(float)  # a crop one pixel beside would show
        assert (error**2).mean() < 0.05 * (shifted**2).mean()


def test_without_changes_a_view_is_the_evaluations():
    for seed in range(20):
        view = training_view(Decoded(picture(50, 40)), (32, 32), NONE, np.random.default_rng(seed))
        np.testing.assert_array_equal(view, evaluation_view(Decoded(picture(50, 40)), (32, 32)))


@pytest.mark.parametrize("group", [MINIMAL, MODERATE, STRONG, EVERYTHING])
def test_views_are_functions_of_the_generator(group):
    image = picture(50, 40)
    views = [training_view(Decoded(image), (32, 32), group, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(views[0], views[1])
    assert (views[0] != views[2]).mean() > 0.5


def test_levels_change_ever_more_views():
    """A crop of the whole, never mirrored, differs from the image only by colour: the rates follow from the probabilities."""
    image = picture(32, 32)
    rates = {}
    whole = {"crop_scale": (1.0, 1.0), "flip": 0.0}
    crop = training_view(Decoded(image), (32, 32), MINIMAL.model_copy(update=whole), np.random.default_rng(0))
    groups = {"minimal": MINIMAL, "moderate": MODERATE, "strong": STRONG, "grey": ViewGroup(grey=0.2), "all": EVERYTHING}
    for level, group in groups.items():
        group = group.model_copy(update=whole)
        views = [training_view(Decoded(image), (32, 32), group, np.random.default_rng([i, 7])) for i in range(400)]
        rates[level] = np.mean([not np.array_equal(view, crop) for view in views])
    assert rates["minimal"] == 0
    assert rates["all"] == 1
    assert abs(rates["moderate"] - 0.8) < 4 * math.sqrt(0.8 * 0.2 / 400)
    assert abs(rates["grey"] - 0.2) < 4 * math.sqrt(0.8 * 0.2 / 400)
    unchanged = 0.2 * 0.5 * 0.8
    assert (
        abs(rates["strong"] - (1 - unchanged)) < 4 * math.sqrt(unchanged * (1 - unchanged) / 400) + 0.02
    )  # blur of 0.1 px is none


def test_a_view_without_colour_is_torchvisions_grey():
    image = picture(40, 30)
    group = ViewGroup(crop_scale=None, flip=0.0, grey=1.0)
    view = training_view(Decoded(image), (30, 40), group, np.random.default_rng(0))
    np.testing.assert_array_equal(view[0], view[1])
    np.testing.assert_array_equal(view[0], view[2])
    expected = np.asarray(tv.rgb_to_grayscale(Image.fromarray(image))).astype(int)
    assert abs(view[0].astype(int) - expected).max() <= 1  # they cut fractions off, we round
    one_channel = training_view(Decoded(picture(40, 30, 1)), (30, 40), group, np.random.default_rng(0))
    np.testing.assert_array_equal(one_channel, picture(40, 30, 1).transpose(2, 0, 1))


def test_jitter_changes_by_up_to_its_strengths():
    """One strength at a time, on an image of a single grey or hue, whose changes can be read off it."""

    def draw(view, strengths, seed):
        return colour.jitter_colour(view, strengths, np.random.default_rng(seed))

    half = np.full((2, 2, 3), 100, np.uint8)
    for strength in (0.8, 1.5):
        factors = np.array([draw(half, (strength, 0.0, 0.0, 0.0), seed)[0, 0, 0] / 100 for seed in range(500)])
        low, high = max(1 - strength, 0), 1 + strength
        assert low - 0.01 <= factors.min() < low + 0.05 and high - 0.05 < factors.max() <= high + 0.01
        assert stats.kstest(factors, "uniform", (low, high - low)).pvalue > 1e-3
    for strengths in ((0.0, 0.8, 0.0, 0.0), (0.0, 0.0, 0.8, 0.0), (0.0, 0.0, 0.0, 0.5)):
        assert abs(draw(half, strengths, 1).astype(int) - 100).max() <= 1  # one grey has no contrast, saturation or hue
    red = np.zeros((1, 1, 3), np.uint8)
    red[..., 0] = 255
    for strength in (0.1, 0.3):
        turns = [colorsys.rgb_to_hsv(*draw(red, (0.0, 0.0, 0.0, strength), seed)[0, 0] / 255)[0] for seed in range(200)]
        turns = [turn - (turn > 0.5) for turn in turns]
        assert -strength - 0.01 < min(turns) < -0.9 * strength and 0.9 * strength < max(turns) < strength + 0.01
    plain = picture(20, 20)
    np.testing.assert_array_equal(draw(plain, (0.0, 0.0, 0.0, 0.0), 3), colour.adjust_hue(plain, 0.0))


def test_views_of_an_image_are_each_their_own_generators():
    """One decoding serves all, as finely as the finest needs; a view is what it is alone, but for that."""
    image = Watched(Decoded(picture(300, 200)))
    plans = [
        lambda: ViewPlan(MINIMAL, (128, 128), np.random.default_rng(1)),
        lambda: ViewPlan(STRONG, (128, 128), np.random.default_rng(2)),
        lambda: ViewPlan(NONE, (32, 48), np.random.default_rng(3)),
        lambda: ViewPlan(ViewGroup(crop_scale=(0.05, 0.1)), (24, 24), np.random.default_rng(4)),
    ]
    views = training_views(image, [make() for make in plans])
    assert image.reductions == [1]
    assert [view.shape for view in views] == [(3, 128, 128), (3, 128, 128), (3, 32, 48), (3, 24, 24)]
    for made, make in zip(views, plans, strict=True):
        whole = ViewPlan(MINIMAL, (300, 300), np.random.default_rng(9))  # beside which the image is decoded as finely
        np.testing.assert_array_equal(made, training_views(Decoded(picture(300, 200)), [make(), whole])[0])
    coarse = Watched(Decoded(np.zeros((900, 900, 1), np.uint8)))
    training_views(coarse, [ViewPlan(NONE, (side, side), np.random.default_rng(0)) for side in (60, 200)])
    assert coarse.reductions == [2]


@pytest.mark.parametrize("box", [(0, 0, 30, 40), (3, 5, 20, 10), (2.5, 1.25, 10.5, 20.0), (29, 39, 1, 1)])
def test_a_cut_box_is_pillows_of_what_is_inside(box):
    image = picture(40, 30, 3)
    top, left, height, width = box
    corner = math.floor(left), math.floor(top)
    alone = Image.fromarray(image).crop((*corner, math.ceil(left + width), math.ceil(top + height)))
    edges = (left - corner[0], top - corner[1], left - corner[0] + width, top - corner[1] + height)
    expected = alone.resize((12, 16), Image.Resampling.BILINEAR, edges)
    assert abs(cut(image, box, (16, 12)).astype(int) - np.asarray(expected).astype(int)).max() <= 1


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.0, 1.4])
def test_jitter_is_torchvisions(factor):
    image = picture(40, 30, seed=3)
    for ours, theirs in (
        (colour.adjust_brightness, tv.adjust_brightness),
        (colour.adjust_contrast, tv.adjust_contrast),
        (colour.adjust_saturation, tv.adjust_saturation),
    ):
        difference = to_tensor(ours(image, factor)).int() - theirs(to_tensor(image), factor).int()
        assert difference.abs().max() <= 1  # they cut fractions off, we round
    turn = (factor - 1) / 4
    expected = np.asarray(tv.adjust_hue(Image.fromarray(image), turn)).astype(int)
    difference = abs(colour.adjust_hue(image, turn).astype(int) - expected)
    assert difference.max() <= ONE_HUE_STEP


def test_hue_turns_the_colour_circle():
    red = np.zeros((1, 1, 3), np.uint8)
    red[..., 0] = 255
    for turn, expected in ((1 / 3, [0, 255, 0]), (-1 / 3, [0, 0, 255]), (0.0, [255, 0, 0])):
        assert abs(colour.adjust_hue(red, turn)[0, 0].astype(int) - expected).max() <= ONE_HUE_STEP


def test_solarize_and_blur():
    image = picture(40, 30, 1)
    np.testing.assert_array_equal(to_tensor(colour.solarize(image)), tv.solarize(to_tensor(image), 128))

    class Fixed:
        def uniform(self, low: float, high: float) -> float:
            assert (low, high) == colour.BLUR_SIGMA_PX
            return 1.5

    generator = Mock(spec=np.random.Generator, uniform=Fixed().uniform)
    for channels in (1, 2, 3):
        image = picture(40, 30, channels)
        expected = tv.gaussian_blur(to_tensor(image), [13, 13], [1.5, 1.5])[:, 7:-7, 7:-7].float()
        blurred = to_tensor(colour.blur(image, generator))[:, 7:-7, 7:-7].float()
        assert (blurred - expected).abs().mean() < 2  # Pillow's is three box filters
        assert to_tensor(image).float().std() > 1.5 * blurred.std() or channels == 3


def test_grey_views_keep_one_grey():
    image = np.repeat(picture(30, 30, 1), 2, axis=2)
    for seed in range(10):
        view = training_view(Decoded(image), (20, 20), STRONG, np.random.default_rng(seed))
        np.testing.assert_array_equal(view[0], view[1])


class Pictures:
    """A source of given images; None cannot be read."""

    def __init__(self, images: list[np.ndarray | None]) -> None:
        self.images = images
        self.spec, self.labels, self.classes = "pictures", None, []
        self.channels = next((image.shape[2] for image in images if image is not None), 1)

    def __len__(self) -> int:
        return len(self.images)

    def open(self, index: int) -> Decoded:
        return Decoded(self.load(index))

    def load(self, index: int) -> np.ndarray:
        image = self.images[index]
        if image is None:
            raise DecodeError(self.path(index), "made unreadable")
        return image

    def path(self, index: int) -> str:
        return f"pictures/{index}"


def level(value: int, side: int, channels: int = 1) -> np.ndarray:
    return np.full((side, side, channels), value, np.uint8)


def test_normalization_of_known_pixels():
    half = level(0, 10, 2)
    half[:5, :, 0] = 255
    mean, std = measure_normalization(Pictures([half]), 10)
    assert mean == pytest.approx([0.5, 0]) and std == pytest.approx([0.5, 1 / 255])
    mean, std = measure_normalization(Pictures([level(51, 3), None, level(153, 2000)]), 10)  # big and small weigh the same
    assert mean == pytest.approx([0.4]) and std == pytest.approx([0.2])
    with pytest.raises(DecodeError, match="pictures: none of 2 images can be read; the first is "):
        measure_normalization(Pictures([None, None]), 5)


def test_normalization_looks_at_so_many_images_spread_evenly():
    mean, _ = measure_normalization(Pictures([level(value, 2) for value in range(101)]), 3)
    assert mean == pytest.approx([50 / 255])
    images = [picture(40, 30, seed=seed) for seed in range(8)]
    everything = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    mean, std = measure_normalization(Pictures(images), 8)
    np.testing.assert_allclose(mean, everything.mean(axis=0))
    np.testing.assert_allclose(std, everything.std(axis=0))


@pytest.mark.parametrize("channels", [1, 3])
def test_rand_augment_is_the_view_s_own(channels: int):
    """The same generator gives the same view, whatever Python's and NumPy's global generators did, and leaves these alone."""
    view = np.random.default_rng(0).integers(0, 256, (24, 20, channels), dtype=np.uint8)
    changed = []
    for place in range(8):
        random.seed(1)
        np.random.seed(1)
        first = rand_augment(view, 2, 9.0, np.random.default_rng(place))
        assert random.random() == random.Random(1).random() and np.random.random() == np.random.RandomState(1).random()
        second = rand_augment(view, 2, 9.0, np.random.default_rng(place))
        np.testing.assert_array_equal(first, second)
        assert first.shape == view.shape and first.dtype == np.uint8
        changed.append(first.tobytes())
    assert len(set(changed)) > 4


def test_rand_augment_can_be_as_strong_as_a_recipe_can_ask():
    """Half of its draws are at the limit; one operation of 15 keeps the first bits of a level, at least one."""
    view = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for place in range(200):
        assert rand_augment(view, 2, 10.0, np.random.default_rng(place)).shape == view.shape
