"""What the methods that compare views measure of themselves: closed forms, scipy, and what the verdict makes of a collapse."""

import math
import re

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import entropy

from openjepa.health import verdict as health
from openjepa.health.verdict import RunFacts
from openjepa.methods.dino import measure_assignments
from openjepa.methods.pairs import measure_pairs
from openjepa.recipe.check import recipe_keys
from openjepa.recipe.files import load_recipe
from openjepa.recipe.methods import SECTIONS
from tests.models import small_method


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("queries", "keys", "found", "alignment", "uniformity"),
    [
        (torch.ones(4, 3), torch.ones(4, 3), 0.25, 0.0, 0.0),  # collapsed: the first of equal keys is taken
        (torch.eye(5), torch.eye(5), 1.0, 0.0, -4.0),  # orthogonal images: squared distances of 2
        (torch.eye(5).roll(1, 0), torch.eye(5), 0.0, 2.0, -4.0),  # every query has another image's key
        (-torch.eye(2), torch.eye(2), 0.0, 4.0, -4.0),
    ],
)
def test_pairs_in_closed_form(queries, keys, found, alignment, uniformity):
    measured = measure_pairs(queries, keys)
    values = [float(measured[name]) for name in ("pairs_found", "alignment", "uniformity")]
    assert values == pytest.approx([found, alignment, uniformity], abs=1e-6)


def test_pairs_are_scipys_distances_and_lengths_count_nothing():
    queries, keys = draw(9, 4), draw(9, 4, seed=1)
    first, second = ((vectors / vectors.norm(dim=1, keepdim=True)).double().numpy() for vectors in (queries, keys))
    for scale in (1.0, 100.0):
        measured = measure_pairs(scale * queries, keys)
        assert float(measured["alignment"]) == pytest.approx(np.mean(np.sum((first - second) ** 2, 1)), rel=1e-5)
        assert float(measured["uniformity"]) == pytest.approx(math.log(np.mean(np.exp(-2 * pdist(second) ** 2))), rel=1e-5)


@pytest.mark.parametrize(
    ("wanted", "own", "usage"),
    [
        (torch.full((6, 8), 1 / 8), 1.0, 1.0),  # no sharpening: log K of log K
        (torch.eye(8)[torch.zeros(6, dtype=torch.int64)], 0.0, 0.0),  # no centring: one prototype
        (torch.eye(8), 0.0, 1.0),  # as it should be: sharp, and every prototype in use
        (torch.eye(8)[:2], 0.0, math.log(2) / math.log(8)),
    ],
)
def test_entropies_in_closed_form(wanted, own, usage):
    measured = measure_assignments(wanted, torch.tensor(0.0))
    assert float(measured["teacher_entropy"]) == pytest.approx(own, abs=1e-6)
    assert float(measured["usage_entropy"]) == pytest.approx(usage, abs=1e-6)


def test_the_loss_less_the_entropy_is_scipys_divergence():
    wanted, given = draw(7, 5).softmax(1), draw(7, 5, seed=1).softmax(1)
    loss = -(wanted * given.log()).sum(1).mean()
    expected = np.mean([entropy(p, q) for p, q in zip(wanted.double().numpy(), given.double().numpy(), strict=True)])
    assert float(measure_assignments(wanted, loss)["assignment_kl"]) == pytest.approx(expected, rel=1e-5)


def test_the_spread_of_targets_is_0_where_the_target_network_says_nothing():
    """Layers that differ from patch to patch as normal deviates do give targets of deviation 1, up to their number."""
    from tests.contract.test_methods import draw as draw_batch

    method, batch, found = small_method("data2vec", 0, data__image_size=(32, 40), data__channels=2), draw_batch("data2vec"), []
    for layer in (torch.zeros(6, 80, 32), draw(6, 80, 32)):
        method.target_encoder.layer_outputs = lambda images, count, layer=layer: [layer]
        found.append(float(method(batch, {})[1]["target_std"]))
    assert found[0] == 0.0
    assert found[1] == pytest.approx(1.0, abs=0.05)


def judge(name, **values):
    """The verdict on a run of a shipped recipe with rich features, and with these values at every measurement."""
    rows = [
        {"step": 10 * place, "effective_rank_pooled": rank, "loss": 1.0, "skipped_in_a_row": 0} | values
        for place, rank in enumerate((1.7, 9.0, 9.0, 9.0))
    ]
    recipe = load_recipe(name).model_dump(mode="json")
    return health.judge(rows, RunFacts(recipe=recipe, untrained_rank=1.7, rank_limit=64))


@pytest.mark.parametrize(
    ("recipe", "good", "collapsed", "keys"),
    [
        ("simclr_small", {"uniformity": -2.0, "pairs_found": 0.6}, {"uniformity": 0.0},
         ("method.temperature", "data.batch_size")),
        ("byol_small", {"uniformity": -2.0, "pairs_found": 0.6}, {"uniformity": 0.0}, ("method.momentum.start",)),
        ("mocov3_small", {"uniformity": -2.0, "pairs_found": 0.6}, {"uniformity": 0.0}, ("method.temperature",)),
        ("lejepa_small", {"uniformity": -2.0, "pairs_found": 0.6}, {"uniformity": 0.0}, ("method.trade_off",)),
        ("dino_small", {"teacher_entropy": 0.3, "usage_entropy": 0.9}, {"teacher_entropy": 1.0},
         ("method.teacher_temperature.end",)),
        ("dino_small", {"teacher_entropy": 0.3, "usage_entropy": 0.9}, {"usage_entropy": 0.0}, ("method.centre_momentum",)),
        ("ibot_small", {"patch_teacher_entropy": 0.3, "patch_usage_entropy": 0.9}, {"patch_usage_entropy": 0.0},
         ("method.centre_momentum",)),
        ("data2vec_small", {"target_std": 0.8, "explained_variance": 0.3}, {"target_std": 0.0}, ("method.momentum.start",)),
    ],
)  # fmt: skip
def test_a_collapse_of_what_a_method_compares_is_told_with_its_own_keys(recipe, good, collapsed, keys):
    """However rich the features."""
    assert judge(recipe, **good).label == "healthy"
    verdict = judge(recipe, **good | collapsed)
    assert verdict.label == "collapsed"
    assert all(key in verdict.advice for key in keys)


@pytest.mark.parametrize("recipe", ["simclr_small", "byol_small", "mocov3_small", "lejepa_small"])
def test_pairs_found_by_chance_are_no_learning(recipe):
    images = load_recipe(recipe).data.batch_size
    assert judge(recipe, pairs_found=1 / images).label == "not learning yet"
    assert judge(recipe, pairs_found=0.5).label == "healthy"


@pytest.mark.parametrize("name", SECTIONS)
def test_advice_against_collapse_names_keys_of_the_method(name):
    assert set(SECTIONS[name].AGAINST_COLLAPSE) <= set(recipe_keys(name))


def test_no_key_is_advised_beyond_its_limit():
    recipe = load_recipe("dino_small").model_dump(mode="json")
    recipe["method"] |= {"centre_momentum": 0.0, "momentum": {"schedule": "fixed", "start": 1.0, "end": 1.0}}
    advice = health.advise_against_collapse(RunFacts(recipe=recipe), first="method.centre_momentum")
    assert re.findall(r"method[.\w]+", advice) == ["method.teacher_temperature.end"]
