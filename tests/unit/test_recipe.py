"""Recipes: a misspelt key stops and names the right one, every key is read somewhere, YAML goes round, errors are one line."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import types
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import openjepa
from openjepa.recipe import sections
from openjepa.recipe.edit import changed_keys
from openjepa.recipe.files import build_recipe, list_recipes, load_recipe, recipe_keys, to_yaml
from openjepa.recipe.sections import Recipe

PACKAGE = Path(openjepa.__file__).parent
SECTIONS = {
    name: field.annotation for name, field in Recipe.model_fields.items() if name not in {"name", "description", "version"}
}
SHIPPED = ["demo", "paper_vit_base_16", "paper_vit_giant_16", "paper_vit_huge_14", "paper_vit_huge_16_448",
           "paper_vit_large_16", "brief_vit_base_16", "mae_demo", "mae_vit_base_16",
           "small_1k", "small_10k", "small_100k", "small_1m"]  # fmt: skip


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
    section, name = key.split(".")
    for wrong in misspellings(name):
        if f"{section}.{wrong}" not in recipe_keys():
            assert f"unknown key {section}.{wrong}; did you mean {key}?" in complaint({section: {wrong: 1}})


@pytest.mark.parametrize("section", [*SECTIONS, "description"])
def test_every_misspelling_of_a_section_names_the_section(section: str) -> None:
    for wrong in misspellings(section):
        assert f"unknown key {wrong}; did you mean {section}?" in complaint({wrong: {}})


@pytest.mark.parametrize(
    ("values", "right"),
    [
        ({"lr": 1e-3}, "optim.lr"),
        ({"max_steps": 5}, "train.max_steps"),
        ({"optim": {"max_steps": 5}}, "train.max_steps"),
        ({"train": {"batch_size": 8}}, "data.batch_size"),
        ({"model": {"predictor": {"width": 8}}}, "model.predictor_width"),
    ],
)
def test_a_key_in_the_wrong_place_names_its_place(values: dict[str, Any], right: str) -> None:
    assert f"did you mean {right}?" in complaint(values)


def test_recipe_keys_are_all_keys_of_a_resolved_recipe() -> None:
    resolved = yaml.safe_load(to_yaml(Recipe()))
    flat = {f"{section}.{key}" for section in SECTIONS for key in resolved[section]} | (resolved.keys() - SECTIONS.keys())
    assert set(recipe_keys()) == flat
    assert len(recipe_keys()) == len(flat)


# --- every key is read


def find_section(annotation: ast.expr | None) -> str | None:
    """The section that an annotation such as sections.Mask names, "recipe" for Recipe."""
    last = ast.unparse(annotation).rpartition(".")[2].strip("'\"") if annotation is not None else ""
    classes = {section.__name__: name for name, section in SECTIONS.items()} | {"Recipe": "recipe"}
    return classes.get(last)


def keys_read_by(tree: ast.Module) -> set[str]:
    """section.key for every attribute that is read of a section: recipe.mask.sampler, or settings.sampler of a sections.Mask."""
    known: dict[str, set[str]] = {}  # names and attributes of this file -> the sections that they hold

    def sections_of(node: ast.expr) -> set[str]:
        if isinstance(node, ast.Attribute):
            return ({node.attr} if node.attr in SECTIONS or node.attr == "recipe" else set()) | known.get(node.attr, set())
        if isinstance(node, ast.Name):
            return known.get(node.id, set())
        if isinstance(node, ast.BoolOp):  # method or sections.Method()
            return set().union(*map(sections_of, node.values))
        if isinstance(node, ast.Call):
            made = ast.unparse(node.func).rpartition(".")[2]
            return {"recipe"} if made in {"load_recipe", "build_recipe"} else {find_section(node.func)} - {None}
        return set()

    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and (section := find_section(node.annotation)):
            name = node.arg if isinstance(node, ast.arg) else ast.unparse(node.target).rpartition(".")[2]
            known.setdefault(name, set()).add(section)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets, values = node.targets, [node.value]
            if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                targets, values = node.targets[0].elts, node.value.elts
            for target, value in zip(targets, values, strict=False):
                known.setdefault(ast.unparse(target).rpartition(".")[2], set()).update(sections_of(value))
    read = {
        f"{section}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        for section in sections_of(node.value)
    }
    return {key.removeprefix("recipe.") for key in read}


def keys_behind_properties(tree: ast.Module) -> dict[str, set[str]]:
    """Property of a section, such as data.size or grid -> what it reads."""
    behind: dict[str, set[str]] = {}
    for holder in tree.body:
        section = find_section(ast.Name(holder.name)) if isinstance(holder, ast.ClassDef) else None
        if section is None:
            continue
        prefix = "" if section == "recipe" else f"{section}."
        for method in holder.body:
            if isinstance(method, ast.FunctionDef) and any(ast.unparse(mark) == "property" for mark in method.decorator_list):
                chains = [ast.unparse(node) for node in ast.walk(method) if isinstance(node, ast.Attribute)]
                behind[prefix + method.name] = {prefix + chain[5:] for chain in chains if chain.startswith("self.")}
    return behind


def find_unread_keys(package: Path, keys: list[str]) -> list[str]:
    read: set[str] = set()
    for file in package.rglob("*.py"):
        if file != package / "recipe" / "sections.py":
            read |= keys_read_by(ast.parse(file.read_text("utf-8")))
    behind = keys_behind_properties(ast.parse((package / "recipe" / "sections.py").read_text("utf-8")))
    while new := {key for name in read & behind.keys() for key in behind[name]} - read:
        read |= new
    return [key for key in keys if key not in read]


def test_every_key_is_read_somewhere() -> None:
    assert find_unread_keys(PACKAGE, recipe_keys()) == ["version"]  # files.migrate reads it, of plain values


def test_a_key_that_nobody_reads_is_found(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(PACKAGE, tmp_path / "openjepa", ignore=shutil.ignore_patterns("__pycache__")))
    assert find_unread_keys(copy, ["mask.colour", "optim.fidelity", "mask.fidelity"]) == ["mask.colour", "optim.fidelity"]
    for file in copy.rglob("*.py"):
        file.write_text(file.read_text().replace("settings.fidelity", "'released'"))
    assert find_unread_keys(copy, ["mask.fidelity"]) == ["mask.fidelity"]


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
    floats = st.floats(1e-9, 1.0)
    return {int: st.integers(4, 10**6), float: floats, str: st.text(max_size=20), bool: st.booleans(), type(None): st.none()}[
        annotation
    ]


# These must fit together; test_values_that_do_not_fit_together has them.
BOUND = {"data.image_size", "data.batch_size", "train.accumulation_steps", "method.regularizer", "method.regularizer_weight",
         "method.target_norm", "method.target_input", "method.targets", "method.target_layers", "method.name",
         "optim.lr", "optim.start_lr", "optim.final_lr", "optim.betas", "momentum.start", "momentum.end"}  # fmt: skip
BOUND |= {f"model.{key}" for key in sections.Model.model_fields}
FREE = [key for key in recipe_keys() if "." in key and key not in BOUND]


@st.composite
def recipe_values(draw: st.DrawFn) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key in draw(st.lists(st.sampled_from(FREE), unique=True)):
        section, name = key.split(".")
        values.setdefault(section, {})[name] = draw(values_of(SECTIONS[section].model_fields[name].annotation))
    values["description"] = draw(st.text(max_size=30))
    sides = draw(st.one_of(st.integers(1, 9), st.tuples(st.integers(1, 9), st.integers(1, 9))))
    values.setdefault("data", {})["image_size"] = 16 * sides if isinstance(sides, int) else [16 * side for side in sides]
    return values


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


def test_shipped_recipes_load_and_go_round(tmp_path: Path) -> None:
    assert set(SHIPPED) <= set(list_recipes())
    for name in list_recipes():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description
        assert load_recipe(write(tmp_path, f"{name}.yaml", to_yaml(recipe))) == recipe


def test_extends_goes_through_a_chain_beside_the_file(tmp_path: Path) -> None:
    write(tmp_path, "deep/base.yaml", "extends: paper_vit_base_16\noptim: {lr: 0.5, final_lr: 0.0625}\nmask: {num_targets: 3}\n")
    write(tmp_path, "deep/middle.yaml", "extends: base.yaml\noptim: {lr: 0.125}\n")
    recipe = load_recipe(write(tmp_path, "top.yaml", "extends: deep/middle.yaml\nmask: {num_contexts: 2}\n"))
    assert recipe.name == "top"
    assert (recipe.optim.lr, recipe.optim.final_lr, recipe.mask.num_targets, recipe.mask.num_contexts) == (0.125, 0.0625, 3, 2)
    assert set(changed_keys(load_recipe("paper_vit_base_16"), recipe)) == {
        "name", "optim.lr", "optim.final_lr", "mask.num_targets", "mask.num_contexts"}  # fmt: skip


@pytest.mark.parametrize("chain", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_a_circle_of_extends_stops(tmp_path: Path, chain: list[str]) -> None:
    for name, base in zip(chain, chain[1:] + chain[:1], strict=True):
        write(tmp_path, f"{name}.yaml", f"extends: ../{tmp_path.name}/{base}.yaml\n")
    with pytest.raises(ValueError, match="extends itself"):
        load_recipe(tmp_path / "a.yaml")


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
        ("optim: 5", "optim = 5"),
        ("optim:", "optim = None"),
        ("data: {image_size: large}", "data.image_size = 'large'"),
        ("data: {batch_size: 2.5}", "data.batch_size = 2.5"),
        ("data: {batch_size: 0}", "data.batch_size = 0"),
        ("model: {encoder: enormous}", "'tiny', 'small', 'base', 'large', 'huge' or 'giant'"),
        ("model: {residual_rescale: 7}", "model.residual_rescale = 7"),
        ("method: {name: mea}", "method.name = 'mea'"),
        ("1: 2", "1 is not the name of a section"),
        ("optim: {1: 2}", "optim"),
        ("- a\n- b", "a recipe is a mapping of sections, found list"),
        ("just words", "a recipe is a mapping of sections, found str"),
        ("optim: {lr: 1\nmask:", "bad.yaml line 2: not valid YAML"),
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
        ({"data": {"image_size": 225}}, "data.image_size 225 is not a multiple of model.patch_size 16; try 224 or 240"),
        ({"data": {"image_size": [224, 100]}}, "100 is not a multiple of model.patch_size 16; try 96 or 112"),
        ({"data": {"image_size": 0}}, "data.image_size 0"),
        ({"model": {"patch_size": 15}}, "try 210 or 225"),
        ({"model": {"width": 100, "heads": 3}}, "model.width 100 is not a multiple of its 3 heads; try 99"),
        ({"model": {"width": 102, "heads": 3}}, "model.width 102 is not a multiple of 4"),
        ({"model": {"predictor_width": 100}}, "model.predictor_width 100 is not a multiple of its 12 heads; try 96"),
        ({"data": {"batch_size": 10}, "train": {"accumulation_steps": 4}}, "data.batch_size 10 is not a multiple of"),
        ({"method": {"regularizer": "vicreg"}}, "set both or neither"),
        ({"method": {"regularizer_weight": 0.1}}, "set both or neither"),
        ({"method": {"name": "mae"}, "momentum": {"start": 0.99}}, "momentum.start 0.99 has no target encoder to act on"),
        ({"method": {"name": "mae"}, "momentum": {"schedule": "fixed"}}, "with method.name mae; use linear"),
        ({"mask": {"target_scale": [0.3, 0.2]}}, "mask.target_scale (0.3, 0.2) must satisfy 0 < smallest <= largest <= 1"),
        ({"mask": {"context_scale": [0.5, 1.5]}}, "mask.context_scale (0.5, 1.5)"),
        ({"data": {"crop_scale": [0, 1]}}, "data.crop_scale (0, 1)"),
        ({"mask": {"target_aspect": [-1, 1]}}, "mask.target_aspect (-1, 1)"),
        ({"optim": {"weight_decay": [-0.05, 0.4]}}, "optim.weight_decay"),
        ({"optim": {"predictor_weight_decay": [0.04, -0.4]}}, "optim.predictor_weight_decay"),
        ({"optim": {"betas": [1.0, 0.999]}}, "optim.betas"),
        ({"optim": {"betas": [0.9, -0.1]}}, "optim.betas"),
        ({"optim": {"lr": 1e-4, "final_lr": 1e-3}}, "optim.final_lr 0.001 is above optim.lr 0.0001"),
        ({"optim": {"lr": 1e-4, "start_lr": 2e-4}}, "optim.start_lr 0.0002 is above optim.lr 0.0001"),
        ({"momentum": {"start": 0.996, "end": 0.99}}, "momentum.end 0.99 is below momentum.start 0.996"),
        ({"train": {"seed": 2**32}}, "train.seed"),
        ({"data": {"batch_size": 1}, "method": {"target_norm": "batch"}}, "method.target_norm batch"),
        ({"data": {"batch_size": 1}, "method": {"regularizer": "vicreg", "regularizer_weight": 1}}, "method.regularizer vicreg"),
    ],
)
def test_values_that_do_not_fit_together(values: dict[str, Any], words: str) -> None:
    assert words in complaint(values)


# --- recipes of version 0.1


OLD_METHOD = {
    "name": "ijepa", "targets": "features", "target_input": "image", "target_norm": "layer", "target_layers": 1,
    "predict": "joint", "loss": "mse", "regularizer": "none", "regularizer_on": "tokens", "regularizer_weight": 0.0,
}  # fmt: skip


def make_old(**sections: dict[str, Any]) -> dict[str, Any]:
    """A whole recipe as version 0.1 recorded it: every key, and no version."""
    whole = build_recipe({"momentum": {"start": 0.99}}).model_dump(mode="json")
    del whole["version"]
    whole["method"] = dict(OLD_METHOD)
    return {name: value | sections[name] if name in sections else value for name, value in whole.items()}


@pytest.mark.parametrize(("targets", "norm"), [("pixels", "layer"), ("pixels", "none"), ("pca", "none")])
def test_old_pixels_of_ijepa_are_maes_and_nothing_else_changes(targets: str, norm: str) -> None:
    new = build_recipe(make_old(method={"targets": targets, "target_norm": norm}))
    assert (new.method.name, new.method.targets, new.momentum) == ("mae", targets, sections.Momentum())
    assert build_recipe(make_old()).model_dump(exclude={"method", "momentum"}) == new.model_dump(exclude={"method", "momentum"})
    kept = {key: value for key, value in new.method if key not in ("name", "targets", "target_norm")}
    assert kept == {key: OLD_METHOD[key] for key in kept}


def test_old_recipes_that_are_fine_today_are_themselves() -> None:
    for method, momentum in (({}, 0.99), ({"targets": "pooled"}, 0.99), ({"name": "mae"}, 0.996)):
        new = build_recipe(make_old(method=method, momentum={"start": momentum})).model_dump(mode="json")
        expected = make_old(method=method, momentum={"start": momentum}) | {"version": 2}
        if method.get("name") == "mae":  # which said nothing
            expected["method"]["targets"] = "pixels"
        assert new == expected


def test_what_version_0_1_accepted_still_loads() -> None:
    """A checkpoint's recipe cannot be edited by its owner."""
    term = {"regularizer": "vicreg", "regularizer_weight": 0.3}
    assert build_recipe(make_old(method=term, train={"accumulation_steps": 4})).train.accumulation_steps == 1
    assert build_recipe(make_old(train={"accumulation_steps": 4})).train.accumulation_steps == 4
    optim = build_recipe(make_old(optim={"lr": 1e-4, "start_lr": 2e-4, "final_lr": 1e-3})).optim
    assert (optim.lr, optim.start_lr, optim.final_lr) == (1e-4, 1e-4, 1e-4)


def test_a_recipe_of_today_is_never_migrated(tmp_path: Path) -> None:
    """Whoever edits one is told, not overruled: neither in a whole recipe nor in a file of differences."""
    whole = to_yaml(load_recipe("small_10k"))
    assert "targets: pixels" in whole and "name: mae" in whole
    for edited, words in (
        (whole.replace("name: mae", "name: ijepa"), "--method.name mae"),
        (whole.replace("targets: pixels", "targets: features"), "--method.name ijepa"),
        ("method: {targets: pixels}", "--method.name mae"),
        ("version: 1", "version"),
    ):
        with pytest.raises(ValueError, match=words):
            load_recipe(write(tmp_path, "edited.yaml", edited))


def test_a_method_brings_its_own_targets() -> None:
    assert build_recipe({"method": {"name": "mae"}}).method.targets == "pixels"
    assert build_recipe({}).method.targets == "features"
    assert build_recipe({"method": {"targets": None}}).method.targets == "features"
    for name, targets in (("ijepa", "pooled"), ("mae", "pca")):
        method = build_recipe({"method": {"name": name, "targets": targets, "target_norm": "none"}}).method
        assert sections.leave_targets_open(method) == method  # asked for, so it stays, and another method refuses it


def test_small_recipes_are_mae_on_a_cpu_and_ijepa_on_a_gpu() -> None:
    found = {name: load_recipe(name) for name in ("small_1k", "small_10k", "small_100k", "small_1m")}
    assert [recipe.method.name for recipe in found.values()] == ["mae", "mae", "ijepa", "ijepa"]
    assert [recipe.momentum.start for recipe in found.values()] == [0.996, 0.996, 0.99, 0.99]
    assert len({recipe.method.model_copy(update={"name": "", "targets": None}) for recipe in found.values()}) == 1


def test_changed_keys_say_old_and_new() -> None:
    old = Recipe()
    new = build_recipe({"optim": {"lr": 0.5}, "data": {"image_size": [224, 448]}, "description": "wider"})
    assert changed_keys(old, new) == {
        "description": ("", "wider"), "data.image_size": (224, [224, 448]), "optim.lr": (1e-3, 0.5)}  # fmt: skip
    assert changed_keys(new, old) == {key: (was, now) for key, (now, was) in changed_keys(old, new).items()}


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
    assert load_recipe(tmp_path / "mine.yaml").mask == load_recipe("brief_vit_base_16").mask
