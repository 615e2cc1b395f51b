"""Whatever a recipe's numbers are, it is refused in one line or its rates stay where rates can be."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from openjepa.engine.optim import WeightGroup, make_optimizer, set_rates
from openjepa.methods import Method
from openjepa.methods.make import make_method
from openjepa.recipe.check import build_recipe
from openjepa.recipe.edit import with_changes
from openjepa.recipe.sections import Recipe
from openjepa.training.build import make_schedules

STEPS = 50
RATES, DECAYS, SHARES = [0.0, 1e-6, 1e-3, 2e-3, 1.0], [0.0, 0.05, 0.4], [0.0, 0.9, 0.996]
BAD = [-1.0, -1e-6, 1.5]


def make_small(recipe: Recipe) -> Method:
    """The recipe's method with few weights."""
    tiny = {"model.width": 8, "model.depth": 1, "model.heads": 1, "method.predictor": {"width": 8, "depth": 1, "heads": 1}}
    with torch.device("meta"):
        return make_method(with_changes(recipe, tiny))


@st.composite
def recipe_values(draw: st.DrawFn) -> dict[str, Any]:
    """Numbers that could each be meant, but for at most one, in any order."""
    bad = draw(st.integers(-1, 13))

    def one(number: int, good: list[float]) -> float:
        return draw(st.sampled_from(BAD if number == bad else good))

    optim = {
        "lr": one(0, RATES[3:]), "start_lr": one(1, RATES), "final_lr": one(2, RATES), "layer_decay": one(3, [0.75, 1.0]),
        "weight_decay": [one(4, DECAYS), one(5, DECAYS)], "predictor_weight_decay": [one(6, DECAYS), one(7, DECAYS)],
        "betas": [one(8, SHARES), one(9, SHARES)], "eps": one(10, [1e-8]), "warmup_frac": one(11, [0.0, 0.1, 1.0]),
    }  # fmt: skip
    kind = draw(st.sampled_from(["cosine", "linear", "fixed"]))
    momentum = {"schedule": kind, "start": one(12, [*SHARES, 1.0]), "end": one(13, [0.996, 1.0])}
    return {"optim": optim, "method": {"momentum": momentum}}


@settings(max_examples=300, deadline=None)
@given(recipe_values())
def test_accepted_rates_rise_to_their_peak_and_fall_from_it(values: dict[str, Any]) -> None:
    try:
        recipe = build_recipe(values)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017 (either it is refused so, or all that follows holds)
        return
    schedules = make_schedules(recipe, make_small(recipe), STEPS)
    lr, momentum = ([schedules.at(step)[name] for step in range(STEPS)] for name in ("lr", "momentum"))
    peak = lr.index(max(lr))
    assert min(lr) >= 0 and max(lr) <= recipe.optim.lr * (1 + 1e-12)
    assert lr == sorted(lr[:peak]) + sorted(lr[peak:], reverse=True)
    assert min(momentum) >= 0 and max(momentum) <= 1 and momentum == sorted(momentum)
    groups = [WeightGroup(list(nn.Linear(2, 2).parameters()), layers_above) for layers_above in (None, 0, 3)]
    optimizer = make_optimizer(groups, recipe.optim)  # PyTorch refuses what it cannot use
    for step in range(0, STEPS, 7):
        set_rates(optimizer, lr[step], step, STEPS)
        assert all(group["weight_decay"] >= 0 for group in optimizer.param_groups)


@settings(max_examples=50, deadline=None)
@given(st.one_of(st.integers(0, 2**70), st.just(2**32 - 1)), st.integers(0, 10**9))
def test_every_accepted_seed_seeds_every_step(seed: int, step: int) -> None:
    """As the trainer does; PyTorch takes 64 bits."""
    try:
        recipe = build_recipe({"train": {"seed": seed}})
    except ValueError:
        assert seed >= 2**32
        return
    torch.manual_seed(recipe.train.seed * 1_000_003 + step)
