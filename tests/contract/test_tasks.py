"""Every task on features keeps one contract: right on easy data, chance on shuffled labels, repeatable, clear about mistakes."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from openjepa.evals import TASKS, attentive, draws, labels_needed, lowshot
from openjepa.evals.features import Features
from openjepa.evals.outcome import Outcome
from openjepa.evals.task import FeatureTask

CLASSES = ["ant", "bee", "cat", "dog"]

FEATURE_TASKS = [name for name, row in TASKS.items() if isinstance(row, FeatureTask)]
COUNTS_LABELS = {"labels-needed"}  # whose main score is no share of right answers
FEW_SHUFFLES = {"attentive": 6, "lowshot": 5}  # of the slower ones
every_task = pytest.mark.parametrize("task", FEATURE_TASKS)
every_share = pytest.mark.parametrize("task", [task for task in FEATURE_TASKS if task not in COUNTS_LABELS])


@pytest.fixture(autouse=True)
def few_fits(monkeypatch):
    """Tasks that fit a classifier for each of many draws, counts and settings fit a few here."""
    monkeypatch.setattr(attentive, "RATES", (1e-2, 3e-2))
    monkeypatch.setattr(attentive, "MIN_STEPS", 40)
    monkeypatch.setattr(draws, "DRAWS", 2)
    monkeypatch.setattr(lowshot, "COUNTS", (1, 5))
    monkeypatch.setattr(labels_needed, "list_counts", lambda most: sorted({1, most}))


NUM_PATCHES = 3  # of tasks that read them: each a noisy copy of the image's point


def make_clusters(spec, per_class=30, *, spread=0.1, classes=CLASSES, seed=0, dim=8):
    """Points around one direction a class, the same directions whatever the seed."""
    centres = np.eye(dim, dtype=np.float32)[: len(CLASSES)]
    names = np.repeat([CLASSES.index(name) for name in classes], per_class)
    points = centres[names] + spread * np.random.default_rng(seed).standard_normal((len(names), dim)).astype(np.float32)
    labels = np.repeat(np.arange(len(classes)), per_class)
    return Features(points.astype(np.float32), labels, np.arange(len(names)), list(classes), spec)


def permute(features, seed):
    order = np.random.default_rng(seed).permutation(len(features.image_idx))
    return replace(features, rows=features.rows[order], labels=features.labels[order], image_idx=features.image_idx[order])


def run(task, train, test, seed=0) -> Outcome:
    if TASKS[task].needs_patches:
        train, test = (
            replace(features, rows=np.repeat(features.rows[:, None], NUM_PATCHES, axis=1)) for features in (train, test)
        )
    return TASKS[task].score(train, test, seed)


def share_of(result):
    """The main score, or the one in [0, 1] beside it."""
    return result.scores["accuracy_of_all_labels" if result.task in COUNTS_LABELS else result.main]


@every_task
def test_separable_clusters_are_all_right(task):
    test = make_clusters("test", 20, seed=1)
    result = run(task, make_clusters("train"), test)
    assert share_of(result).value == share_of(result).interval[1] == 1
    assert [result.classes[label] for label in result.predictions] == [CLASSES[label] for label in test.labels]
    assert (result.task, result.num_train, result.num_test, result.num_classes) == (task, 120, 80, 4)


@every_share
def test_shuffled_labels_give_about_chance(task):
    train, test = make_clusters("train", 100), make_clusters("test", 50, seed=1)
    # A cluster that drew a few more of one label by luck may be called that as a whole, so chance shows only on average.
    shuffles = [np.random.default_rng(seed).permutation(train.labels) for seed in range(FEW_SHUFFLES.get(task, 20))]
    accuracies = [run(task, replace(train, labels=labels), test).score for labels in shuffles]
    assert np.mean(accuracies) == pytest.approx(0.25, abs=0.1)


@every_share
def test_order_of_training_images_changes_nothing(task):
    train, test = make_clusters("train", spread=0.6), make_clusters("test", 50, spread=0.6, seed=1)
    first = run(task, train, test)
    assert 0.2 < first.score < 1  # hard enough for a difference to show
    for seed in range(3):
        again = run(task, permute(train, seed), test)
        assert np.array_equal(again.predictions, first.predictions)
        assert again.to_record() == first.to_record()


@every_task
def test_predictions_follow_the_order_of_test_images(task):
    train, test = make_clusters("train", spread=0.6), make_clusters("test", 50, spread=0.6, seed=1)
    order = np.random.default_rng(3).permutation(len(test.labels))
    turned = replace(test, rows=test.rows[order], labels=test.labels[order], image_idx=test.image_idx[order])
    assert np.array_equal(run(task, train, turned).predictions, run(task, train, test).predictions[order])


@every_task
def test_same_seed_same_result_and_input_untouched(task):
    train, test = make_clusters("train", spread=0.6), make_clusters("test", spread=0.6, seed=1)
    copies = [features.rows.copy() for features in (train, test)]
    first, second = run(task, train, test, 7), run(task, train, test, 7)
    assert first.to_record() == second.to_record()
    assert np.array_equal(first.predictions, second.predictions)
    assert np.array_equal(train.rows, copies[0])
    assert np.array_equal(test.rows, copies[1])


@every_task
def test_record_is_plain_json_and_the_interval_holds_the_accuracy(task):
    result = run(task, make_clusters("train", spread=0.6), make_clusters("test", 50, spread=0.6, seed=1), 3)
    record = result.to_record()
    assert json.loads(json.dumps(record)) == record
    low, high = record["interval"]
    assert 0 <= low <= record[record["main"]] <= high
    assert task in COUNTS_LABELS or low < record[record["main"]] < high <= 1
    assert (record["task"], record["seed"]) == (task, 3)
    assert record["hyper_parameters"]
    assert "predictions" not in record


@every_task
def test_classes_are_matched_by_name_not_by_number(task):
    train = make_clusters("train")
    for names in (["dog", "cat", "bee", "ant"], ["cat"], ["dog", "bee"]):
        assert share_of(run(task, train, make_clusters("test", classes=names, seed=1))).value == 1


@pytest.mark.parametrize("which", ["train", "test"])
@every_task
def test_without_labels_it_says_what_gives_them(task, which):
    both = {"train": make_clusters("here/train"), "test": make_clusters("here/test", seed=1)}
    both[which] = replace(both[which], labels=None, classes=[])
    with pytest.raises(ValueError, match=f"^here/{which} has no labels: class sub-folders give them") as caught:
        run(task, both["train"], both["test"])
    assert "\n" not in str(caught.value)


@every_task
def test_an_unknown_test_class_is_named(task):
    train = make_clusters("train", classes=["ant", "bee"])
    with pytest.raises(ValueError, match=re.escape("test has classes that train has no image of: cat, dog; train has ant, bee")):
        run(task, train, make_clusters("test", seed=1))


@every_task
def test_a_class_whose_training_images_were_all_unreadable_is_named(task):
    train = make_clusters("train")
    kept = train.labels != 2
    train = replace(train, rows=train.rows[kept], labels=train.labels[kept], image_idx=train.image_idx[kept])
    with pytest.raises(ValueError, match="no image of: cat;"):
        run(task, train, make_clusters("test", seed=1))


@every_task
def test_one_class_is_refused(task):
    lonely = make_clusters("train", classes=["bee"])
    with pytest.raises(ValueError, match="train has images of one class only, 'bee'"):
        run(task, lonely, make_clusters("test", classes=["bee"], seed=1))


@pytest.mark.parametrize("count", [1, 2])
@every_share
def test_fewer_than_ten_images(task, count):
    result = run(task, make_clusters("train", count), make_clusters("test", 1, seed=1))
    assert (result.num_train, result.num_test) == (4 * count, 4)
    assert result.score >= 0.75


@every_task
def test_two_images(task):
    pair = make_clusters("train", 1, classes=["ant", "dog"], spread=0.01)
    assert run(task, pair, make_clusters("test", 3, classes=["dog", "ant"], spread=0.01, seed=1)).num_test == 6


@every_task
def test_one_class_of_one_image_among_many(task):
    train = make_clusters("train", 25, classes=["ant", "bee"])
    train = replace(train, labels=np.array([0] * 49 + [1]))
    assert run(task, train, make_clusters("test", classes=["ant"], seed=1)).num_classes == 2


@every_share
def test_constant_and_zero_features_are_no_crash(task):
    train, test = make_clusters("train"), make_clusters("test", seed=1)
    for value in (0.0, 0.1):
        blank = [replace(features, rows=np.full_like(features.rows, value)) for features in (train, test)]
        assert run(task, *blank).score == pytest.approx(0.25)  # every image looks the same
    dead = [replace(features, rows=np.pad(features.rows, ((0, 0), (0, 5)), constant_values=0.1)) for features in (train, test)]
    assert run(task, *dead).score == 1


@every_task
def test_unreadable_images_and_testing_on_training_data_are_mentioned(task):
    train = replace(make_clusters("photos"), skipped=[("photos/ant/1.jpg", "truncated"), ("photos/ant/2.jpg", "truncated")])
    assert run(task, train, make_clusters("test", seed=1)).warnings == ["2 images of photos could not be read"]
    assert any("used for training and for test" in line for line in run(task, train, make_clusters("photos")).warnings)
