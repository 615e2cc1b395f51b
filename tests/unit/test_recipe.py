"""Recipes: a misspelt key stops and names the right one, every key is read somewhere, YAML goes round, errors are one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

import openjepa
from openjepa.cli import main
from openjepa.commands.pretrain import pretrain
from openjepa.methods.make import make_method
from openjepa.recipe import base, methods, sections
from openjepa.recipe.check import build_recipe, find_section, recipe_keys
from openjepa.recipe.edit import changed_keys, flatten, list_sections, nest, read_assignments, with_changes
from openjepa.recipe.explain import explain_keys
from openjepa.recipe.files import list_recipes, load_recipe, to_yaml
from openjepa.recipe.length import parse_length
from openjepa.recipe.sections import Recipe
from openjepa.recipe.views import Mask, ViewGroup
from openjepa.training import hooks
from tests.models import small_recipe

PACKAGE = Path(openjepa.__file__).parent
METHODS = list(methods.SECTIONS)
SHIPPED = ["demo", "paper_vit_base_16", "paper_vit_giant_16", "paper_vit_huge_14", "paper_vit_huge_16_448",
           "paper_vit_large_16", "brief_vit_base_16", "mae_demo", "small_1k", "small_10k", "small_100k", "small_1m",
           "ijepa_small", "detection_small", "instances_small", "vitdet_vit_base_16",
           *(f"{name}_{size}" for name in METHODS if name not in ("ijepa", "detection")
             for size in ("small", "vit_base_16"))]  # fmt: skip
TERM = {"name": "vicreg", "weight": 0.3}
PROBE = {"train": "sample:test", "test": "sample:test"}


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def complaint(values: dict[str, Any]) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (every caller looks at the text)
        build_recipe(values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- misspelt keys


def misspellings(word: str) -> list[str]:
    """One letter left out, doubled, or swapped with the next."""
    return [
        spelling
        for i in range(len(word))
        for spelling in (word[:i] + word[i + 1 :], word[: i + 1] + word[i:], word[:i] + word[i : i + 2][::-1] + word[i + 2 :])
        if spelling not in {word, ""}
    ]


@pytest.mark.parametrize("key", [key for key in recipe_keys() if "." in key])
def test_every_misspelling_of_a_key_names_the_key(key: str) -> None:
    group, _, name = key.rpartition(".")
    method = next(method for method in METHODS if key in recipe_keys(method))
    beside = {"method.regularizer": TERM, "health.probe": PROBE}.get(group, {})
    others = {f"{group}.{other}": value for other, value in beside.items() if other != name}
    for wrong in sorted(set(misspellings(name))):
        if f"{group}.{wrong}" not in recipe_keys(method):
            said = complaint(nest({"method.name": method, f"{group}.{wrong}": 1} | others))
            assert f"unknown key {group}.{wrong}; did you mean {key}?" in said


@pytest.mark.parametrize("section", Recipe.model_fields)
def test_every_misspelling_of_a_section_names_the_section(section: str) -> None:
    for wrong in misspellings(section):
        assert f"unknown key {wrong}; did you mean {section}?" in complaint({wrong: {}})


def test_every_misspelling_of_a_method_or_a_group_of_views_names_it() -> None:
    for name in METHODS:
        for wrong in misspellings(name):
            said = complaint({"method": {"name": wrong}})
            assert f"method.name = {wrong!r}: there is no such method; did you mean {name}?" in said
    for wrong in misspellings("main"):
        assert f"unknown key views.{wrong}; did you mean views.main?" in complaint({"views": {wrong: {}}})


@pytest.mark.parametrize(
    ("values", "right"),
    [
        ({"lr": 1e-3}, "optim.lr"),
        ({"length": "5steps"}, "train.length"),
        ({"optim": {"length": "5steps"}}, "train.length"),
        ({"train": {"batch_size": 8}}, "data.batch_size"),
        ({"model": {"predictor": {"width": 8}}}, "method.predictor"),
        ({"views": {"main": {"sampler": "random"}}}, "views.main.mask.sampler"),
    ],
)
def test_a_key_in_the_wrong_place_names_its_place(values: dict[str, Any], right: str) -> None:
    assert f"did you mean {right}?" in complaint(values)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mask", "views.main.mask"),
        ("momentum", "method.momentum"),
        ("data.augmentation", "views.main.crop_scale"),
        ("data.crop_scale", "views.main.crop_scale"),
        ("data.flip_probability", "views.main.flip"),
        ("model.predictor_width", "method.predictor.width"),
        ("model.predictor_depth", "method.predictor.depth"),
        ("model.predictor_heads", "method.predictor.heads"),
        ("model.predictor_positions", "method.predictor.positions"),
        ("method.regularizer_weight", "method.regularizer.weight"),
        ("method.regularizer_on", "method.regularizer.acts_on"),
        ("optim.warmup_epochs", "optim.warmup_frac"),
        ("train.epochs", "train.length"),
        ("train.max_steps", "train.length"),
        ("train.max_minutes", "train.length"),
    ],
)
def test_a_change_by_a_name_of_version_0_1_names_todays(old: str, new: str) -> None:
    assert new in recipe_keys()
    with pytest.raises(ValueError, match=f"unknown key {old}; did you mean {new}\\?"):
        with_changes(load_recipe("demo"), {old: 1})


@pytest.mark.parametrize("owner", METHODS)
def test_a_key_of_another_method_is_unknown_and_its_method_is_named(owner: str) -> None:
    for key in methods.SECTIONS[owner].model_fields:
        owners = [name for name in METHODS if key in methods.SECTIONS[name].model_fields]
        for other in set(METHODS) - set(owners):
            said = complaint({"version": 3, "method": {"name": other, key: 1}})
            assert f"unknown key method.{key} (it belongs to method.name {' and '.join(owners)})" in said


def fill(method: str) -> Recipe:
    """A recipe of a method in which no group is off."""
    values = {"method.name": method, "health.probe": PROBE}
    return build_recipe(nest(values | ({"method.regularizer": TERM} if "method.regularizer" in recipe_keys(method) else {})))


@pytest.mark.parametrize("method", METHODS)
def test_recipe_keys_are_all_keys_and_groups_of_a_resolved_recipe(method: str) -> None:
    resolved = yaml.safe_load(to_yaml(fill(method)))
    views = [f"views.{group}" for group in methods.SECTIONS[method].VIEWS]
    groups = list_sections(resolved) - {"views", *views, *(key for key in resolved if isinstance(resolved[key], dict))}
    keys = recipe_keys(method)
    masks = {f"{group}.mask" for group in views}
    leaves = {key for key in flatten(resolved) if key not in masks}
    assert set(keys) == leaves | groups | masks | {f"{mask}.{key}" for mask in masks for key in Mask.model_fields}
    assert len(keys) == len(set(keys))
    assert set(keys) <= set(recipe_keys()) and set().union(*map(recipe_keys, METHODS)) == set(recipe_keys())


def test_keys_are_explained() -> None:
    lines = list(explain_keys())
    for key in recipe_keys():
        section_of = any(other.startswith(f"{key}.") for other in recipe_keys())
        found = [line for line in lines if line.startswith(f"{key} = ")]
        assert found or section_of, key
        assert all(line.partition(": ")[2] for line in found), key
    (line,) = explain_keys("optim.lr_batch", load_recipe("paper_vit_base_16"))
    assert line.startswith("optim.lr_batch_size = 2048: ")
    assert not any("temperature" in line for line in explain_keys("method", load_recipe("demo")))
    with pytest.raises(ValueError, match="no recipe key begins with 'optics'"):
        list(explain_keys("optics"))


# --- every key is read


@contextmanager
def record_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The dotted keys of recipes that are read meanwhile, other than to check a recipe that is built."""
    places = {Recipe: ""} | dict.fromkeys(methods.SECTIONS.values(), "method.") | {ViewGroup: "views.main."}
    for holder, prefix in list(places.items()):
        for name, field in holder.model_fields.items():
            if (inner := find_section(field.annotation)) is not None:
                places.setdefault(inner, f"{prefix}{name}.")
    places[sections.Probe] = "health.probe."
    read: set[str] = set()

    def get(section: base.Section, name: str) -> Any:
        kind = type(section)
        if name in kind.model_fields:
            caller = sys._getframe(1)
            while caller is not None and caller.f_code.co_name != "build_recipe":
                caller = caller.f_back
            if caller is None:
                read.add(places[kind] + name)
        return object.__getattribute__(section, name)

    with monkeypatch.context() as patch:
        patch.setattr(base.Section, "__getattribute__", get)
        yield read


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of eight grey images."""
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(16):
        (folder / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 16), np.uint8)).save(folder / "ab"[number % 2] / f"{number}.png")
    images = [{"id": n, "file_name": f"{'ab'[n % 2]}/{n}.png", "width": 16, "height": 16} for n in range(16)]
    boxes = [{"id": n + 1, "image_id": n, "category_id": 1 + n % 2, "bbox": [2, 3, 8, 9]} for n in range(16)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


UNION = {"sampler": "union", "num_contexts": 2, "context_scale": [0.1, 0.2], "num_targets": 2, "target_scale": [0.1, 0.2]}


@pytest.mark.parametrize("method", METHODS)
def test_every_key_is_read_in_a_run_of_two_steps(
    method: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`openjepa recipes` shows the description; recipe/migrate.py reads the version, of plain values."""
    monkeypatch.setattr(hooks, "_peak", lambda *_: 1e12)
    masked = {"method.regularizer": TERM, "views.main.mask": UNION} if method in ("ijepa", "mae") else {}
    has_objects = methods.SECTIONS[method].NEEDS_OBJECTS
    changes = ("colour",) if has_objects else ("colour", "rand_augment")
    recipe = with_changes(small_recipe(method), masked | {
        "data.image_size": 16, "model.width": 16, "train.length": "2steps", "train.device": "cpu", "train.precision": "fp32",
        **{f"views.{group}.{key}": 1 for group in methods.SECTIONS[method].VIEWS for key in changes},
        "health.num_images": 8,
        "health.probe": {"train": str(photos), "test": str(photos)},
    })  # fmt: skip
    with record_reads(monkeypatch) as read:
        pretrain(str(photos), recipe, tmp_path / "run", console=Console(quiet=True))
        main(["recipes"])
    capsys.readouterr()
    keys = {re.sub(r"^views\.\w+\.", "views.main.", key) for key in recipe_keys(method)}  # reads do not tell groups apart
    unmasked = {key for key in keys if key.startswith("views.main.mask.") and not masked}
    refused = {"views.main.crop_scale", "views.main.rand_augment", "views.main.rand_magnitude"} if has_objects else set()
    assert keys - unmasked - refused - read == {"version"}


def test_a_key_that_nobody_reads_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with record_reads(monkeypatch) as read:
        recipe = with_changes(small_recipe("ijepa"), {"optim.lr": 1e-4})
        assert read == {"name", "method.name"}  # to check a recipe is not to use it; its name is for the message
        make_method(recipe)
    assert {"model.width", "model.depth", "method.predictor.width", "data.channels"} <= read
    assert not {key for key in read if key.startswith(("optim.", "views.main.mask.", "method.momentum.", "health."))}


# --- YAML


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Any value of a key's type, in ranges that every key takes."""
    kind, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if kind in {types.UnionType, typing.Union}:
        return st.one_of([values_of(branch) for branch in inner])
    if kind is typing.Annotated:
        return values_of(inner[0])
    if kind is typing.Literal:
        return st.sampled_from(inner)
    if kind is tuple:
        return st.tuples(*map(values_of, inner)).map(sorted)
    floats = st.floats(1e-9, 0.99)
    return {int: st.integers(4, 10**6), float: floats, str: st.text(max_size=20), bool: st.booleans(), type(None): st.none()}[
        annotation
    ]


# These must fit together, with each other or with the method; test_values_that_do_not_fit_together has them.
BOUND = {"data.image_size", "data.batch_size", "train.accumulation_steps", "train.length", "method.name",
         "method.predictor.width", "method.predictor.heads", "method.momentum.start", "method.momentum.end",
         "views.main.mask.fidelity", "views.main.mask.per_view",
         *(f"views.{group}.{key}" for section in methods.SECTIONS.values() for group in section.VIEWS
           for key in ("count", "size", "mask", "rand_augment")),
         "optim.lr", "optim.start_lr", "optim.final_lr", "optim.betas", "data.white_level", "data.black_level"}  # fmt: skip
BOUND |= {f"model.{key}" for key in sections.Model.model_fields}
BOUND_IN = {("detection", "views.main.crop_scale"), ("detection", "method.channels")}
OPTIONAL = {"method.regularizer": methods.Regularizer, "health.probe": sections.Probe}  # groups that may be null


def free_keys(method: str) -> dict[str, Any]:
    """Keys of a method's recipe whose values fit whatever the others are, with the annotation of each."""
    found: dict[str, Any] = {}

    def walk(section: type[base.Section], prefix: str) -> None:
        for name, field in section.model_fields.items():
            key, inner = prefix + name, find_section(field.annotation)
            if inner is not None and key not in OPTIONAL and not key.endswith(".mask"):
                walk(inner, f"{key}.")
            elif "." in key and key not in BOUND and (method, key) not in BOUND_IN:
                found[key] = field.annotation

    kinds = {name: find_section(field.annotation) for name, field in Recipe.model_fields.items() if name != "views"}
    kinds |= {f"views.{group}": ViewGroup for group in methods.SECTIONS[method].VIEWS} | {"method": methods.SECTIONS[method]}
    kinds |= {"views.main.mask": Mask} if method in ("ijepa", "mae") else {}
    for name, kind in kinds.items():
        if kind is not None:
            walk(kind, f"{name}.")
    return found


FREE = {method: free_keys(method) for method in METHODS}
LENGTHS = st.one_of(
    st.integers(1, 10**9).map("{}steps".format), st.tuples(st.floats(1e-3, 1e6), st.sampled_from(["epochs", "minutes"])).map(
        lambda pair: f"{pair[0]} {pair[1]}"
    ),
)  # fmt: skip


@st.composite
def recipe_values(draw: st.DrawFn) -> dict[str, Any]:
    method = draw(st.sampled_from(METHODS))
    values: dict[str, Any] = {"method.name": method, "train.length": draw(LENGTHS)}
    for key in draw(st.lists(st.sampled_from(sorted(FREE[method])), unique=True)):
        if (section := OPTIONAL.get(key)) is None:
            values[key] = draw(values_of(FREE[method][key]))
        elif draw(st.booleans()):
            values[key] = {name: draw(values_of(field.annotation)) for name, field in section.model_fields.items()}
        else:
            values[key] = None
    values["description"] = draw(st.text(max_size=30))
    sides = draw(st.one_of(st.integers(1, 9), st.tuples(st.integers(1, 9), st.integers(1, 9))))
    values["data.image_size"] = 16 * sides if isinstance(sides, int) else [16 * side for side in sides]
    values["data.batch_size"] = draw(st.one_of(st.integers(2, 10**6), st.just("auto")))
    return nest(values)


def test_most_keys_are_drawn() -> None:
    for method in METHODS:
        assert len(FREE[method]) >= 33, FREE[method]
        assert FREE[method].keys() <= set(recipe_keys(method))


@settings(max_examples=150, deadline=None)
@given(recipe_values())
def test_yaml_round_trip(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    recipe = build_recipe(values)
    file = tmp_path_factory.mktemp("recipe") / "any.yaml"
    file.write_text(to_yaml(recipe), "utf-8")
    assert load_recipe(file) == recipe
    assert changed_keys(recipe, load_recipe(file)) == {}


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-3 as text; a recipe must not."""
    recipe = load_recipe(write(tmp_path, "mine.yaml", "optim: {lr: 1e-3, betas: [0.9, 95e-2]}\ndata: {image_size: [64, 96]}\n"))
    assert (recipe.name, recipe.optim.lr, recipe.optim.betas, recipe.data.size, recipe.grid) == (
        "mine",
        1e-3,
        (0.9, 0.95),
        (64, 96),
        (4, 6),
    )


@pytest.mark.parametrize(
    ("words", "length", "written"),
    [
        ("300epochs", (300.0, "epochs"), "300epochs"),
        ("300 epochs", (300.0, "epochs"), "300epochs"),
        ("1 epoch", (1.0, "epochs"), "1epochs"),
        ("0.25 Epochs", (0.25, "epochs"), "0.25epochs"),
        ("1e4steps", (10_000.0, "steps"), "10000steps"),
        ("123456789steps", (123_456_789.0, "steps"), "123456789steps"),
        (" 5.5minutes ", (5.5, "minutes"), "5.5minutes"),
    ],
)
def test_lengths_as_people_write_them(words: str, length: tuple[float, str], written: str) -> None:
    assert parse_length(words) == length
    train = build_recipe({"train": {"length": words}}).train
    assert (train.length, train.run_length) == (written, length)


def test_shipped_recipes_load_and_go_round(tmp_path: Path) -> None:
    assert set(SHIPPED) <= set(list_recipes())
    for name in list_recipes():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description
        assert load_recipe(write(tmp_path, f"{name}.yaml", to_yaml(recipe))) == recipe


def test_extends_goes_through_a_chain_beside_the_file(tmp_path: Path) -> None:
    text = "extends: paper_vit_base_16\noptim: {lr: 0.5, final_lr: 0.0625}\nviews: {main: {mask: {num_targets: 3}}}\n"
    write(tmp_path, "deep/base.yaml", text)
    write(tmp_path, "deep/middle.yaml", "extends: base.yaml\noptim: {lr: 0.125}\n")
    top = write(tmp_path, "top.yaml", "extends: deep/middle.yaml\nviews: {main: {mask: {num_contexts: 2}}}\n")
    recipe = load_recipe(top)
    assert recipe.name == "top"
    assert recipe.mask is not None
    assert (recipe.optim.lr, recipe.optim.final_lr, recipe.mask.num_targets, recipe.mask.num_contexts) == (0.125, 0.0625, 3, 2)
    assert set(changed_keys(load_recipe("paper_vit_base_16"), recipe)) == {
        "name", "optim.lr", "optim.final_lr", "views.main.mask.num_targets", "views.main.mask.num_contexts"}  # fmt: skip


@pytest.mark.parametrize("chain", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_a_circle_of_extends_stops(tmp_path: Path, chain: list[str]) -> None:
    for name, extended in zip(chain, chain[1:] + chain[:1], strict=True):
        write(tmp_path, f"{name}.yaml", f"extends: ../{tmp_path.name}/{extended}.yaml\n")
    with pytest.raises(ValueError, match="extends itself"):
        load_recipe(tmp_path / "a.yaml")


# --- changes


def test_words_of_a_command_line_are_values() -> None:
    words = ["train.length=300steps", "views.main.crop_scale=[0.3, 1]", "optim.clip-grad-norm=null", "train.compile=true",
             "method.regularizer={name: sigreg, weight: 1e-2}", "description=a = b", "name="]  # fmt: skip
    changes = read_assignments(words)
    assert changes == {
        "train.length": "300steps", "views.main.crop_scale": [0.3, 1], "optim.clip_grad_norm": None, "train.compile": True,
        "method.regularizer": {"name": "sigreg", "weight": "1e-2"}, "description": "a = b", "name": None,
    }  # fmt: skip
    del changes["name"]
    recipe = with_changes(load_recipe("demo"), changes)
    assert recipe.views["main"].crop_scale == (0.3, 1.0) and recipe.optim.clip_grad_norm is None
    assert recipe.method.regularizer == methods.Regularizer(name="sigreg", weight=0.01, acts_on="tokens")
    for word in ("train.length", "=5"):
        with pytest.raises(ValueError, match="is not KEY=VALUE"):
            read_assignments([word])
    with pytest.raises(ValueError, match="optim.betas: the value '\\[0.9' cannot be read as YAML"):
        read_assignments(["optim.betas=[0.9"])


def kind(group: ViewGroup) -> tuple[int, bool, bool, bool]:
    many = group.mask is not None and group.mask.per_view > 1
    return group.count, group.mask is None, many, group.crop_scale is None


@pytest.mark.parametrize("shipped", ["demo", "small_10k", "simclr_small", "supervised_small"])
@pytest.mark.parametrize("name", METHODS)
def test_another_method_keeps_what_fits_and_brings_the_rest(shipped: str, name: str) -> None:
    """Its name alone makes a recipe of another method, with the same images, encoder and run."""
    before = load_recipe(shipped)
    made = with_changes(before, {"method.name": name})
    assert made.method.name == name
    for section in ("data", "model", "optim", "train", "checkpoint", "health"):
        assert getattr(made, section) == getattr(before, section)
    old, new = methods.SECTIONS[before.method.name], methods.SECTIONS[name]
    kept = (old.model_fields.keys() if old is not new else set()) & new.model_fields.keys() - {"name"}
    assert all(getattr(made.method, key) == getattr(before.method, key) for key in kept)
    brought = {key: field.default for key, field in new.model_fields.items() if key not in {*kept, "name"}}
    assert old is new or all(getattr(made.method, key) == value for key, value in brought.items())
    for group, default in new.VIEWS.items():
        is_kept = group in old.VIEWS and kind(old.VIEWS[group]) == kind(default)
        assert made.views[group] == (before.views[group] if is_kept else default)


def test_what_another_method_has_not_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    """In one breath with the method's name, or over a file that names the method: nothing is ignored."""
    for changes, words in (
        ({"method.name": "ijepa", "method.targets": "pixels"}, "unknown key method.targets (it belongs to method.name mae)"),
        ({"method.targets": "features"}, "method.targets"),
        ({"method.momentum.start": 0.9}, "unknown key method.momentum (it belongs to method.name ijepa and byol"),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is looked at below)
            with_changes(load_recipe("small_10k"), changes)
        assert words in str(caught.value)
        with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is looked at below)
            load_recipe(write(tmp_path, "mine.yaml", yaml.safe_dump({"extends": "small_10k"} | nest(changes))))
        assert words in str(caught.value)


def test_a_group_set_as_a_whole_comes_before_its_keys() -> None:
    recipe = with_changes(load_recipe("demo"), {"method.regularizer.weight": 0.1, "method.regularizer": {"name": "sigreg"}})
    assert recipe.method.regularizer == methods.Regularizer(name="sigreg", weight=0.1, acts_on="tokens")
    assert with_changes(recipe, {"method.regularizer": None}).method.regularizer is None


def test_changed_keys_say_old_and_new() -> None:
    old = build_recipe({})
    new = build_recipe({"optim": {"lr": 0.5}, "data": {"image_size": [224, 448]}, "description": "wider"})
    assert changed_keys(old, new) == {
        "description": ("", "wider"), "data.image_size": (224, [224, 448]), "optim.lr": (1e-3, 0.5)}  # fmt: skip
    assert changed_keys(new, old) == {key: (was, now) for key, (now, was) in changed_keys(old, new).items()}
    changes = changed_keys(old, build_recipe({"method": {"regularizer": TERM}}))
    assert {key: pair for key, pair in changes.items() if key != "method.regularizer"} == {
        "method.regularizer.name": (None, "vicreg"), "method.regularizer.weight": (None, 0.3),
        "method.regularizer.acts_on": (None, "tokens")}  # fmt: skip


# --- wrong values


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim: {lr: fast}", "optim.lr = 'fast'"),
        ("optim: {lr: yes}", "optim.lr = True: true and false"),
        ("optim: {lr: .nan}", "optim.lr = nan"),
        ("optim: {final_lr: .inf}", "optim.final_lr = inf"),
        ("optim: {lr: -1}", "optim.lr = -1"),
        ("optim: {betas: [0.9]}", "optim.betas"),
        ("optim: 5", "optim = 5: it is a group of keys"),
        ("optim:", "optim = None"),
        ("method: 5", "method = 5: it is a group of keys"),
        ("method:", "method = None"),
        ("views: 5", "views = 5: it is a group of keys"),
        ("views:", "views = None"),
        ("views: {main: 5}", "views.main = 5: it is a group of keys"),
        ("views: {main: }", "views.main = None"),
        ("views: {main: {mask: 5}}", "views.main.mask = 5: it is a group of keys"),
        ("views: {main: {jitter: [0.4, 0.4, 0.4]}}", "views.main.jitter"),
        ("views: {main: {colour: 1.5}}", "views.main.colour = 1.5"),
        ("method: {regularizer: 5}", "method.regularizer = 5: it is a group of keys"),
        ("health: {probe: 5}", "health.probe = 5: it is a group of keys"),
        ("health: {probe: {train: photos}}", "health.probe.test is missing"),
        ("data: {image_size: large}", "data.image_size = 'large'"),
        ("data: {batch_size: 2.5}", "data.batch_size = 2.5"),
        ("data: {batch_size: 0}", "data.batch_size = 0"),
        ("data: {batch_size: automatic}", "data.batch_size = 'automatic'"),
        ("model: {encoder: enormous}", "'tiny', 'small', 'base', 'large', 'huge' or 'giant'"),
        ("method: {name: mea}", "method.name = 'mea': there is no such method; did you mean mae?"),
        ("method: {name: [mae]}", "method.name"),
        ("train: {length: 5}", "train.length = 5: a length is a number above 0 with its unit"),
        ("train: {length: 5hours}", "train.length = '5hours': a length is a number above 0 with its unit"),
        ("train: {length: 0steps}", "train.length = '0steps'"),
        ("train: {length: -1epochs}", "train.length = '-1epochs'"),
        ("train: {length: 1e999minutes}", "train.length = '1e999minutes'"),
        ("train: {length: 2.5steps}", "a run has a whole number of steps"),
        ("train: {length: yes}", "train.length = True"),
        ("train:\n  length:", "train.length = None"),
        ("version: 2", "version = 2"),
        ("1: 2", "1 is not the name of a section"),
        ("optim: {1: 2}", "optim"),
        ("- a\n- b", "a recipe is a mapping of sections, found list"),
        ("just words", "a recipe is a mapping of sections, found str"),
        ("optim: {lr: 1\nviews:", "bad.yaml line 2: not valid YAML"),
        ("optim: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("extends: paper_vit_bse_16", "no recipe or file 'paper_vit_bse_16'; did you mean paper_vit_base_16?"),
        ("extends: [a, b]", "no recipe or file"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is looked at below)
        load_recipe(write(tmp_path, "bad.yaml", text))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("below", ["method: 5", "method:", "method: {name: [1]}", "method: {name: 5}", "views: 5"])
@pytest.mark.parametrize("above", ["method: {name: mae}", "method: {name: [mae]}", "method: 5", "optim: {lr: 0.1}"])
def test_a_wrong_base_is_replaced_or_refused_in_one_line(tmp_path: Path, below: str, above: str) -> None:
    write(tmp_path, "base.yaml", below)
    file = write(tmp_path, "bad.yaml", f"extends: base.yaml\n{above}")
    try:
        name = load_recipe(file).method.name
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017 (the other outcome is below)
    else:
        assert name == "mae" and below.startswith("method") and above == "method: {name: mae}"


def test_files_that_are_not_text(tmp_path: Path) -> None:
    for content in (b"\x89PNG\r\n\x1a\n\x00", b"\xff\xfe\x00"):
        (tmp_path / "bad.yaml").write_bytes(content)
        with pytest.raises(ValueError, match="bad.yaml"):
            load_recipe(tmp_path / "bad.yaml")
    for missing in (tmp_path, tmp_path / "none.yaml", Path("seed_vit_base_61")):
        with pytest.raises(ValueError, match="no recipe or file"):
            load_recipe(missing)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data.image_size": 225}, "data.image_size 225 is not a multiple of model.patch_size 16; try 224 or 240"),
        ({"data.image_size": [224, 100]}, "100 is not a multiple of model.patch_size 16; try 96 or 112"),
        ({"data.image_size": 0}, "data.image_size 0"),
        ({"views.main.size": 100}, "views.main.size 100 is not a multiple of model.patch_size 16; try 96 or 112"),
        ({"views.main.size": [96, 0]}, "views.main.size 0"),
        ({"views.main.size": 112}, "views.main.size 112"),  # a predictor's positions are those of data.image_size
        ({"model.patch_size": 15}, "try 210 or 225"),
        ({"model.width": 100, "model.heads": 3}, "model.width 100 is not a multiple of its 3 heads; try 99"),
        ({"model.width": 102, "model.heads": 3}, "model.width 102 is not a multiple of 4"),
        ({"method.predictor.width": 100}, "method.predictor.width 100 is not a multiple of its 12 heads; try 96"),
        ({"data.batch_size": 10, "train.accumulation_steps": 4}, "data.batch_size 10 is not a multiple of"),
        ({"method.regularizer": {"name": "vicreg"}}, "method.regularizer.weight is missing"),
        ({"method.regularizer": {"weight": 0.1}}, "method.regularizer.name is missing"),
        ({"method.regularizer": {"name": "vicreg", "weight": 0}}, "method.regularizer.weight = 0"),
        (
            {"method.name": "mae", "method.momentum": {"start": 0.99}},
            "unknown key method.momentum (it belongs to method.name ijepa and",
        ),
        ({"method.name": "mae", "model.patch_size": 1, "data.channels": 1}, "method.targets normalised_pixels needs more"),
        ({"method.name": "simclr", "method.predictor": {"width": 8}}, "unknown key method.predictor (it belongs to"),
        ({"method.name": "simclr", "views.main.mask": {"sampler": "random"}}, "mask does not go with method.name simclr"),
        ({"method.name": "simclr", "views.main.count": 3}, "views.main.count 3: method.name simclr takes 2"),
        ({"views.main.count": 2}, "views.main.count 2: method.name ijepa takes 1"),
        ({"views.main.mask": None}, "views.main.mask does not go with method.name ijepa, which needs one"),
        ({"views.main.mask.target_scale": [0.3, 0.2]}, "mask.target_scale (0.3, 0.2) must satisfy 0 < smallest <= largest <= 1"),
        ({"views.main.mask.context_scale": [0.5, 1.5]}, "mask.context_scale (0.5, 1.5)"),
        ({"views.main.mask.target_aspect": [-1, 1]}, "mask.target_aspect (-1, 1)"),
        ({"views.main.mask.fidelity": "exact"}, "views.main.mask.fidelity = 'exact'"),
        ({"views.main.crop_scale": [0, 1]}, "views.main.crop_scale (0, 1)"),
        ({"optim.weight_decay": [-0.05, 0.4]}, "optim.weight_decay"),
        ({"optim.predictor_weight_decay": [0.04, -0.4]}, "optim.predictor_weight_decay"),
        ({"optim.betas": [1.0, 0.999]}, "optim.betas"),
        ({"optim.betas": [0.9, -0.1]}, "optim.betas"),
        ({"optim.warmup_frac": 1.5}, "optim.warmup_frac = 1.5"),
        ({"data.white_level": 0.5, "data.black_level": 0.5}, "white_level 0.5 must be above black_level 0.5"),
        ({"optim.lr": 1e-4, "optim.final_lr": 1e-3}, "optim.final_lr 0.001 is above lr 0.0001"),
        ({"optim.lr": 1e-4, "optim.start_lr": 2e-4}, "optim.start_lr 0.0002 is above lr 0.0001"),
        ({"method.momentum": {"start": 0.996, "end": 0.99}}, "method.momentum.end 0.99 is below start 0.996"),
        ({"train.seed": 2**32}, "train.seed"),
        ({"train.accumulation_steps": 2, "method.regularizer": TERM}, "does not go with method.regularizer.name vicreg"),
        ({"train.accumulation_steps": 2, "method.name": "mae", "method.targets": "pca"}, "does not go with method.targets pca"),
        ({"train.accumulation_steps": 2, "method.name": "simclr"}, "does not go with method.name simclr"),
        ({"data.batch_size": 1, "method.name": "simclr"}, "data.batch_size 1 does not go with method.name simclr"),
        (
            {"data.batch_size": 1, "method.regularizer": TERM | {"acts_on": "pooled"}},
            "data.batch_size 1 does not go with method.regularizer.acts_on pooled (use tokens)",
        ),
    ],
)
def test_values_that_do_not_fit_together(values: dict[str, Any], words: str) -> None:
    assert words in complaint(nest(values))


# --- recipes of version 0.1


OLD: dict[str, Any] = yaml.safe_load("""
  name: custom
  description: ''
  data: {image_size: 224, channels: 3, batch_size: 256, workers: 2, augmentation: minimal, crop_scale: [0.3, 1.0],
         flip_probability: 0.5, normalization: imagenet}
  model: {encoder: base, width: null, depth: null, heads: null, patch_size: 16, predictor_width: 384, predictor_depth: 6,
          predictor_heads: 12, predictor_positions: own, residual_rescale: false}
  mask: {sampler: multiblock, num_contexts: 1, context_scale: [0.85, 1.0], context_aspect: [1.0, 1.0], num_targets: 4,
         target_scale: [0.15, 0.2], target_aspect: [0.75, 1.5], fidelity: unbiased}
  method: {name: ijepa, targets: features, target_input: image, target_norm: layer, target_layers: 1, predict: joint, loss: mse,
           regularizer: none, regularizer_on: tokens, regularizer_weight: 0.0}
  optim: {lr: 0.001, lr_batch_size: null, start_lr: 0.0, final_lr: 0.0, warmup_epochs: 30.0, weight_decay: [0.05, 0.05],
          predictor_weight_decay: [0.04, 0.04], layer_decay: 1.0, clip_grad_norm: null, betas: [0.9, 0.999], eps: 1.0e-08}
  momentum: {schedule: linear, start: 0.99, end: 1.0}
  train: {epochs: 300.0, max_steps: null, max_minutes: null, precision: bf16, accumulation_steps: 1, compile: false, fp8: false,
          activation_checkpointing: none, device: auto, seed: 0, log_every_steps: 10}
  checkpoint: {every_steps: null, every_epochs: 10, keep: 2}
  health: {every_steps: 100, num_images: 256, probe_every_steps: 1000}
""")
TODAY: dict[str, Any] = yaml.safe_load("""
  name: custom
  description: ''
  version: 3
  data: {image_size: 224, channels: 3, batch_size: 256, workers: 2, normalization: imagenet, white_level: auto,
         black_level: 0.0, nodata: null, layout: channels_last, pages: first, window: file}
  views:
    main: {count: 1, size: null, crop_scale: [0.3, 1.0], flip: 0.5, colour: 0.0, jitter: [0.4, 0.4, 0.4, 0.1], grey: 0.0,
           blur: 0.0, solarize: 0.0, rand_augment: 0, rand_magnitude: 9.0,
           mask: {sampler: multiblock, num_contexts: 1, context_scale: [0.85, 1.0], context_aspect: [1.0, 1.0],
           num_targets: 4, target_scale: [0.15, 0.2], target_aspect: [0.75, 1.5], fidelity: unbiased, per_view: 1}}
  model: {encoder: base, width: null, depth: null, heads: null, patch_size: 16}
  method: {name: ijepa, predictor: {width: 384, depth: 6, heads: 12, positions: own}, predict: joint, loss: mse,
           regularizer: null, target_input: image, target_norm: layer, pool_targets: false,
           momentum: {schedule: linear, start: 0.99, end: 1.0}}
  optim: {lr: 0.001, lr_batch_size: null, start_lr: 0.0, final_lr: 0.0, warmup_frac: 0.1, weight_decay: [0.05, 0.05],
          predictor_weight_decay: [0.04, 0.04], layer_decay: 1.0, clip_grad_norm: null, betas: [0.9, 0.999], eps: 1.0e-08}
  train: {length: 300epochs, precision: bf16, accumulation_steps: 1, activation_checkpointing: none, compile: false, fp8: false,
          device: auto, seed: 0, log_every_steps: 10}
  checkpoint: {every_steps: null, every_epochs: 10, keep: 2}
  health: {every_steps: 100, num_images: 256, probe: null, probe_every_steps: 1000}
""")
OLD_TERM = {"method.regularizer": "vicreg", "method.regularizer_weight": 0.3}
NEW_TERM = {"method.regularizer.name": "vicreg", "method.regularizer.weight": 0.3, "method.regularizer.acts_on": "tokens"}
NOT_MAES = {"method.target_input", "method.target_norm", "method.pool_targets",
            "method.momentum.schedule", "method.momentum.start", "method.momentum.end"}  # fmt: skip


def make_old(changes: dict[str, Any]) -> dict[str, Any]:
    """A whole recipe as version 0.1 recorded it: every key, and no version."""
    return nest(flatten(OLD) | changes)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {}),
        ({"version": 2}, {}),
        ({"name": "mine", "description": "of last year"}, {"name": "mine", "description": "of last year"}),
        ({"method.targets": "pooled"}, {"method.pool_targets": True}),
        ({"method.target_norm": "none"}, {"method.target_norm": "none"}),
        ({"method.target_norm": "batch"}, {}),
        ({"method.target_layers": 3, "model.residual_rescale": True}, {}),
        ({"data.augmentation": "none"}, {"views.main.crop_scale": None, "views.main.flip": 0.0}),
        ({"data.augmentation": "moderate"}, {"views.main.colour": 0.8}),
        (
            {"data.augmentation": "strong", "data.crop_scale": [0.2, 0.9], "data.flip_probability": 0.25},
            {"views.main.colour": 0.8, "views.main.blur": 0.5, "views.main.solarize": 0.2, "views.main.crop_scale": [0.2, 0.9],
             "views.main.flip": 0.25},
        ),
        ({"mask.sampler": "union"}, {"views.main.mask.sampler": "union"}),
        ({"mask.num_targets": 3}, {"views.main.mask.num_targets": 3}),
        (
            {"model.predictor_width": 96, "model.predictor_depth": 2, "model.predictor_heads": 3,
             "model.predictor_positions": "projected", "model.width": 48, "model.heads": 3},
            {"method.predictor.width": 96, "method.predictor.depth": 2, "method.predictor.heads": 3,
             "method.predictor.positions": "projected", "model.width": 48, "model.heads": 3},
        ),
        (OLD_TERM, NEW_TERM),
        (OLD_TERM | {"method.regularizer_on": "pooled"}, NEW_TERM | {"method.regularizer.acts_on": "pooled"}),
        (OLD_TERM | {"method.regularizer_on": "predictions"}, NEW_TERM),
        ({"momentum.schedule": "fixed", "momentum.end": 0.5}, {"method.momentum.schedule": "fixed", "method.momentum.end": 0.5}),
        ({"train.epochs": 12.5, "optim.warmup_epochs": 2.5}, {"train.length": "12.5epochs", "optim.warmup_frac": 0.2}),
        ({"train.epochs": 12.5, "optim.warmup_epochs": 20.0}, {"train.length": "12.5epochs", "optim.warmup_frac": 1.0}),
        ({"train.max_steps": 5}, {"train.length": "5steps"}),
        ({"train.max_minutes": 2.5}, {"train.length": "2.5minutes"}),
        ({"train.max_minutes": 2.5, "train.max_steps": 5}, {"train.length": "2.5minutes"}),
        ({"train.activation_checkpointing": True}, {"train.activation_checkpointing": "full"}),
    ],
)  # fmt: skip
def test_a_whole_recipe_of_version_0_1_says_the_same_in_todays_words(old: dict[str, Any], new: dict[str, Any]) -> None:
    today = flatten(TODAY) | new
    if "method.regularizer.name" in new:
        del today["method.regularizer"]
    assert flatten(build_recipe(make_old(old)).model_dump(mode="json")) == today


@pytest.mark.parametrize("name", ["ijepa", "mae"])
@pytest.mark.parametrize(
    ("targets", "norm", "today"), [("pixels", "layer", "normalised_pixels"), ("pixels", "none", "pixels"), ("pca", "none", "pca")]
)
def test_old_pixels_of_ijepa_and_mae_are_maes_and_nothing_else_changes(name: str, targets: str, norm: str, today: str) -> None:
    """Version 0.1 had pixels as targets of I-JEPA; MAE's were pixels whatever `targets` said."""
    old = {"method.name": name, "method.targets": targets, "method.target_norm": norm}
    if name == "mae" and targets == "pixels":
        old["method.targets"] = "features"
    expected = {key: value for key, value in flatten(TODAY).items() if key not in NOT_MAES}
    expected |= {"method.name": "mae", "method.targets": today}
    assert flatten(build_recipe(make_old(old)).model_dump(mode="json")) == expected


def test_what_version_0_1_accepted_still_loads() -> None:
    """A checkpoint's recipe cannot be edited by its owner."""
    assert build_recipe(make_old(OLD_TERM | {"train.accumulation_steps": 4})).train.accumulation_steps == 1
    assert build_recipe(make_old({"train.accumulation_steps": 4})).train.accumulation_steps == 4
    optim = build_recipe(make_old({"optim.lr": 1e-4, "optim.start_lr": 2e-4, "optim.final_lr": 1e-3})).optim
    assert (optim.lr, optim.start_lr, optim.final_lr) == (1e-4, 1e-4, 1e-4)


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("mask: {num_targets: 3}", {"views.main.mask.num_targets": 3}),
        ("momentum: {start: 0.9}", {"method.momentum.start": 0.9}),
        ("model: {predictor_depth: 1, depth: 2}", {"method.predictor.depth": 1, "model.depth": 2}),
        ("method: {target_norm: none}\nmask: {num_targets: 3}", {"method.target_norm": "none", "views.main.mask.num_targets": 3}),
        ("method: {regularizer: none}", {"method.regularizer": None}),
        ("method: {regularizer_weight: 0.1}", {"method.regularizer.weight": 0.1}),
        ("method: {regularizer: sigreg}", {"method.regularizer.name": "sigreg"}),
        ("method: {regularizer_on: pooled}", {"method.regularizer.acts_on": "pooled"}),
        ("train: {max_minutes: null, max_steps: 300}", {"train.length": "300steps"}),
        ("train: {epochs: 20, max_minutes: null}", {"train.length": "20epochs"}),
        ("train: {epochs: 20}\noptim: {warmup_epochs: 5}", {"train.length": "20epochs", "optim.warmup_frac": 0.25}),
        # Beside today's words, which win where both say something.
        (
            "mask: {num_targets: 3}\nviews: {main: {mask: {num_contexts: 2}}}",
            {"views.main.mask.num_targets": 3, "views.main.mask.num_contexts": 2},
        ),
        ("momentum: {start: 0.9}\nmethod: {momentum: {end: 0.95}}", {"method.momentum.start": 0.9, "method.momentum.end": 0.95}),
        (
            "model: {predictor_depth: 1}\nmethod: {predictor: {width: 24}}",
            {"method.predictor.depth": 1, "method.predictor.width": 24},
        ),
        ("train: {epochs: 10, length: 5steps}", {"train.length": "5steps"}),
        ("data: {augmentation: none}", {}),
        ("data: {augmentation: minimal}", {"views.main.crop_scale": [0.3, 1.0], "views.main.flip": 0.5}),
        (
            "data: {augmentation: moderate, crop_scale: [0.5, 1.0]}",
            {"views.main.crop_scale": [0.5, 1.0], "views.main.flip": 0.5, "views.main.colour": 0.8},
        ),
    ],
)
def test_a_file_of_differences_of_version_0_1_changes_what_it_did(tmp_path: Path, text: str, changes: dict[str, Any]) -> None:
    """Over the demo, whose images version 0.1 neither cropped nor mirrored, and whose regulariser acts on tokens."""
    recipe = load_recipe(write(tmp_path, "demo.yaml", f"extends: demo\n{text}\n"))
    assert recipe == with_changes(load_recipe("demo"), changes)


@pytest.mark.parametrize(
    "text",
    [
        "data: {augmentation: minimall}",
        "data: {augmentation: [none]}",
        "method: {name: mae, target_norm: nne}",
        "method: {name: mae, targets: pixls, target_norm: layer}",
        "method: {targets: featurs}\nmask: {num_targets: 3}",
        "method: {targets: [features]}\nmask: {num_targets: 3}",
        "train: {max_steps: fast}",
        "train: {max_steps: [1]}",
        "train: {max_steps: 0}",
        "train: {max_steps: true}",
        "train: {epochs: 0}\noptim: {warmup_epochs: 1}",
        "train: {epochs: 10}\noptim: {warmup_epochs: -1}",
        "train: {epochs: 10}\noptim: {warmup_epochs: true}",
        "optim: {warmup_epochs: 5}",
        "mask: 5",
        "mask: {smpler: union}",
        "momentum: 5",
        "method: 5\nmask: {num_targets: 3}",
        "data: 5\nmask: {num_targets: 3}",
        "model:\nmask: {num_targets: 3}",
        "optim:\nmask: {num_targets: 3}",
        "train: 5\nmask: {num_targets: 3}",
        "views: 5\nmask: {num_targets: 3}",
        "views: {main: 5}\nmask: {num_targets: 3}",
    ],
)
def test_wrong_values_in_the_words_of_version_0_1_are_refused_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is looked at below)
        load_recipe(write(tmp_path, "bad.yaml", text))
    assert "\n" not in str(caught.value)


def test_a_recipe_of_today_is_never_migrated(tmp_path: Path) -> None:
    """Whoever edits one is told, not overruled: neither in a whole recipe nor in a file of differences."""
    whole = to_yaml(load_recipe("small_10k"))
    assert "targets: normalised_pixels" in whole and "name: mae" in whole and "version: 3" in whole
    for edited, words in (
        (whole.replace("name: mae", "name: ijepa"), "(it belongs to method.name mae)"),
        (whole.replace("targets: normalised_pixels", "targets: features"), "method.targets = 'features'"),
        (whole.replace("  targets:", "  target_norm: none\n  targets:"), "unknown key method.target_norm"),
        (f"{whole}mask: {{num_targets: 3}}\n", "unknown key mask; did you mean views.main.mask?"),
        ("method: {targets: pixels}", "(it belongs to method.name mae)"),
        ("version: 1", "version"),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is looked at below)
            load_recipe(write(tmp_path, "edited.yaml", edited))
        assert words in str(caught.value)


def test_a_method_brings_its_own_targets() -> None:
    assert build_recipe({"method": {"name": "mae"}}).method.targets == "normalised_pixels"
    assert build_recipe({}).method.name == "ijepa" and build_recipe({}).method.pool_targets is False
    assert build_recipe({"method": {"loss": "mse"}}).method == methods.IJEPA(loss="mse")


def test_small_recipes_are_mae_on_a_cpu_and_ijepa_on_a_gpu() -> None:
    found = {name: load_recipe(name) for name in ("small_1k", "small_10k", "small_100k", "small_1m")}
    assert [recipe.method.name for recipe in found.values()] == ["mae", "mae", "ijepa", "ijepa"]
    assert [recipe.method.momentum.start for recipe in list(found.values())[2:]] == [0.99, 0.99]
    own = {"name", "predictor", "targets", *(methods.IJEPA.model_fields.keys() - methods.MAE.model_fields.keys())}
    shared = [recipe.method.model_dump_json(exclude=own) for recipe in found.values()]
    assert len(set(shared)) == 1 and "vicreg" in shared[0]


def test_recipes_are_read_without_torch() -> None:
    """`openjepa --help` must not wait for it."""
    code = (
        "import sys, openjepa; from openjepa.recipe import files; files.load_recipe('demo');"
        "print(sorted({'torch', 'timm', 'numpy'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    assert done.stdout.strip() == "[]"


def test_names_of_version_0_1_are_still_found(tmp_path: Path) -> None:
    assert load_recipe("seed_vit_base_16") == load_recipe("brief_vit_base_16")
    assert load_recipe("seed_vit_base_16_solved") == load_recipe("brief_vit_base_16_solved")
    (tmp_path / "mine.yaml").write_text("extends: seed_vit_base_16\noptim: {lr: 1.0e-3}\n")
    assert load_recipe(tmp_path / "mine.yaml").views == load_recipe("brief_vit_base_16").views
