"""Masks as COCO writes them, against faster-coco-eval's own reading and writing."""

import numpy as np
import pytest
from faster_coco_eval.core import mask as reference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from openjepa.data.scenes.make import encode_mask
from openjepa.data.segments import clean_segmentation, decode_mask

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40))


@given(masks)
def test_every_mask_comes_back_from_both_forms_of_run_lengths(mask):
    compressed = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
    as_text = compressed | {"counts": compressed["counts"].decode()}
    for written in (encode_mask(mask), compressed, as_text):
        clean = clean_segmentation(written, mask.shape)
        assert clean is not None
        assert np.array_equal(decode_mask(clean, mask.shape), mask)


@given(st.lists(st.floats(-5, 45, width=32), min_size=6, max_size=12).filter(lambda values: len(values) % 2 == 0))
def test_polygons_are_the_librarys(points):
    size = (30, 40)
    clean = clean_segmentation([points], size)
    assert clean is not None
    expected = reference.decode(reference.frPyObjects([points], *size))[:, :, 0].astype(bool)
    assert np.array_equal(decode_mask(clean, size), expected)


def test_parts_of_an_object_are_joined_and_broken_ones_left_out():
    left, right = [0, 0, 4, 0, 4, 8, 0, 8], [6, 0, 8, 0, 8, 8, 6, 8]
    clean = clean_segmentation([left, [1, 2, 3, 4], right, [1, 2, 3, 4, 5, float("nan")]], (8, 8))
    assert clean == [left, right]
    covered = decode_mask(clean, (8, 8))
    assert covered[:, :4].all() and covered[:, 6:].all() and not covered[:, 4:6].any()
    assert clean_segmentation(left, (8, 8)) == [left]  # without the outer list


@given(st.text(alphabet=[chr(code) for code in range(40, 120)], max_size=30))
def test_no_text_is_a_crash(text):
    clean = clean_segmentation({"size": [6, 7], "counts": text}, (6, 7))
    if clean is not None:
        assert decode_mask(clean, (6, 7)).shape == (6, 7)


@pytest.mark.parametrize(
    "damaged",
    [
        None, [], {}, "mask", [[]], [[1, 2, 3]], [[1, 2, 3, 4, 5, "6"]], [[0, 0, 1e9, 0, 0, 1e9]], {"counts": [42]},
        {"size": [6, 7], "counts": [41]}, {"size": [7, 6], "counts": [42]}, {"size": [6, 7], "counts": [-1, 43]},
        {"size": [6, 7], "counts": [42.0]}, {"size": [6, 7], "counts": "é"}, {"size": [6, 7]},
    ],
)  # fmt: skip
def test_what_does_not_fit_the_image_is_none(damaged):
    assert clean_segmentation(damaged, (6, 7)) is None
