"""A higher severity is never nearer to the clean image; the same seed, image and corruption give the same pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from openjepa.data.corruptions import CORRUPTIONS, NUM_SEVERITIES, corrupt
from openjepa.data.sample import load_sample

ON_EVERY_IMAGE = ["gaussian_noise", "shot_noise", "impulse_noise", "haze", "brightness", "contrast"]
SEVERITIES = range(1, NUM_SEVERITIES + 1)

images = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5)).flatmap(lambda shape: arrays(np.uint8, shape))


def measure_distances(pixels, name, seed=0, image=0):
    """Root mean square distance to the clean image at each severity."""
    changed = [corrupt(pixels, name, severity, seed=seed, image=image) for severity in SEVERITIES]
    assert all(other.shape == pixels.shape for other in changed)
    return [float(np.sqrt(np.square(other.astype(float) - pixels).mean())) for other in changed]


@pytest.mark.parametrize("name", ON_EVERY_IMAGE)
@given(pixels=images, seed=st.integers(0, 3))
def test_distance_grows_on_every_image(name, pixels, seed):
    distances = measure_distances(pixels, name, seed)
    assert distances == sorted(distances)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("side", "channels"), [(28, 1), (56, 3)])
def test_distance_grows_on_the_mean_of_real_images(name, side, channels):
    """A blur may bring one image back towards itself; the mean over images only moves away, and by no small step."""
    grey = load_sample("test")[0][:24, :, :, None]
    pixels = np.repeat(np.kron(grey, np.ones((1, side // 28, side // 28, 1), np.uint8)), channels, axis=3)
    distances = np.mean([measure_distances(image, name, image=number) for number, image in enumerate(pixels)], axis=0)
    assert distances[0] > 1
    assert (np.diff(distances) > 0.05 * distances[:-1]).all(), distances


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_seeded_by_seed_image_and_corruption(name):
    pixels = load_sample("test")[0][3][:, :, None]
    first = corrupt(pixels, name, 3, seed=1, image=2)
    assert np.array_equal(corrupt(pixels, name, 3, seed=1, image=2), first)
    if name in ("gaussian_noise", "shot_noise", "impulse_noise", "haze", "motion_blur"):
        for seed, image in ((2, 2), (1, 3)):
            assert not np.array_equal(corrupt(pixels, name, 3, seed=seed, image=image), first)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 33, 2), (5, 3, 3), (8, 8, 6)])
def test_any_shape_and_number_of_channels(name, shape):
    pixels = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    for severity in SEVERITIES:
        assert corrupt(pixels, name, severity, seed=0, image=0).shape == shape


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "pixelate"])
def test_a_flat_image_stays_flat(name):
    """Weights of a mean add up to one, at the edges too."""
    pixels = np.full((12, 17, 3), 93, np.uint8)
    assert np.array_equal(corrupt(pixels, name, 5, seed=0, image=0), pixels)


def test_gaussian_noise_has_its_standard_deviation():
    pixels = np.full((200, 200, 1), 128, np.uint8)
    for level, severity in zip(CORRUPTIONS["gaussian_noise"].levels[:2], SEVERITIES, strict=False):
        changed = corrupt(pixels, "gaussian_noise", severity, seed=0, image=0) / 255
        assert changed.std() == pytest.approx(level, rel=0.02)
