"""Rows of a comparison: what words mean, and what rows share."""

from __future__ import annotations

from pathlib import Path

import pytest

from openjepa.commands.rows import Budget, Entrant, read_rows, slug
from openjepa.commands.trials import Exam, list_trials
from openjepa.recipe.files import load_recipe
from openjepa.recipe.methods import SECTIONS
from openjepa.report.standings import Column

DATA, STEPS = "sample:train", Budget(steps=5)


def read(*words: str, budget: Budget = STEPS, **changes: object) -> dict[str, Entrant]:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return {row.name: row for row in read_rows(words, DATA, dotted, budget)}


def test_every_method_is_a_row_with_the_first_ones_encoder_and_images() -> None:
    """auto's are 28 px grey images in patches of 4 px; the small recipes' own are 64 px, in colour, in patches of 8 px."""
    rows = read("auto", *SECTIONS)
    first = rows["auto"].recipe
    assert first is not None
    assert (first.data.size, first.data.channels, first.model.patch_size) == ((28, 28), 1, 4)
    for name in SECTIONS:
        recipe = rows[name].recipe
        assert recipe is not None
        assert recipe.method.name == name and recipe.train.length == "5steps"
        assert (recipe.data.size, recipe.data.channels, recipe.model) == (first.data.size, 1, first.model)
        own = load_recipe(f"{name}_small")
        assert (recipe.method, recipe.optim, recipe.data.batch_size) == (own.method, own.optim, own.data.batch_size)


def test_small_views_keep_their_share_of_the_image() -> None:
    dino = read("auto", "dino")["dino"].recipe
    assert dino is not None
    assert dino.size_of(dino.views["local"]) == (16, 16), "half of 28 px, in patches of 4 px"
    assert dino.size_of(dino.views["first"]) == (28, 28)
    asked = read("auto", "dino,views.local.size=8")["dino,views.local.size=8"].recipe
    assert asked is not None and asked.size_of(asked.views["local"]) == (8, 8)


def test_a_rows_own_values_are_its_own() -> None:
    """They come after those of all rows, and those of the first are not handed on."""
    first, second = read("mae,model.width=96,model.heads=2", "mae,optim.lr=1e-4,optim.betas=[0.5,0.6]", optim__lr=2e-4).values()
    assert first.recipe is not None and second.recipe is not None
    assert (first.recipe.model.width, first.recipe.optim.lr) == (96, 2e-4)
    assert (second.recipe.model.width, second.recipe.optim.lr, second.recipe.optim.betas) == (192, 1e-4, (0.5, 0.6))


def test_budgets() -> None:
    lengths = {budget: read("simclr", budget=budget)["simclr"].recipe for budget in (
        Budget(minutes=0.5), Budget(steps=7), Budget(images=1000))}  # fmt: skip
    assert [recipe.train.length for recipe in lengths.values() if recipe] == ["0.5minutes", "7steps", "4steps"]
    assert [str(budget) for budget in lengths] == ["0.5 minutes", "7 steps", "1,000 images"]
    for budget in (Budget(), Budget(1.0, 1), Budget(steps=0), Budget(minutes=float("nan"))):
        with pytest.raises(ValueError, match="--"):
            read("simclr", budget=budget)
    assert read("random:simclr", budget=Budget())["random:simclr"].kind == "untrained", "what is not trained needs none"


def test_what_is_only_measured_has_no_recipe_of_ours() -> None:
    rows = read("mae", "random:mae,model.depth=2", "pixels", "pixels:mae", "pixels:28", "timm:vit_tiny_patch16_224")
    kinds = {name: row.kind for name, row in rows.items()}
    assert list(kinds.values()) == ["trained", "untrained", "pixels", "pixels", "measured", "measured"]
    untrained = rows["random:mae,model.depth=2"].recipe
    assert untrained is not None and untrained.model.depth == 2


def test_folders_of_rows_are_different_and_fit_a_file_system() -> None:
    names = [slug(name) for name in ("mae", "mae,optim.lr=1e-3", "../../runs/a", "." * 9, "hf:/x")]
    assert len(set(names)) == 5
    assert not any("/" in name or name.startswith((".", "-")) for name in names)
    assert len(slug("ä" * 400).encode()) <= 120 and slug("ä" * 400) != slug("ä" * 401)
    exam = Exam(DATA, DATA, "sample:test", (Column("knn"),))
    recipe = load_recipe("mae_small")
    for one, other in (
        (Entrant("a b", "measured"), Entrant("a,b", "measured")),
        (Entrant("a", "trained", recipe), Entrant("a 1", "measured")),
    ):
        with pytest.raises(ValueError, match=f"the rows {one.name} and {other.name} would share the folder"):
            list_trials([one, other], exam, [1, 2], Path("out"))
    rows = [Entrant("a", "trained", recipe), Entrant("b", "measured")]
    found = [(trial.entrant.name, trial.seed) for trial in list_trials(rows, exam, [3, 4], Path("out"))]
    assert found == [("a", 3), ("b", None), ("a", 4)], "seeds are the outer loop"
