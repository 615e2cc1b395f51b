"""Whatever the images and the machine, `--recipe auto` is a recipe that can run: hypothesis looks for one that is not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openjepa.commands.auto import SMALL, VIEWS, MachineLook, choose_recipe, word_choices
from openjepa.data.inspect import DataLook
from openjepa.masks import check_masks
from openjepa.methods.make import make_method
from openjepa.recipe.check import build_recipe
from openjepa.recipe.edit import changed_keys, flatten, with_changes
from openjepa.recipe.files import list_recipes, load_recipe, to_yaml
from openjepa.recipe.sections import Recipe
from openjepa.training.build import check_views, make_schedules, plan_steps

looks = st.builds(
    DataLook,
    num_images=st.one_of(st.integers(1, 10**7), st.sampled_from([1, 2, 3, 9, 999, 3162, 3163, 10**6])),
    side_px=st.integers(8, 4000),
    channels=st.sampled_from([1, 3]),
    num_looked_at=st.integers(1, 200),
)
machines = st.builds(
    MachineLook,
    num_cores=st.integers(1, 128),
    gpu_gb=st.sampled_from([None, 8.0, 80.0]),
    precision=st.sampled_from(["bf16", "fp32"]),
)


def count_weights(recipe: Recipe) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in make_method(recipe).context_encoder.parameters())


@settings(max_examples=80, deadline=None)
@given(looks, machines)
def test_every_choice_can_run(look: DataLook, machine: MachineLook) -> None:
    recipe, choices = choose_recipe(look, machine)
    height, width = recipe.data.size
    patch = recipe.model.patch_size
    assert height == width <= max(look.side_px, 8)  # never enlarged
    assert height % patch == 0
    assert 16 <= (height // patch) * (width // patch) <= 1024
    assert recipe.data.channels == look.channels
    assert 1 <= recipe.data.batch_size <= look.num_images
    assert 0 <= recipe.data.workers < max(machine.num_cores, 2)
    assert 0 < recipe.optim.warmup_frac < 0.5
    assert recipe.mask is not None
    check_masks(recipe.mask, recipe.grid)
    check_views(recipe)
    steps = plan_steps(recipe, look.num_images, step_s=0.1)
    with torch.device("meta"):
        schedules = make_schedules(recipe, make_method(recipe), steps)
    rates = [schedules.at(step)["lr"] for step in range(0, steps, max(steps // 50, 1))]
    assert 0 < rates[0] <= max(rates) <= recipe.optim.lr
    assert all(choice.reason for choice in choices)


@settings(max_examples=25, deadline=None)
@given(looks, machines)
def test_the_printed_values_are_the_recipes(look: DataLook, machine: MachineLook) -> None:
    recipe, choices = choose_recipe(look, machine)
    base = load_recipe(choices[0].value)
    values = flatten(recipe.model_dump())
    for key, value, _ in choices[1:]:
        assert values[key] == value
    told = {key for key, _, _ in choices} | {"name", "description", "checkpoint.every_epochs"}
    model = {key for key in changed_keys(base, recipe) if key.startswith("model.")}  # one line for the whole model
    assert changed_keys(base, recipe).keys() - told <= model


@settings(max_examples=25, deadline=None)
@given(looks, looks, machines)
def test_more_images_never_get_a_smaller_model(one: DataLook, other: DataLook, machine: MachineLook) -> None:
    fewer, more = sorted((one.num_images, other.num_images))
    sizes = [count_weights(choose_recipe(DataLook(n, one.side_px, one.channels, 1), machine)[0]) for n in (fewer, more)]
    assert sizes[0] <= sizes[1]


@pytest.mark.parametrize("side_px", [28, 64, 300])
@pytest.mark.parametrize("name", list(SMALL))
def test_at_a_fixed_point_the_small_recipe_is_kept(name: str, side_px: int) -> None:
    """On a machine that sets no bound, what the number of images decides is the recipe's own."""
    recipe, _ = choose_recipe(DataLook(SMALL[name], side_px, 3, 200), MachineLook(16, 80.0, "bf16"))
    fixed = load_recipe(name)
    decided_by_size_or_machine = {
        "name", "description", "data.image_size", "views.main.crop_scale", "views.main.flip", "data.workers", "model.patch_size",
    }  # fmt: skip
    if fixed.train.run_length.unit == "minutes":
        decided_by_size_or_machine.add("train.length")
    assert changed_keys(fixed, recipe).keys() <= decided_by_size_or_machine


# Epochs of each, times its images.
VIEWS_OF_A_RUN = {"small_1k": 10**6, "small_10k": 2 * 10**6, "small_100k": 10**7, "small_1m": 5 * 10**7}


@settings(max_examples=30, deadline=None)
@given(looks, machines)
def test_as_many_views_are_seen_as_by_the_small_recipe(look: DataLook, machine: MachineLook) -> None:
    """On a GPU; on a CPU half an hour is the length."""
    recipe, choices = choose_recipe(look, machine)
    if machine.gpu_gb is None:
        assert recipe.train.length == "30minutes"
        return
    seen = plan_steps(recipe, look.num_images, None) * recipe.batch_size
    assert seen == pytest.approx(VIEWS_OF_A_RUN[choices[0].value], rel=0.01)


@pytest.mark.parametrize("name", ["small_100k", "small_1m"])
def test_the_small_recipes_for_a_gpu_see_as_many_views_themselves(name: str) -> None:
    fixed = load_recipe(name)
    assert plan_steps(fixed, SMALL[name], None) * fixed.batch_size == pytest.approx(VIEWS_OF_A_RUN[name], rel=0.001)


@settings(max_examples=15, deadline=None)
@given(looks, machines)
def test_yaml_reads_back_to_the_same_recipe(look: DataLook, machine: MachineLook) -> None:
    import yaml

    recipe, _ = choose_recipe(look, machine)
    assert build_recipe(yaml.safe_load(to_yaml(recipe))) == recipe


def test_a_change_is_said_to_replace_a_choice() -> None:
    recipe, choices = choose_recipe(DataLook(5000, 640, 3, 200), MachineLook(2, None, "bf16"))
    changes = {"train.length": "5minutes"}
    kept, changed = word_choices(choices, recipe), word_choices(choices, with_changes(recipe, changes))
    different = [(one, other) for one, other in zip(kept, changed, strict=True) if one != other]
    assert len(different) == 1
    assert different[0][1].split()[:2] == ["train.length", "5minutes"] and "your value, in place of 30minutes" in different[0][1]


def test_a_change_of_method_leaves_the_choices_that_it_has_not() -> None:
    """SimCLR has neither a regulariser nor a momentum; the lines say what is replaced, and nothing fails."""
    recipe, choices = choose_recipe(DataLook(5000, 640, 3, 200), MachineLook(2, None, "bf16"))
    lines = word_choices(choices, with_changes(recipe, {"method.name": "simclr"}))
    (name,) = [line for line in lines if line.startswith("method.name ")]
    assert name.split()[1] == "simclr" and "your value, in place of mae" in name


def test_the_tables_name_recipes_and_fall() -> None:
    assert set(SMALL) <= set(list_recipes())
    assert [rule.from_px for rule in VIEWS] == sorted((rule.from_px for rule in VIEWS), reverse=True)
