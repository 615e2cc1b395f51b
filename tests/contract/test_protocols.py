"""Every row of PROTOCOLS keeps one contract: right on easy data, chance on shuffled labels, repeatable, clear about mistakes."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from openjepa.evals import PROTOCOLS
from openjepa.evals.features import Features
from openjepa.evals.outcome import Result

CLASSES = ["ant", "bee", "cat", "dog"]

pytestmark = pytest.mark.parametrize("protocol", PROTOCOLS)


def make_clusters(spec, per_class=30, *, spread=0.1, classes=CLASSES, seed=0, dim=8):
    """Points around one direction a class, the same directions whatever the seed."""
    centres = np.eye(dim, dtype=np.float32)[: len(CLASSES)]
    names = np.repeat([CLASSES.index(name) for name in classes], per_class)
    points = centres[names] + spread * np.random.default_rng(seed).standard_normal((len(names), dim)).astype(np.float32)
    labels = np.repeat(np.arange(len(classes)), per_class)
    return Features(points.astype(np.float32), labels, np.arange(len(names)), list(classes), spec)


def permute(features, seed):
    order = np.random.default_rng(seed).permutation(len(features.image_idx))
    return replace(features, pooled=features.pooled[order], labels=features.labels[order], image_idx=features.image_idx[order])


def run(protocol, train, test, seed=0) -> Result:
    return PROTOCOLS[protocol](train, test, seed)


def test_separable_clusters_are_all_right(protocol):
    test = make_clusters("test", 20, seed=1)
    result = run(protocol, make_clusters("train"), test)
    assert result.accuracy == 1
    assert result.interval == (1, 1)
    assert [result.classes[label] for label in result.predictions] == [CLASSES[label] for label in test.labels]
    assert (result.protocol, result.num_train, result.num_test, result.num_classes) == (protocol, 120, 80, 4)


def test_shuffled_labels_give_about_chance(protocol):
    train, test = make_clusters("train", 100), make_clusters("test", 50, seed=1)
    # A cluster that drew a few more of one label by luck may be called that as a whole, so chance shows only on average.
    shuffles = [np.random.default_rng(seed).permutation(train.labels) for seed in range(20)]
    accuracies = [run(protocol, replace(train, labels=labels), test).accuracy for labels in shuffles]
    assert np.mean(accuracies) == pytest.approx(0.25, abs=0.1)


def test_order_of_training_images_changes_nothing(protocol):
    train, test = make_clusters("train", spread=0.6), make_clusters("test", 50, spread=0.6, seed=1)
    first = run(protocol, train, test)
    assert 0.3 < first.accuracy < 1  # hard enough for a difference to show
    for seed in range(3):
        again = run(protocol, permute(train, seed), test)
        assert np.array_equal(again.predictions, first.predictions)
        assert again.to_record() == first.to_record()


def test_predictions_follow_the_order_of_test_images(protocol):
    train, test = make_clusters("train", spread=0.6), make_clusters("test", 50, spread=0.6, seed=1)
    order = np.random.default_rng(3).permutation(len(test.labels))
    turned = replace(test, pooled=test.pooled[order], labels=test.labels[order], image_idx=test.image_idx[order])
    assert np.array_equal(run(protocol, train, turned).predictions, run(protocol, train, test).predictions[order])


def test_same_seed_same_result_and_input_untouched(protocol):
    train, test = make_clusters("train", spread=0.6), make_clusters("test", spread=0.6, seed=1)
    copies = [features.pooled.copy() for features in (train, test)]
    first, second = run(protocol, train, test, 7), run(protocol, train, test, 7)
    assert first.to_record() == second.to_record()
    assert np.array_equal(first.predictions, second.predictions)
    assert np.array_equal(train.pooled, copies[0])
    assert np.array_equal(test.pooled, copies[1])


def test_record_is_plain_json_and_the_interval_holds_the_accuracy(protocol):
    result = run(protocol, make_clusters("train", spread=0.6), make_clusters("test", 50, spread=0.6, seed=1), 3)
    record = result.to_record()
    assert json.loads(json.dumps(record)) == record
    low, high = record["interval"]
    assert 0 <= low < record["accuracy"] < high <= 1
    assert (record["protocol"], record["seed"]) == (protocol, 3)
    assert record["hyper_parameters"]
    assert "predictions" not in record


def test_classes_are_matched_by_name_not_by_number(protocol):
    train = make_clusters("train")
    for names in (["dog", "cat", "bee", "ant"], ["cat"], ["dog", "bee"]):
        assert run(protocol, train, make_clusters("test", classes=names, seed=1)).accuracy == 1


@pytest.mark.parametrize("which", ["train", "test"])
def test_without_labels_it_says_what_gives_them(protocol, which):
    both = {"train": make_clusters("here/train"), "test": make_clusters("here/test", seed=1)}
    both[which] = replace(both[which], labels=None, classes=[])
    with pytest.raises(ValueError, match=f"^here/{which} has no labels: class sub-folders give them") as caught:
        run(protocol, both["train"], both["test"])
    assert "\n" not in str(caught.value)


def test_an_unknown_test_class_is_named(protocol):
    train = make_clusters("train", classes=["ant", "bee"])
    with pytest.raises(ValueError, match=re.escape("test has classes that train has no image of: cat, dog; train has ant, bee")):
        run(protocol, train, make_clusters("test", seed=1))


def test_a_class_whose_training_images_were_all_unreadable_is_named(protocol):
    train = make_clusters("train")
    kept = train.labels != 2
    train = replace(train, pooled=train.pooled[kept], labels=train.labels[kept], image_idx=train.image_idx[kept])
    with pytest.raises(ValueError, match="no image of: cat;"):
        run(protocol, train, make_clusters("test", seed=1))


def test_one_class_is_refused(protocol):
    lonely = make_clusters("train", classes=["bee"])
    with pytest.raises(ValueError, match="train has images of one class only, 'bee'"):
        run(protocol, lonely, make_clusters("test", classes=["bee"], seed=1))


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_ten_images(protocol, count):
    result = run(protocol, make_clusters("train", count), make_clusters("test", 1, seed=1))
    assert (result.num_train, result.num_test) == (4 * count, 4)
    assert result.accuracy >= 0.75


def test_two_images(protocol):
    pair = make_clusters("train", 1, classes=["ant", "dog"], spread=0.01)
    assert run(protocol, pair, make_clusters("test", 3, classes=["dog", "ant"], spread=0.01, seed=1)).num_test == 6


def test_one_class_of_one_image_among_many(protocol):
    train = make_clusters("train", 25, classes=["ant", "bee"])
    train = replace(train, labels=np.array([0] * 49 + [1]))
    assert run(protocol, train, make_clusters("test", classes=["ant"], seed=1)).num_classes == 2


def test_constant_and_zero_features_are_no_crash(protocol):
    train, test = make_clusters("train"), make_clusters("test", seed=1)
    for value in (0.0, 0.1):
        blank = [replace(features, pooled=np.full_like(features.pooled, value)) for features in (train, test)]
        assert run(protocol, *blank).accuracy == pytest.approx(0.25)  # every image looks the same
    dead = [
        replace(features, pooled=np.pad(features.pooled, ((0, 0), (0, 5)), constant_values=0.1)) for features in (train, test)
    ]
    assert run(protocol, *dead).accuracy == 1


def test_unreadable_images_and_testing_on_training_data_are_mentioned(protocol):
    train = replace(make_clusters("photos"), skipped=[("photos/ant/1.jpg", "truncated"), ("photos/ant/2.jpg", "truncated")])
    assert run(protocol, train, make_clusters("test", seed=1)).warnings == ["2 images of photos could not be read"]
    assert any("used for training and for test" in line for line in run(protocol, train, make_clusters("photos")).warnings)
