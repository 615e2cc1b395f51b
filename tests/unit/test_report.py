"""The report page, read back as a browser would: what it says equals the run's files, and it loads nothing."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openjepa.report import tables, words
from openjepa.report.page import build_report
from openjepa.report.pictures import UNSEEN, Beliefs, Neighbours, Pictures
from openjepa.runs.folder import RunFolder, write_json
from tests.models import small_recipe

VOID = {"meta", "link", "img", "br"}
HOSTILE = "<script>alert('x')</script><img src=http://evil/x onerror=alert(1)>&amp;\"'\u202e${7*7}{{ 7*7 }}"
UNION = {"sampler": "union", "num_contexts": 2, "context_scale": (0.2, 0.3), "num_targets": 2, "target_scale": (0.1, 0.2)}
SMALL = small_recipe(data__image_size=28, data__batch_size=64, views__main__mask=UNION)
RUN: dict[str, Any] = {
    "name": "small", "data": "sample:train", "num_images": 10000, "recipe": SMALL.model_dump(mode="json"), "total_steps": 200,
    "measured_step_ms": 231.4, "mean": [0.286], "std": [0.353], "versions": {"torch": "2.15.0"},
    "git": {"commit": "f4f57ab", "dirty": True}, "hardware": {"cpu": "EPYC", "num_cores": 2, "memory_gb": 24.0, "device": "cpu"},
    "started": "2026-11-24T00:10:00+0000", "finished": "2026-11-24T00:15:30+0000", "num_parameters": {"encoder": 5_400_000},
}  # fmt: skip


class Page(HTMLParser):
    """The elements of a page with their attributes and own text, in order; checks that every element is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text("utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.open: list[str] = []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(self.open), data))

    def words(self, inside: str | None = None) -> str:
        """All text a reader sees, or that inside one kind of element, with single spaces."""
        seen = [text for place, text in self.texts if "style" not in place and (inside is None or inside in place)]
        return re.sub(r"\s+", " ", " ".join(seen))

    def find(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        return [own for name, own in self.elements if name == tag and all(own.get(key) == attributes[key] for key in attributes)]

    def pictures(self, alt: str) -> list[np.ndarray]:
        """Pixels of the pictures whose alt text begins so."""
        found = [own["src"] for own in self.find("img") if own["alt"].startswith(alt)]
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))).convert("RGB")) for uri in found]


def make_run(path: Path, **facts: Any) -> RunFolder:
    """A run folder without a recipe, which saves the time of drawing masks, and with other facts replaced."""
    run = RunFolder(path)
    run.create()
    write_json(run.run_json, {key: value for key, value in RUN.items() if key != "recipe"} | facts)
    return run


def fill_run(run: RunFolder) -> None:
    """Rows of 200 steps, a verdict, and six evaluations."""
    for step in range(0, 200, 2):
        run.append_metrics({"kind": "train", "step": step, "loss": 1 / (step + 1), "grad_norm": 12.0 if step == 4 else 1.0,
                            "lr": 1e-3, "weight_decay": 0.05, "momentum": 0.996, "images_per_s": 500.0, "data_wait_frac": 0.31,
                            "skipped_steps": 3})  # fmt: skip
    for step in range(0, 200, 50):
        run.append_metrics({"kind": "health", "step": step, "effective_rank_pooled": 10.0 + step, "effective_rank_patches": 20.0,
                            "feature_std": 0.5, "feature_variance": 0.3, "image_cosine": 0.4, "context_target_drift": 0.1,
                            "explained_variance": step / 400, "label": "too early" if step < 100 else "healthy"})  # fmt: skip
    write_json(run.verdict_json, {"label": "healthy", "reason": "it learns", "advice": "Go on.", "step": 150})
    for encoder, accuracies in SCORES.items():
        for protocol, accuracy in zip(("knn", "linear"), accuracies, strict=True):
            if accuracy is not None:
                write_eval(run, encoder, protocol, accuracy)


SCORES: dict[str, tuple[float | None, float | None]] = {
    "pixels": (0.7995, 0.809), "random": (0.6621, 0.7352), "context": (0.7655, 0.8004), "target": (0.7746, None),
}  # fmt: skip


def write_eval(run: RunFolder, encoder: str, protocol: str, accuracy: float, **more: Any) -> None:
    record = {"encoder": encoder, "task": protocol, "train": "sample:train", "test": "sample:test", "seed": 0,
              "accuracy": accuracy, "interval": [accuracy - 0.018, accuracy + 0.017], "num_train": 10000, "num_test": 2000,
              "hyper_parameters": {"k": 20} if protocol == "knn" else {"l2": 0.1}, "warnings": []}  # fmt: skip
    run.write_eval(f"evaluation-{len(list(run.evals.iterdir()))}", record | more)


def make_pictures() -> Pictures:
    """Two images with features in two clusters, and two queries with eight neighbours."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (2, 28, 28, 1), dtype=np.uint8)
    is_object = np.zeros((2, 7, 7), dtype=int)
    is_object[:, 2:5, 2:5] = 1
    matches = np.arange(16).reshape(2, 8) % 3 > 0
    others = generator.integers(0, 256, (2, 8, 28, 28, 1), dtype=np.uint8)
    found = Neighbours(images, others, matches, np.linspace(0.99, 0.8, 16).reshape(2, 8))
    context, target = np.zeros((2, 2, 7, 7), dtype=bool)
    context[:, :, :4], target[:, 2:5, 5:] = True, True
    hidden = target.repeat(4, axis=1).repeat(4, axis=2)[..., None]
    filled = np.where(hidden, generator.integers(0, 256, images.shape, dtype=np.uint8), images)
    believed = Beliefs(images, filled, context, target, is_drawn=False)
    return Pictures(images, generator.standard_normal((2, 16))[is_object], found, beliefs=believed)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    run = make_run(tmp_path_factory.mktemp("report") / "run", recipe=RUN["recipe"])
    fill_run(run)
    run.skipped.write_text("".join(f"photos/bad {number}.jpg\ttruncated at {number}\n" for number in range(14)))
    path = build_report(run, make_pictures(), {"grad_norm": 10.0, "image_cosine": 0.995})
    assert path == run.report
    return Page(path)


def test_the_page_loads_nothing_from_anywhere(page: Page) -> None:
    for tag, own in page.elements:
        for name in ("src", "href", "xlink:href", "data", "srcset", "action"):
            assert own.get(name, "#").startswith(("#", "data:")), (tag, own)
        assert not [name for name in own if name.startswith("on")]
    assert not {tag for tag, _ in page.elements} & {"script", "iframe", "object", "embed", "form", "base"}
    assert "http://" not in page.source
    assert "https://" not in page.source
    assert "@import" not in page.source
    assert set(re.findall(r"url\(([^)]{0,5})", page.source)) <= {
        target[:5] for target in re.findall(r"url\((#[^)]*)\)", page.source)
    }
    (policy,) = page.find("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'")


def test_every_inner_link_and_reference_has_its_place_once(page: Page) -> None:
    places = [own["id"] for _, own in page.elements if "id" in own]
    assert len(places) == len(set(places))
    links = [own["href"][1:] for _, own in page.elements if own.get("href", "").startswith("#")]
    assert links
    assert set(links) <= set(places)


def test_sections_come_in_order(page: Page) -> None:
    assert [own["id"] for tag, own in page.elements if tag == "h2"] == [
        "probes", "look", "curves", "masks", "beliefs", "maps", "neighbours", "facts",
    ]  # fmt: skip
    assert page.words("h1").strip() == "Healthy"
    assert "It learns. (Step 150.) Advice. Go on." in page.words("header")
    assert "too early (steps 0 to 50), healthy (steps 100 to 150)" in page.words("header")
    assert page.find("header")[0]["class"] == "verdict good"


def test_the_probe_table_says_what_the_records_say(page: Page) -> None:
    cells = page.words("table")
    for encoder, name in tables.ENCODERS.items():
        row = cells[cells.index(name) :]
        for accuracy in filter(None, SCORES[encoder]):
            low, high = accuracy - 0.018, accuracy + 0.017
            expected = f"{100 * accuracy:.1f} % {100 * low:.1f} to {100 * high:.1f}"
            assert expected in row
            row = row[row.index(expected) + len(expected) :]
    assert cells.rstrip().endswith("not evaluated")  # the target encoder's linear probe
    assert "10,000 training images, 2,000 test images" in page.words()


def test_what_to_look_at_is_computed_from_the_files(page: Page) -> None:
    seen = page.words("ul")
    assert (
        "20-NN on sample:test: the context encoder is 10.3 points above a random encoder and 3.4 points below raw pixels" in seen
    )
    assert (
        "the target encoder is 11.2 points above a random encoder and 2.5 points below raw pixels with overlapping intervals"
        in seen
    )
    assert "The predictor explains 38 % of the targets' variance." in seen
    assert "rose from 10.0 to 160.0" in seen
    assert "above 10 at 1 logged step, 12 at most" in seen
    assert "3 steps were left out" in seen
    assert "waited for data 31 % of the time" in seen


def test_curves_are_drawn_for_all_that_was_measured(page: Page) -> None:
    captions = page.words("figcaption")
    for title in ("Training loss", "Gradient norm", "Effective rank", "Explained variance", "Cosine between images",
                  "Feature standard", "Feature variance", "Context-target drift",
                  "Learning rate", "Weight decay", "Momentum"):  # fmt: skip
        assert title in captions
    assert "collapsed above 0.995" in captions
    assert all(own.get("aria-label") for own in page.find("svg"))


def test_feature_maps_of_two_clusters_have_two_colours(page: Page) -> None:
    maps = page.pictures("patch map of image")
    assert len(maps) == len(page.pictures("image ")) == 2
    for picture in maps:
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 2
        assert picture.shape == page.pictures("image ")[0].shape == (196, 196, 3)


def test_neighbours_stand_beside_their_query_in_the_right_frames(page: Page) -> None:
    shown = make_pictures().neighbours
    assert shown is not None
    assert shown.match_mask is not None
    frames = [own["class"] for tag, own in page.elements if tag == "div" and own.get("class", "").startswith("neighbour ")]
    assert frames == ["neighbour match" if is_match else "neighbour differ" for is_match in shown.match_mask.flatten()]
    alts = [own["alt"] for own in page.find("img") if own["alt"].startswith("neighbour ")]
    assert [", same class" in alt for alt in alts] == shown.match_mask.flatten().tolist()
    for seen, given in zip(page.pictures("neighbour "), shown.neighbour_images.reshape(16, 28, 28), strict=True):
        assert (seen == given[..., None].repeat(7, axis=0).repeat(7, axis=1)).all()
    for seen, given in zip(page.pictures("query "), shown.query_images, strict=True):
        assert (seen[3::7, 3::7] == given).all()
    assert f"{shown.match_mask.sum()} of the 16 neighbours shown" in page.words()
    green, red = (re.search(rf"\.{name} {{[^}}]*(#\w{{6}})", page.source)[1] for name in ("match", "differ"))
    assert int(green[3:5], 16) > int(green[1:3], 16)
    assert int(red[1:3], 16) > int(red[3:5], 16)


def test_beliefs_stand_beside_what_was_seen_and_only_blocks_are_filled(page: Page) -> None:
    made = make_pictures().beliefs
    assert made is not None
    shown, seen, believed = (page.pictures(word) for word in ("shown", "seen", "believed"))
    assert len(shown) == len(seen) == len(believed) == 2
    times = len(shown[0]) // 28
    middle = slice(times // 2, None, times)  # of each pixel: lines around blocks lie on their edges
    for number in range(2):
        context = made.context_mask[number].repeat(4, axis=0).repeat(4, axis=1)
        block = made.target_mask[number].repeat(4, axis=0).repeat(4, axis=1)
        small_seen, small_believed = seen[number][middle, middle], believed[number][middle, middle]
        assert (small_seen[context] == made.images[number][context]).all()
        assert (small_seen[block] == UNSEEN).all()
        assert (small_believed[context] == made.images[number][context]).all()
        assert (small_believed[block] == made.filled[number][block]).all()
        assert (small_believed[~context & ~block] == UNSEEN).all()
    assert "real patch of any other image" in page.words()


def test_run_facts_are_complete(page: Page) -> None:
    facts = page.words("dl")
    for words_ in ("sample:train, 10,000 images", "200 planned, last logged step 198", "5.5 minutes", "500 images/s",
                   "encoder 5.40 M", "231 ms", "0.286", "0.353", "commit f4f57ab, with uncommitted changes",
                   "torch 2.15.0", "EPYC, 2 cores, 24 GB"):  # fmt: skip
        assert words_ in facts
    assert "num_contexts: 2" in page.words("pre")
    assert "14 unreadable files, the first 10" in page.words("summary")
    listed = page.words("details")
    assert "photos/bad 9.jpg" in listed
    assert "truncated at 9" in listed
    assert "photos/bad 10.jpg" not in listed


def test_masks_are_those_of_the_recipe(page: Page) -> None:
    masks = page.pictures("sampled mask")
    assert len(masks) == 12
    assert all(picture.shape == (336, 336, 3) for picture in masks)
    assert re.search(r"context [\d.]+ %, targets [\d.]+ %, unseen [\d.]+ %", page.words("p"))


def test_an_empty_run_says_what_is_missing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_json(run.run_json, {"name": "small", "data": "sample:train"})
    page = Page(build_report(run))
    seen = page.words()
    assert page.words("h1").strip() == "No verdict yet"
    for words_ in ("Health has not been measured yet", "No evaluation yet", "openjepa evaluate",
                   "No training step has been logged yet",
                   "Not measured yet", "no recipe", "No patch features", "No neighbours", "No predictions",
                   "Nothing has been measured yet",
                   "not recorded"):  # fmt: skip
        assert words_ in seen
    assert page.find("figure") == page.find("img") == page.find("table") == []
    assert "None" not in seen
    assert "nan" not in seen.split()


def test_an_empty_run_folder_file_is_enough(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_json(run.run_json, {})
    assert "No verdict yet" in Page(build_report(run)).words("h1")


def test_a_run_that_lacks_some_metrics_names_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.append_metrics({"kind": "health", "step": 0, "image_cosine": 0.5})
    run.append_metrics({"kind": "train", "step": 0, "loss": float("nan")})
    seen = Page(build_report(run)).words()
    assert "Not measured: effective rank, explained variance of the targets, feature standard deviation, feature variance" in seen
    assert "verdict.json is missing" in seen
    assert "No training step has been logged yet" not in seen
    assert "No logged step has a finite loss" in seen


def test_hostile_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", name=HOSTILE, data=HOSTILE, versions={HOSTILE: HOSTILE}, hardware={"cpu": HOSTILE})
    run.skipped.write_bytes(f"{HOSTILE}.jpg\t{HOSTILE}\n".encode() + b"latin \xe9.png\tbroken\n")
    write_json(run.verdict_json, {"label": HOSTILE, "reason": HOSTILE, "advice": HOSTILE, "step": 1})
    run.append_metrics({"kind": "health", "step": 1, "label": HOSTILE})
    write_eval(run, HOSTILE, HOSTILE, 0.5, train=HOSTILE, test=HOSTILE, warnings=[HOSTILE])
    write_eval(run, "random", HOSTILE, 0.4, train=HOSTILE, test=HOSTILE)
    page = Page(build_report(run))
    assert not {tag for tag, _ in page.elements} & {"script", "iframe"}
    assert all(own["src"].startswith("data:") for own in page.find("img"))
    assert not [name for _, own in page.elements for name in own if name.startswith("on")]
    assert page.words().count(re.sub(r"\s+", " ", HOSTILE)) > 12
    assert "latin \\xe9.png" in page.words()


def test_a_name_that_looks_like_mathematics_is_a_name(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_eval(run, "$x^$", "knn", 0.5)
    page = Page(build_report(run))
    assert "$x^$" in page.words("table")
    assert "$x^$" in page.words("svg")


def test_names_that_are_no_text_still_give_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", data="photos/\udcff")  # a byte of a file name that is not UTF-8, as os.fsdecode gives it
    assert "photos/\\udcff" in Page(build_report(run)).words()


@pytest.mark.parametrize(
    ("text", "words_"),
    [
        ("{", "not a JSON object"),
        ("[1]", "not a JSON object"),
        ('{"task": "knn", "accuracy": 0.5}', "it lacks encoder"),
        ('{"encoder": "context", "task": "knn", "accuracy": "high"}', "its accuracy is 'high'"),
        ('{"encoder": "context", "task": "knn", "accuracy": NaN}', "its accuracy is nan"),
        ('{"encoder": "context", "task": "knn", "accuracy": 0.5, "interval": [0.4]}', "its interval is [0.4]"),
    ],
)
def test_a_damaged_evaluation_is_named_and_the_others_are_shown(tmp_path: Path, text: str, words_: str) -> None:
    run = make_run(tmp_path / "run")
    write_eval(run, "context", "knn", 0.7)
    (run.evals / "broken.json").write_text(text)
    seen = Page(build_report(run)).words()
    assert f"Not shown: broken.json: {words_}" in seen
    assert "70.0 %" in seen


def test_a_damaged_verdict_and_a_foreign_recipe_are_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", recipe={"version": 3, "views": {"main": {"mask": {"shape": "round"}}}})
    run.verdict_json.write_text("{")
    page = Page(build_report(run))
    assert "verdict.json is damaged" in page.words("header")
    assert "No masks can be drawn: run.json: unknown key views.main.mask.shape" in page.words()
    assert "shape: round" in page.words("pre")


def test_masks_that_do_not_fit_are_said(tmp_path: Path) -> None:
    recipe = small_recipe(views__main__mask__sampler="triangles").model_dump(mode="json")
    assert "No masks can be drawn: " in Page(build_report(make_run(tmp_path / "run", recipe=recipe))).words()


def test_features_that_are_not_finite_are_said(tmp_path: Path) -> None:
    broken = Pictures(np.zeros((1, 8, 8, 3), dtype=np.uint8), np.full((1, 2, 2, 4), np.inf))
    assert "not finite" in Page(build_report(make_run(tmp_path / "run"), broken)).words()


def test_neighbours_without_labels_have_no_frames(tmp_path: Path) -> None:
    images = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    page = Page(build_report(make_run(tmp_path / "run"), Pictures(neighbours=Neighbours(images, images[None]))))
    assert [own["alt"] for own in page.find("img") if own["alt"].startswith("neighbour")] == ["neighbour 1"]
    assert "class" not in page.words("p").split()


def test_evaluations_on_different_data_stand_in_tables_of_their_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_eval(run, "context", "knn", 0.71)
    write_eval(run, "context", "knn", 0.52, test="folder/other")
    page = Page(build_report(run))
    assert len(page.find("table")) == 2
    first, second = page.source.split('<table class="probes">')[1:]
    assert "71.0 %" in first
    assert "52.0 %" in second
    assert "52.0 %" not in first


def test_several_seeds_are_shown_one_by_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for seed, accuracy in enumerate((0.71, 0.73)):
        write_eval(run, "context", "knn", accuracy, seed=seed)
    cells = Page(build_report(run)).words("table")
    assert re.search(r"71\.0 % seed 0 .*73\.0 % seed 1", cells)


def test_the_heading_says_how_many_neighbours_voted() -> None:
    record = {"encoder": "context", "task": "knn", "accuracy": 0.5}
    for counts, heading in (([20, 20], "20-NN"), ([5], "5-NN"), ([5, 20], "k-NN"), ([None], "20-NN")):
        records = [record | ({"hyper_parameters": {"k": count}} if count else {}) for count in counts]
        (table,) = tables.tabulate_probes(records)
        assert dict(table.columns)["knn", 1] == heading


def test_each_task_and_number_of_layers_is_a_column_of_one_table() -> None:
    record = {"encoder": "context", "train": "a", "test": "b"}
    records = [
        record | {"task": "attentive", "main": "accuracy", "accuracy": 0.7},
        record | {"task": "linear", "main": "accuracy", "accuracy": 0.6, "layers": 4},
        record | {"task": "later", "main": "mAP", "mAP": 0.3},
        tables.read_version_0_1(record | {"protocol": "knn", "accuracy": 0.5}),
        record | {"encoder": "pixels", "task": "knn", "accuracy": 0.4},
    ]
    (table,) = tables.tabulate_probes(records)
    assert [column for column, _ in table.columns] == [("knn", 1), ("linear", 1), ("linear", 4), ("attentive", 1), ("later", 1)]
    found = {key: [cell[0].value if cell else None for cell in cells] for key, _, cells in table.rows}
    assert found["context"] == [0.5, None, 0.6, 0.7, 0.3]
    assert found["pixels"] == [0.4, None, None, None, None]


POINTS = [{"labels_per_class": count, "mean": 0.2 * count, "interval": [0.1, 0.9]} for count in (1, 2, 3)]


def test_few_labels_are_drawn_beside_their_baselines(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for encoder in ("context", "random", "pixels"):
        write_eval(run, encoder, "lowshot", 0.5, main="linear_3", linear_3=0.6, curves={"linear": POINTS}, note=HOSTILE)
    page = Page(build_report(run))
    (drawn,) = [own["aria-label"] for own in page.find("svg") if "labels per class" in own.get("aria-label", "")]
    for name in ("Raw pixels", "Random encoder", "Context encoder"):
        assert f"{name} reaches 60.0% with 3" in drawn
    assert page.find("script") == []


def test_labels_needed_are_a_number_and_may_be_more_than_there_are(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    more = {"main": "labels_per_class", "labels_per_class": 1200.0, "interval": [800.0, 1200.0], "unit": "labels per class"}
    write_eval(run, "context", "labels-needed", 0.5, **more, is_reached=True, end_is_reached=False)
    write_eval(run, "random", "labels-needed", 0.5, **more, is_reached=False, end_is_reached=False)
    page = Page(build_report(run))
    cells = page.words("table")
    assert "1,200 labels per class 800 to more than 1,200" in cells
    assert "more than 1,200 labels per class" in cells
    assert "%" not in cells
    assert "at 1,200 labels per class where a random encoder is at more than 1,200 labels per class" in page.words("ul")


@pytest.mark.parametrize(
    "curves", [3, [], {"linear": None}, {"linear": [{}]}, {"linear": [POINTS[0] | {"interval": None}]},
               {"linear": [POINTS[0] | {"labels_per_class": 0}]}, {"linear": [POINTS[0] | {"mean": "NaN"}]}],
)  # fmt: skip
def test_a_damaged_curve_is_not_drawn(tmp_path: Path, curves: Any) -> None:
    run = make_run(tmp_path / "run")
    write_eval(run, "context", "lowshot", 0.5, curves=curves)
    assert "50.0 %" in Page(build_report(run)).words("table")


@pytest.mark.parametrize(
    ("label", "tone"), [("healthy", "good"), ("collapsed", "bad"), ("diverging", "bad"), ("too early", "open")]
)
def test_a_verdict_has_the_tone_of_its_label(label: str, tone: str) -> None:
    verdict = words.word_verdict({"label": label, "reason": "a", "advice": "b"}, [])
    assert verdict.tone == tone
    assert verdict.label.lower() == label


def test_a_predictor_that_knows_nothing_is_not_praised() -> None:
    (found,) = words.observe([], [], [{"step": 0, "explained_variance": -0.2}], {})
    assert found.words == "The predictor does no better than the mean target."


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a run folder"):
        build_report(RunFolder(tmp_path))


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    before = build_report(run).read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    write = run.run_json.write_text
    write(json.dumps(RUN | {"name": "changed"}))
    with pytest.raises(OSError, match="No space"):
        build_report(run)
    assert run.report.read_bytes() == before
    assert not [path.name for path in run.path.iterdir() if path.name.startswith(".")]
