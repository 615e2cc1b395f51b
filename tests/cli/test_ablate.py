"""`openjepa ablate` as a user runs it, on small labelled scenes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from openjepa.commands import trials
from openjepa.commands.ablate import COLUMNS, Ablation, list_rows
from openjepa.data.scenes.make import make_scenes
from openjepa.masks import check_masks, measure_coverage
from openjepa.recipe.edit import changed_keys, with_changes
from openjepa.recipe.files import load_recipe
from tests.cli.console import openjepa, read_tables

STEPS, SEEDS = 2, 2


def run(*arguments: str, process: bool = False) -> subprocess.CompletedProcess[str]:
    return openjepa(*arguments, check=False, process=process)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablate") / "scenes"
    make_scenes(folder, train=140, test=60, size=32, seed=0)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    file.write_text(
        "extends: demo\ndata: {batch_size: 16, workers: 0}\nhealth: {num_images: 16}\n"
        "model: {width: 24, depth: 4}\nmethod: {predictor: {width: 12, depth: 1}}\n"
    )
    return file


@pytest.mark.slow
def test_a_table_runs_every_row_and_seed_once(scenes: Path, tiny: Path, tmp_path: Path) -> None:
    arguments = ["ablate", "masking", "--data", str(scenes / "train"), "--recipe", str(tiny), "--out", str(tmp_path / "out")]
    arguments += ["--steps", str(STEPS), "--seeds", str(SEEDS)]
    first = run(*arguments, "--jobs", "2", process=True)
    assert first.returncode == 0, first.stderr
    scores, _, differences = read_tables(first.stdout)
    assert list(scores) == ["random patches", "one block", "multi-block", "raw pixels", "untrained encoder"]
    assert [row["the brief's claim"] for row in scores.values()] == ["77.2", "78.5", "80.3", "", ""]
    assert set(differences) == set(scores) - {"multi-block"}, "the brief's choice is what the others are compared with"
    assert (tmp_path / "out" / "table.md").read_text().strip() == first.stdout.strip()
    recipes = {}
    for place in (tmp_path / "out").glob("*/run.json"):
        facts = json.loads(place.read_text())
        recipes[place.parent.name] = facts["recipe"]
        assert facts["total_steps"] == STEPS
        assert facts["data"] == str(scenes / "train")
    assert len(recipes) == 3 * SEEDS
    assert recipes["random-patches-1"]["views"]["main"]["mask"]["sampler"] == "random"
    assert recipes["random-patches-1"]["train"]["seed"] == 1
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.safetensors")}
    again = run(*arguments)
    assert again.stdout == first.stdout.replace("2 at a time", "1 at a time")
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.safetensors")} == stamps
    judge = [sys.executable, str(Path(__file__).parents[2] / "benchmarks/verdicts.py"), str(tmp_path / "out")]
    judged = subprocess.run(judge, capture_output=True, text=True, check=False)
    assert judged.returncode == 0, judged.stderr
    assert "Right in 0 of 6 at a fifth, in 0 at the end" in judged.stdout, "two steps are too early to say anything"
    for change in (["--recipe", "demo"], ["--data", str(scenes / "test"), "--test", str(scenes / "train")]):
        other = run(*arguments, *change)
        assert other.returncode == 2, change
        assert "holds a run of other settings" in other.stderr
        assert "Traceback" not in other.stderr


def test_runs_learn_from_images_without_labels(scenes: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    for file in sorted((scenes / "train").rglob("*.png"))[:60]:
        shutil.copy(file, tmp_path / "photos" / f"{file.parent.name}-{file.name}")
    of_pixels = tmp_path / "pixels.yaml"  # the brief's tables are of features whatever a recipe predicts
    of_pixels.write_text(f"extends: {tiny}\nmethod: {{name: mae}}\n")
    arguments = ["ablate", "masking", "--data", str(tmp_path / "photos"), "--recipe", str(of_pixels)]
    arguments += ["--out", str(tmp_path / "out"), "--steps", "2", "--seeds", "1"]
    without = run(*arguments, "--test", str(scenes / "test"))
    assert without.returncode == 2
    assert "has no labels" in without.stderr
    monkeypatch.setattr(trials, "MOST_PIXELS", 100)
    found = run(*arguments, "--labels", str(scenes / "train"))
    assert found.returncode == 0, found.stderr
    facts = json.loads((tmp_path / "out" / "multi-block-0" / "run.json").read_text())
    assert (facts["data"], facts["num_images"]) == (str(tmp_path / "photos"), 60)
    assert (facts["recipe"]["method"]["name"], facts["recipe"]["method"]["pool_targets"]) == ("ijepa", False)
    record = json.loads((tmp_path / "out" / "multi-block-0" / "outcome.json").read_text())
    assert (record["labels"], record["test"]) == (str(scenes / "train"), str(scenes / "test"))
    assert not (tmp_path / "out" / "multi-block-0" / "cache").exists(), "a comparison of many runs keeps no features"
    table = read_tables(found.stdout)[0]
    scores = {name: [row[column.title] for column in COLUMNS] for name, row in table.items()}
    knn, *linear = scores["raw pixels"]
    assert knn and not any(linear), "a linear probe of large images takes longer than the runs"
    assert all(scores["untrained encoder"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "2", "--minutes", "1"], "either --minutes or --steps"),
        ([], "either --minutes or --steps"),
        (["--steps", "2", "--test", "nowhere"], "nowhere"),
    ],
)
def test_bad_requests_end_in_one_line(scenes: Path, tiny: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    recipe = [] if "--recipe" in arguments else ["--recipe", str(tiny)]
    found = run(
        "ablate", "masking", "--data", str(scenes / "train"), "--out", str(tmp_path / "o"), "--seeds", "1", *recipe, *arguments
    )
    assert found.returncode == 2
    assert words in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_test_images_must_be_named_where_none_are_known(scenes: Path, tiny: Path, tmp_path: Path) -> None:
    found = run("ablate", "masking", "--data", str(scenes), "--recipe", str(tiny), "--out", str(tmp_path / "o"), "--steps", "2")
    assert found.returncode == 2
    assert "name them with --test" in found.stderr


@pytest.mark.parametrize("recipe", ["demo", "paper_vit_base_16"])
@pytest.mark.parametrize("table", ["masking", "target", "momentum", "predictor", "augmentation"])
def test_every_row_of_every_table_is_a_recipe_of_its_own(table: Ablation, recipe: str) -> None:
    base = load_recipe(recipe)
    made = [with_changes(base, row.variant.changes, row.variant.name) for row in list_rows(table, base)]
    for row in made:
        check_masks(row.mask, row.grid)
    assert len({row.model_dump_json() for row in made}) == len(made)


@pytest.mark.parametrize("recipe", ["demo", "paper_vit_base_16", "brief_vit_base_16", "small_10k"])
def test_the_target_rows_differ_in_the_targets_alone(recipe: str) -> None:
    """Pixels and their PCA are MAE's, with the same encoder, predictor, masks and images; features are I-JEPA's."""
    base = load_recipe(recipe)
    common = {"method.name": "ijepa"}
    made = {
        row.variant.name: with_changes(base, common | row.variant.changes, row.variant.name) for row in list_rows("target", base)
    }
    pixels = {name: row.method.targets for name, row in made.items() if row.method.name == "mae"}
    features = {name: row.method.pool_targets for name, row in made.items() if row.method.name == "ijepa"}
    assert pixels == {"pixels": "pixels", "normalised pixels": "normalised_pixels", "PCA of pixels": "pca"}
    assert features == {"average-pooled features": True, "patch features": False}
    for row in made.values():
        assert row.method.predictor == base.method.predictor
        assert {key.partition(".")[0] for key in changed_keys(base, row)} <= {"method"}
        assert (row.method.predict, row.method.loss) == (base.method.predict, base.method.loss)


@pytest.mark.parametrize("recipe", ["demo", "paper_vit_base_16"])
def test_the_masking_rows_cover_what_the_seed_says(recipe: str) -> None:
    base = load_recipe(recipe)
    for row in list_rows("masking", base):
        made = with_changes(base, row.variant.changes, row.variant.name)
        cover = measure_coverage(made.mask, made.grid)
        assert cover.context_frac == pytest.approx(0.25, abs=0.05), row.variant.name
        assert cover.target_frac == pytest.approx(0.15, abs=0.05), row.variant.name
