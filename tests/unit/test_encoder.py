"""What an encoder takes: images of every honest kind give the same features, all others are refused with a cure."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from openjepa.nn.encoder import Encoder, normalise, require_images
from openjepa.nn.vit import VisionTransformer

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.bool, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32)


def make_encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(VisionTransformer((16, 16), 4, 3, (48, 2, 4, 4.0)), [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    """uint8 images whose levels every float type of 8 bits and more holds: 255 times 0, 1/15, ... 1."""
    return 17 * torch.randint(0, 16, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def features(encoder: Encoder, images: Tensor) -> Tensor:
    return encoder(images).pooled.double()


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_in_0_to_1_give_the_features_of_the_same_uint8_images(images: Tensor, dtype: torch.dtype) -> None:
    encoder = make_encoder()
    expected = features(encoder, images)
    unit = images.double() / 255
    found = features(encoder, unit.to(dtype))
    rounded = features(encoder, unit.to(dtype).float())  # what the type keeps of the pixels, and no more is lost
    assert torch.equal(found, rounded)
    assert float((found - expected).abs().max()) <= 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_an_encoder_in_another_precision_takes_the_same_images(images: Tensor, dtype: torch.dtype) -> None:
    expected = features(make_encoder(), images)
    encoder = make_encoder().to(dtype)
    for given_images in (images, images.float() / 255, images.double() / 255):
        found = features(encoder, given_images)
        assert float((found - expected).abs().max()) <= 50 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_other_integers_are_refused_by_name(images: Tensor, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"{str(dtype).removeprefix('torch.')}.*torch.uint8") as caught:
        make_encoder()(images.to(dtype))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda unit: 255 * unit, "0 to 255.*divide.*255"),
        (lambda unit: 2 * unit - 1, "-1 to 1.*normalis"),
        (lambda unit: (unit - 0.45) / 0.225, "-2 to .*normalis"),
        (lambda unit: torch.where(unit > 0.9, torch.nan, unit), "NaN"),
        (lambda unit: torch.where(unit > 0.9, torch.inf, unit), "infinity"),
    ],
)
def test_floats_of_another_range_are_refused(images: Tensor, dtype: torch.dtype, spoil, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make_encoder()(spoil(images.double() / 255).to(dtype))
    assert "\n" not in str(caught.value)


def test_one_image_without_a_batch_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(3, 16, 16\).*batch"):
        make_encoder()(images[0])


def test_an_empty_batch_has_no_features() -> None:
    for dtype in (torch.uint8, torch.float32):
        assert make_encoder()(torch.empty(0, 3, 16, 16, dtype=dtype)).pooled.shape == (0, 48)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    view=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    resampling=st.sampled_from([Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BILINEAR]),
)
def test_whatever_resizing_makes_of_an_image_is_accepted(seed, size, view, resampling) -> None:
    harsh = np.random.default_rng(seed).integers(0, 2, size).astype(np.float32)  # black and white: nothing rings more
    resized = np.asarray(Image.fromarray(harsh).resize(view, resampling))
    require_images(torch.from_numpy(resized.copy())[None, None])
    torch_resized = torch.nn.functional.interpolate(torch.from_numpy(harsh)[None, None], view, mode="bicubic")
    require_images(torch_resized)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=2, max_size=12))
def test_no_image_of_0_to_255_passes_for_one_in_0_to_1_unless_it_is_all_but_black(levels: list[int]) -> None:
    images = torch.tensor(levels, dtype=torch.float32).view(1, 1, 1, -1)
    if max(levels) <= 1:
        require_images(images)
        return
    with pytest.raises(ValueError, match="255"):
        require_images(images)


def test_uint8_images_are_not_looked_at(images: Tensor) -> None:
    """A look at the values would make a GPU wait; fake tensors have none, and raise an error at it."""
    encoder = make_encoder()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        assert encoder(mode.from_tensor(images)).pooled.shape == (4, 48)
        with pytest.raises(DataDependentOutputException):
            encoder(mode.from_tensor(images / 255))


def test_the_encoder_exports_as_one_graph(images: Tensor) -> None:
    encoder, unit = make_encoder(), images.float() / 255
    exported = torch.export.export(encoder, (unit,)).module()
    assert float((features(exported, unit) - features(encoder, images)).abs().max()) < 1e-6


def test_normalise_is_the_closed_form(images: Tensor) -> None:
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(-1, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(-1, 1, 1)
    expected = (images.numpy() / 255.0 - mean.numpy().astype(np.float64)) / std.numpy().astype(np.float64)
    assert np.abs(normalise(images, mean, std).numpy() - expected).max() < 1e-6
