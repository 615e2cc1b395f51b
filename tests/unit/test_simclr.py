"""SimCLR against its equation, one pair at a time, and what its views are."""

import math

import pytest
import torch

from openjepa.data.sources import open_source
from openjepa.methods.simclr import contrast
from openjepa.recipe.edit import with_changes
from openjepa.recipe.files import load_recipe
from openjepa.training.build import make_batches


def write_out_equation_1(vectors: torch.Tensor, temperature: float) -> float:
    """Mean over ordered pairs (i, j) of -log(exp(sim_ij / t) / sum over k != i of exp(sim_ik / t)); arXiv 2002.05709."""
    rows = [[float(value) for value in row] for row in vectors.double()]

    def cosine(first: list[float], second: list[float]) -> float:
        product = sum(a * b for a, b in zip(first, second, strict=True))
        return product / math.sqrt(sum(a * a for a in first) * sum(b * b for b in second))

    losses = []
    for i in range(len(rows)):
        j = i + 1 if i % 2 == 0 else i - 1
        others = sum(math.exp(cosine(rows[i], rows[k]) / temperature) for k in range(len(rows)) if k != i)
        losses.append(-math.log(math.exp(cosine(rows[i], rows[j]) / temperature) / others))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_the_loss_is_equation_1(temperature):
    vectors = torch.randn(10, 7, generator=torch.Generator().manual_seed(0))
    loss = contrast(vectors, temperature)
    assert float(loss) == pytest.approx(write_out_equation_1(vectors, temperature), rel=1e-5)


def test_equal_vectors_know_nothing_and_a_pair_knows_itself():
    """2 N equal vectors: each of the other 2 N - 1 is as likely. Orthogonal pairs: six strangers at cosine 0."""
    loss = contrast(torch.ones(8, 4), 0.1)
    assert float(loss) == pytest.approx(math.log(7))
    pairs = torch.eye(4).repeat_interleave(2, 0)
    loss = contrast(pairs, 0.1)
    assert float(loss) == pytest.approx(math.log(1 + 6 * math.exp(-10)), abs=1e-6)


def test_an_image_has_two_different_views_of_itself():
    """Cut from the same image: their mean colours go together over images, as views of different images' do not."""
    recipe = with_changes(load_recipe("simclr_small"), {"data.batch_size": 64, "data.image_size": 24, "data.workers": 0})
    batch = next(make_batches(recipe, open_source("sample:train", 3), 0, 1))
    images = batch.views["main"].images.float()
    assert images.shape == (64, 2, 3, 24, 24)
    assert not any(bool((pair[0] == pair[1]).all()) for pair in images)
    means = images.mean((2, 3, 4))
    together = torch.corrcoef(means.T)[0, 1]
    apart = torch.corrcoef(torch.stack([means[:, 0], means[:, 1].roll(1)]))[0, 1]
    assert together > 0.5 > abs(apart)
