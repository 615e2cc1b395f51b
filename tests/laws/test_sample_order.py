"""Laws of the training stream's order: epochs are permutations, and any piece equals that piece of the whole."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from openjepa.data.loader import sample_order

num_images = st.integers(1, 300)
seeds = st.integers(0, 2**32)


@settings(deadline=None)
@given(num_images, seeds, st.integers(0, 10**6))
def test_every_epoch_is_a_permutation(num, seed, epoch):
    order = sample_order(num, seed, epoch * num, num)
    assert sorted(order.tolist()) == list(range(num))


@settings(deadline=None)
@given(num_images, seeds, st.integers(0, 10**4), st.lists(st.integers(0, 400), max_size=5))
def test_pieces_join_to_the_whole(num, seed, start, counts):
    whole = sample_order(num, seed, start, sum(counts))
    pieces, position = [], start
    for count in counts:
        pieces += sample_order(num, seed, position, count).tolist()
        position += count
    assert whole.dtype == np.int64 and whole.tolist() == pieces


@given(st.integers(20, 300), seeds, st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_epochs_and_seeds_differ(num, seed, epoch):
    order = sample_order(num, seed, epoch * num, 2 * num)
    assert order[:num].tolist() != order[num:].tolist()  # 1 in 20! at the least
    assert order[:num].tolist() != sample_order(num, seed + 1, epoch * num, num).tolist()


def test_every_place_sees_every_image_equally_often():
    num, epochs = 10, 4000
    counts = np.zeros((num, num))
    order = sample_order(num, 0, 0, num * epochs).reshape(epochs, num)
    for place in range(num):
        counts[place] = np.bincount(order[:, place], minlength=num)
    chi_square = ((counts - epochs / num) ** 2 / (epochs / num)).sum()
    assert chi_square < 130  # 81 degrees of freedom: mean 81, standard deviation 13


def test_a_far_start_costs_no_more_than_a_near_one():
    start = time.perf_counter()
    assert len(sample_order(1000, 0, 10**15, 64)) == 64
    assert time.perf_counter() - start < 0.5
