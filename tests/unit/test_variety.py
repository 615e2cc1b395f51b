"""What is said of images from which nothing can be learned; images as they should be get no word."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from openjepa.data.inspect import check_number, find_problems


def draw(count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def words(views: Tensor, num_images: int) -> str:
    return "; ".join(finding.words for finding in find_problems(views, num_images))


def is_hopeless(views: Tensor, num_images: int) -> bool:
    return any(finding.is_hopeless for finding in find_problems(views, num_images))


def test_different_images_are_not_spoken_of() -> None:
    assert find_problems(draw(256), 5000) == []


def test_one_repeated_image() -> None:
    views = draw(1).repeat(64, 1, 1, 1)
    assert words(views, 5000) == "all 64 sampled images are identical: there is nothing to tell apart"
    assert is_hopeless(views, 5000)


@given(st.integers(2, 40), st.integers(0, 2**31))
def test_one_different_pixel_is_enough_for_hope(count: int, place: int) -> None:
    views = draw(1).repeat(count, 1, 1, 1)
    views[place % count].view(-1)[place % 108] += 1
    assert not is_hopeless(views, 5000)


def test_black_and_flat_images() -> None:
    black = torch.zeros(200, 3, 6, 6, dtype=torch.uint8)
    assert words(black, 200) == "all 200 images are black: there is nothing to predict"
    flat = draw(200)[:, :, :1, :1].repeat(1, 1, 6, 6)
    assert words(flat, 200) == "all 200 images are of one flat colour: there is nothing to predict"
    assert is_hopeless(black, 200) and is_hopeless(flat, 200)
    some = torch.cat([black[:150], draw(50)])
    assert words(some, 200) == "150 of 200 images are of one flat colour and teach nothing"
    assert not is_hopeless(some, 200)
    assert words(torch.cat([black[:20], draw(180)]), 200) == ""


def test_copies_are_counted() -> None:
    assert words(draw(20).repeat(10, 1, 1, 1), 200) == "200 images show only 20 different pictures"
    assert words(draw(150).repeat(2, 1, 1, 1)[:200], 200) == ""


def test_few_images() -> None:
    assert "only 3 images" in words(draw(3), 3) and "cannot exceed 3" in words(draw(3), 3)
    assert is_hopeless(draw(3), 3) and not is_hopeless(draw(50), 50)
    with pytest.raises(ValueError, match="PHOTOS holds 1 image"):
        check_number(1, "PHOTOS")
    check_number(2, "PHOTOS")
