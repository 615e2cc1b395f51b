"""Average precision: what must come out, and the library run by itself on the files that were written."""

import json
from dataclasses import replace

import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster

from openjepa.data.annotations import open_coco
from openjepa.evals.coco import measure_precision, score_coco, to_coco, to_predictions, write_predictions


@pytest.fixture(scope="module")
def source(scenes):
    return open_coco(str(scenes / "test"), 3)


def perfect(source, change=lambda boxes, labels: boxes, with_masks=True):
    """Predictions that are the truth itself, the boxes changed."""
    rows = []
    for index, found in enumerate(source.objects):
        scores = np.linspace(0.9, 0.5, len(found)).astype(np.float32)
        boxes = change(found.boxes.copy(), found.labels)
        rows += to_predictions(source, index, boxes, found.labels, scores, found.masks() if with_masks else None)
    return rows


def run_by_itself(truth_path, predictions_path, kind):
    """The library as its own documentation runs it, on two files."""
    truth = COCO(str(truth_path))
    evaluator = COCOeval_faster(truth, truth.loadRes(str(predictions_path)), kind)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator


def test_perfect_predictions_are_right(source):
    truth, rows = to_coco(source), perfect(source)
    for kind in ("bbox", "segm"):
        scores = score_coco(truth, rows, kind)
        assert set(scores.values()) == {1.0}
        assert "AP_large" not in scores  # scenes of 32 px hold no object of 96 x 96


def test_nothing_found_is_nothing(source):
    assert score_coco(to_coco(source), [], "bbox")["AP"] == 0


def test_one_class_shifted_by_half_its_width(source):
    """Then its IoU is a third: it is wrong at every threshold, and all other classes are right at every one."""
    label = int(source.objects[0].labels[0])

    def shift(boxes, labels):
        half = (boxes[:, 2] - boxes[:, 0]) / 2 * (labels == label)
        boxes[:, 0], boxes[:, 2] = boxes[:, 0] + half, boxes[:, 2] + half
        return boxes

    present = {int(number) for found in source.objects for number in found.labels}
    scores = score_coco(to_coco(source), perfect(source, shift), "bbox")
    assert scores["AP"] == pytest.approx((len(present) - 1) / len(present))
    assert scores["AP50"] == pytest.approx((len(present) - 1) / len(present))


def test_the_library_by_itself_says_the_same_of_the_written_files(source, scenes, tmp_path):
    generator = np.random.default_rng(0)

    def shake(boxes, labels):
        return (boxes + generator.normal(0, 1.5, boxes.shape)).astype(np.float32)

    rows = [row for row in perfect(source, shake) if generator.random() < 0.8]
    for row in rows:
        row["score"] = float(generator.random())
    write_predictions(tmp_path / "predictions.json", rows)
    (tmp_path / "truth.json").write_text(json.dumps(to_coco(source)))
    for kind in ("bbox", "segm"):
        ours = score_coco(to_coco(source), rows, kind)
        for truth in (tmp_path / "truth.json", scenes / "annotations" / "test.json"):  # and on the file that make-scenes wrote
            stats = run_by_itself(truth, tmp_path / "predictions.json", kind).stats
            assert [ours.get(name, -1.0) for name in ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")] == (
                pytest.approx(stats[:6].tolist())
            )
    assert 0.1 < ours["AP"] < 0.95
    assert score_coco(to_coco(source), json.loads((tmp_path / "predictions.json").read_text()), "bbox")["AP"] > 0


def test_crowds_are_nobodys_miss_and_nobodys_mistake(source):
    """Turning objects into crowds, and leaving them out or finding them three times over, changes no other's score."""
    first = source.objects[0]
    crowd = replace(first, crowd_mask=np.ones(len(first), bool))
    crowded = replace(source, objects=[crowd, *source.objects[1:]])
    rest = [row for row in perfect(source) if row["image_id"] != source.image_ids[0]]
    inside = [row | {"score": 0.99} for row in perfect(source) if row["image_id"] == source.image_ids[0]] * 3
    for kind in ("bbox", "segm"):
        assert score_coco(to_coco(crowded), rest, kind)["AP"] == 1
        assert score_coco(to_coco(crowded), rest + inside, kind)["AP"] == 1
        assert score_coco(to_coco(source), rest + inside, kind)["AP"] < 1  # where they are objects, once was enough


def test_what_cannot_be_scored_is_one_line(source):
    with pytest.raises(ValueError, match="predictions have no mask"):
        score_coco(to_coco(source), perfect(source, with_masks=False), "segm")
    crowds = [replace(found, crowd_mask=np.ones(len(found), bool)) for found in source.objects]
    with pytest.raises(ValueError, match="no object to be found"):
        score_coco(to_coco(replace(source, objects=crowds)), [], "bbox")


def test_a_class_by_itself_scores_what_it_scores_among_others(source):
    """AP of a class is what the library says of a file that holds this class alone; the mean over classes is AP."""
    generator = np.random.default_rng(1)

    def shake(boxes, labels):
        return (boxes + generator.normal(0, 1.5, boxes.shape)).astype(np.float32)

    truth, rows = to_coco(source), perfect(source, shake)
    whole = measure_precision(truth, rows, "bbox")
    assert whole.overall["AP"] == pytest.approx(np.mean([scores["AP"] for scores in whole.by_class.values()]))
    for number, scores in whole.by_class.items():
        alone = truth | {"annotations": [row for row in truth["annotations"] if row["category_id"] == number]}
        found = score_coco(alone, [row for row in rows if row["category_id"] == number], "bbox")
        assert scores == pytest.approx({name: found[name] for name in ("AP", "AP50")})
