"""Means, spreads, paired differences and what is not equal, against sums done by hand."""

from __future__ import annotations

from openjepa.report.league import Words, to_markdown
from openjepa.report.standings import Column, Result, Standings, list_scores, list_unequal
from tests.cli.console import read_tables

KNN, NEEDED = Column("knn"), Column("labels-needed")


def result(row: str, seed: int | None, accuracy: float | None, **facts: object) -> Result:
    record = {"main": "accuracy", "accuracy": accuracy, "scores": {"accuracy": {"value": accuracy, "interval": [0.1, 0.9]}}}
    records = {} if accuracy is None else {KNN: record | {"num_train": 10, "num_test": 5}}
    return Result(row, seed, facts, records)


RESULTS = [
    result("a", 0, 0.50, images_per_s=100.0, verdict="healthy", trained_on="x", steps=10),
    result("b", 0, 0.51, images_per_s=200.0, verdict="healthy", trained_on="x", steps=10),
    result("c", 0, None, images_per_s=50.0, verdict="diverging", trained_on="y", steps=2),
    result("pixels", None, 0.40),
    result("b", 1, 0.58, images_per_s=200.0, verdict="collapsed", trained_on="x", steps=10),
    result("a", 1, 0.54, images_per_s=200.0, verdict="healthy", trained_on="x", steps=10),
    result("b", 2, 0.90, images_per_s=900.0, verdict="healthy", trained_on="x", steps=10),
]


def test_differences_are_taken_seed_by_seed() -> None:
    scores, runs, differences = read_tables(to_markdown(Standings(RESULTS, [KNN], "a"), Words("t", "s")))
    assert {row: cells["20-NN"] for row, cells in scores.items()} == {
        "a": "52.0 ± 2.8", "b": "66.3 ± 20.8", "c": "", "pixels": "40.0"
    }  # fmt: skip
    assert scores["b"]["verdicts"] == "2 healthy, 1 collapsed"
    # b: 1 and 4, standard deviation 3 / sqrt 2, and seed 2 has no partner; pixels have no seed: -10 and -14
    assert differences["b"] | {} == {"": "b", "20-NN": "+2.5 ± 2.1", "pairs": "2", "times as fast": "1.50"}
    assert differences["pixels"]["20-NN"] == "-12.0 ± 2.8"
    assert differences["c"] == {"": "c", "20-NN": "", "pairs": "1", "times as fast": "0.50"}
    assert set(runs) == {"a", "b", "c"}
    other = read_tables(to_markdown(Standings(RESULTS, [KNN], "pixels"), Words("t", "s")))[2]
    assert other["a"]["20-NN"] == "+12.0 ± 2.8"


def test_numbers_of_a_unit_are_no_percentages() -> None:
    record = {"main": "labels", "labels": 40, "unit": "labels", "num_train": 9, "num_test": 9, "scores": {}}
    assert Result("a", 0, {}, {NEEDED: record}).value(NEEDED) == 40.0


def test_what_is_unequal_is_said_of_those_of_which_it_is_known() -> None:
    lines = list_unequal(Standings(RESULTS, [KNN], "a"))
    assert lines == [
        "Training images: y (c); x (a, b).",
        "Steps: 2 (c); 10 (a, b).",
        "Not trained here, so what they have seen is not known or is nothing: pixels.",
        "Runs: 2 (a); 3 (b); 1 (c).",
    ]
    equal = Standings(
        [result(row, 0, 0.5, trained_on="x", minutes=minutes) for row, minutes in (("a", 4.9), ("b", 5.0))], [KNN], "a"
    )
    assert list_unequal(equal) == []


def test_every_single_score_is_kept_and_what_has_none_too() -> None:
    rows = list_scores(RESULTS)
    assert [(row["row"], row["seed"], row["value"]) for row in rows if row["seed"] != 2][:4] == [
        ("a", 0, 0.50), ("b", 0, 0.51), ("c", 0, None), ("pixels", None, 0.40)
    ]  # fmt: skip
    assert [row["verdict"] for row in rows if row["row"] == "c"] == ["diverging"]
    assert len({tuple(row) for row in rows}) == 1, "all have the same columns"
