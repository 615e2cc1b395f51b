"""`openjepa compare` as a user runs it: its numbers against pandas and `openjepa evaluate`; stopped, gone on with, refused."""

from __future__ import annotations

import json
import signal
import time
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

from tests.cli.console import assert_refused, openjepa, read_tables
from tests.zygote import start

TRAIN, TEST = "few:4:0:sample:train", "few:3:0:sample:test"
DATA = ("--data", TRAIN, "--test", TEST)
COMMON = ("data.workers=0", "train.log_every_steps=1")
RECIPE = (
    "extends: demo\ndata: {batch_size: 8}\nhealth: {num_images: 16}\n"
    "model: {width: 24, depth: 2}\nmethod: {predictor: {width: 12, depth: 1}}\n"
)
NAME = "ti|ny <b>&$x_1$.yaml"  # which Markdown, HTML and matplotlib would each read in their own way


class Comparison:
    """A finished comparison: its rows, its folder and what it printed."""

    def __init__(self, folder: Path) -> None:
        recipe = folder / NAME
        recipe.write_text(RECIPE)
        self.out, self.base = folder / "out", str(recipe)
        self.rows = (self.base, f"{self.base},optim.lr=1e-4,optim.betas=[0.9,0.99]", f"random:{self.base}", "pixels")
        self.arguments = ("compare", *self.rows, *DATA, "--steps", "3", "--out", str(self.out), *COMMON)
        self.printed = openjepa(*self.arguments, "--tasks", "knn", "--seeds", "0,1").stdout
        self.table, self.page = ((self.out / name).read_text("utf-8") for name in ("table.md", "compare.html"))
        self.scores = pd.read_parquet(self.out / "results.parquet")

    def stamps(self) -> dict[Path, int]:
        """When each checkpoint was written."""
        return {path: path.stat().st_mtime_ns for path in self.out.glob("*/checkpoints/*.safetensors")}

    def run_folder(self, row: str, seed: int) -> Path:
        """Where a row's run of a seed is."""
        return Path(self.scores[(self.scores.row == row) & (self.scores.seed == seed)].folder.iloc[0])


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return Comparison(tmp_path_factory.mktemp("compare"))


def test_means_spreads_and_paired_differences_are_those_of_the_single_results(compared: Comparison) -> None:
    scores, _, differences = read_tables(compared.table)
    assert compared.table == compared.printed
    assert tuple(scores) == compared.rows
    main = compared.scores[compared.scores.is_main].assign(value=lambda found: 100 * found.value)
    by_row = main.groupby("row").value
    for row, mean, spread, count in zip(by_row.mean().index, by_row.mean(), by_row.std(), by_row.count(), strict=True):
        assert scores[row]["20-NN"] == (f"{mean:.1f} ± {spread:.1f}" if count > 1 else f"{mean:.1f}"), row
        assert scores[row]["seeds"] == str(count) == ("1" if row == "pixels" else "2")
    by_seed = main.pivot_table(index="seed", columns="row", values="value")
    by_seed["pixels"] = main[main.row == "pixels"].value.item()
    assert set(differences) == set(compared.rows[1:])
    for row, cells in differences.items():
        pairs = by_seed[row] - by_seed[compared.base]
        assert cells["20-NN"] == f"{round(pairs.mean(), 1) + 0.0:+.1f} ± {pairs.std():.1f}", row


def test_rows_are_measured_as_evaluate_measures_them(compared: Comparison) -> None:
    """A trained row is its run folder's encoder; random: is the untrained one of the same seed, and pixels what it sees."""
    run = compared.run_folder(compared.base, 1)
    value = compared.scores[compared.scores.is_main].set_index(["row", "seed"]).value.to_dict()
    pixels = compared.scores[compared.scores.row == "pixels"].value.item()
    expected = {"context": value[compared.base, 1], "random": value[f"random:{compared.base}", 1], "pixels": pixels}
    for encoder, score in expected.items():
        words = ("evaluate", run, "--task", "knn", "--train", TRAIN, "--test", TEST, "--encoder", encoder, "--json")
        assert json.loads(openjepa(*words).stdout)["accuracy"] == score, encoder


def test_what_runs_took_is_theirs(compared: Comparison) -> None:
    trained = compared.scores[compared.scores.kind == "trained"]
    assert len(trained) == 4
    assert set(trained.steps) == {3} and set(trained.images_seen) == {24} and set(trained.epochs) == {24 / 40}
    for row in trained.itertuples():
        run = json.loads((Path(row.folder) / "run.json").read_text("utf-8"))
        rows = [json.loads(line) for line in (Path(row.folder) / "metrics.jsonl").read_text("utf-8").splitlines()]
        logged = [found for found in rows if found["kind"] == "train"]
        assert run["recipe"]["train"]["seed"] == row.seed
        assert row.parameters == run["num_parameters"]["encoder"]
        assert row.peak_memory_gb == max(found["peak_memory_gb"] for found in logged) > 0.1
        assert row.images_per_s == pd.Series([found["images_per_s"] for found in logged[1:]]).median()
        assert row.verdict == json.loads((Path(row.folder) / "verdict.json").read_text("utf-8"))["label"]
    other = json.loads((compared.run_folder(compared.rows[1], 0) / "run.json").read_text("utf-8"))["recipe"]["optim"]
    assert (other["lr"], other["betas"]) == (1e-4, [0.9, 0.99])


class Page(HTMLParser):
    """The tags of a page, and the words between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert name not in ("src", "href", "xlink:href") or (value or "").startswith(("#", "data:")), (tag, name, value)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_one_file_and_shows_names_as_they_are(compared: Comparison) -> None:
    page = Page(compared.page)
    assert page.tags.count("svg") == 2, "scores and differences, of one task"
    assert "b" not in page.tags and "script" not in page.tags
    assert page.words.count(compared.base) >= 4, "in each table and among the rows"


def test_a_folder_takes_more_of_everything_and_trains_nothing_twice(compared: Comparison) -> None:
    stamps = compared.stamps()
    assert openjepa(*compared.arguments, "--tasks", "knn", "--seeds", "0,1").stdout == compared.printed
    more = (*compared.arguments, "--tasks", "knn:2,knn", "--seeds", "1", "--reference", "pixels")
    scores, _, differences = read_tables(openjepa(*more).stdout)
    assert scores[compared.base]["seeds"] == "1" and "pixels" not in differences
    assert all(scores[compared.base][task] for task in ("20-NN", "20-NN, last 2 layers"))
    assert scores["pixels"]["20-NN, last 2 layers"] == "", "raw pixels have no layers"
    assert compared.stamps() == stamps


def test_runs_and_checkpoints_are_measured_as_they_are(compared: Comparison, tmp_path: Path) -> None:
    run = compared.run_folder(compared.base, 0)
    before = sorted(run.rglob("*"))
    words = (
        "compare",
        run,
        next((run / "checkpoints").glob("*.safetensors")),
        *DATA,
        "--tasks",
        "knn",
        "--out",
        tmp_path / "out",
    )
    table = read_tables(openjepa(*words).stdout)[0]
    known = 100 * compared.scores.set_index(["row", "seed"]).value[compared.base, 0]
    assert [row["20-NN"] for row in table.values()] == [f"{known:.1f}"] * 2
    assert sorted(run.rglob("*")) == before, "a row that is only measured is somebody's run"


def test_another_recipe_in_the_same_folder_is_refused(compared: Comparison) -> None:
    result = openjepa(*compared.arguments, "--tasks", "knn", "--seeds", "0", "optim.weight_decay=[0.1,0.1]", check=False)
    assert_refused(result, "holds a run of other settings", "optim.weight_decay", "choose another --out")
    other = [TEST if word == TRAIN else word for word in compared.arguments]
    assert_refused(openjepa(*other, "--tasks", "knn", "--seeds", "0", check=False), "the images", TEST)


@pytest.mark.slow
def test_killed_and_interrupted_it_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    words = ["tiny.yaml", *DATA, "--tasks", "knn", "--steps", "40", "--seeds", "0,1", *COMMON, "checkpoint.every_steps=5"]
    for seed, stop, status in ((0, signal.SIGKILL, -signal.SIGKILL), (1, signal.SIGINT, 128 + signal.SIGINT)):
        rows = tmp_path / "parts" / f"tiny.yaml-{seed}" / "metrics.jsonl"
        process = start("compare", *words, "--out", "parts", cwd=tmp_path)
        deadline = time.monotonic() + 300
        while not rows.is_file() or rows.read_text("utf-8").count('"train"') < 12:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(stop)
        told = process.communicate()[1]
        assert process.returncode == status
    assert "state saved; the same command goes on" in told
    finished = (tmp_path / "parts" / "tiny.yaml-0" / "checkpoints").stat().st_mtime_ns
    resumed = openjepa("compare", *words, "--out", "parts", cwd=tmp_path)
    straight = openjepa("compare", *words, "--out", "whole", cwd=tmp_path)
    assert (tmp_path / "parts" / "tiny.yaml-0" / "checkpoints").stat().st_mtime_ns == finished
    for seed in (0, 1):
        file = Path(f"tiny.yaml-{seed}") / "checkpoints" / "step-00000040.safetensors"
        one, other = load_file(tmp_path / "parts" / file), load_file(tmp_path / "whole" / file)
        assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    scores, expected = (read_tables(result.stdout)[0] for result in (resumed, straight))
    assert scores["tiny.yaml"]["20-NN"] == expected["tiny.yaml"]["20-NN"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["simclr_smal"], ["no row 'simclr_smal'", "did you mean simclr_small?"]),
        (["runs/nowhere"], ["no row 'runs/nowhere'"]),
        (["mae,optim.lrr=1"], ["mae,optim.lrr=1", "did you mean optim.lr?"]),
        (["pixels"], ["pixels:28"]),
        (["mae", "mae"], ["named twice"]),
        (["mae,optim.lr=1", "mae optim.lr 1"], ["no row"]),
        (["mae", "--tasks", "knn,liner"], ["no task 'liner'", "linear"]),
        (["mae", "--tasks", "knn:x"], ["knn:x"]),
        (["mae", "--tasks", "attentive:2"], ["attentive"]),
        (["mae", "--seeds", "0,0"], ["--seeds 0,0"]),
        (["mae", "--seeds", "one"], ["--seeds one"]),
        (["mae", "--minutes", "1"], ["either --minutes or --steps or --images"]),
        (["mae", "--reference", "dino"], ["--reference dino"]),
        (["mae", "--data", "nowhere"], ["nowhere"]),
        (["mae", "--test", "nowhere"], ["nowhere"]),
        (["mae,data.batch_size=auto"], ["batch_size auto"]),
        (["timm:no_such_model"], ["no_such_model"]),
        ([], ["needs rows"]),
    ],
)
def test_bad_requests_end_in_one_line_and_leave_nothing(tmp_path: Path, words: list[str], said: list[str]) -> None:
    flags = {"--data": TRAIN, "--test": TEST, "--tasks": "knn", "--steps": "2", "--out": str(tmp_path / "out")}
    given = [word for flag, value in flags.items() if flag not in words for word in (flag, value)]
    assert_refused(openjepa("compare", *words, *given, check=False), *said)
    assert list(tmp_path.iterdir()) == []
