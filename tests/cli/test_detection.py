"""Detectors through the command line, on COCO files as other tools leave them: train, kill, resume, evaluate, predict, report."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO, COCOeval_faster
from PIL import Image
from safetensors.torch import load_file

from tests.cli.console import assert_refused, openjepa
from tests.zygote import start

STEPS = 10
TINY = (
    f"train.length={STEPS}steps", "data.batch_size=4", "data.workers=0", "data.image_size=32", "health.num_images=8",
    "checkpoint.every_steps=2", "train.log_every_steps=1", "method.channels=32", "train.device=cpu",
)  # fmt: skip
FRESH = ("model.width=32", "model.depth=1", "model.heads=2")
MASKS = ("method.boxes_per_image=16",)
PRETRAINED = (
    "--recipe", "demo", "train.length=2steps", "data.batch_size=8", "data.workers=0", "data.image_size=16", "data.channels=3",
    "model.width=32", "model.heads=2", "model.depth=1", "method.predictor.width=16", "method.predictor.heads=2",
    "health.num_images=8",
)  # fmt: skip


def make_messy(content: dict, folder: Path) -> dict:
    """What other tools do to a COCO file: nothing that is left can be used any less than before."""
    images, annotations = content["images"], content["annotations"]
    for row in content["categories"]:
        row["id"] = 10 * row["id"] + 1  # ids with holes
    for row in annotations:
        row["category_id"] = 10 * row["category_id"] + 1
        row["bbox"] = [value + 0.25 if place < 2 else value - 0.25 for place, value in enumerate(row["bbox"])]  # floats
    crowd = annotations[0] | {"id": 90001, "iscrowd": 1}
    box = annotations[1]["bbox"]
    corners = [box[0], box[1], box[0] + box[2], box[1], box[0] + box[2], box[1] + box[3], box[0], box[1] + box[3]]
    annotations[1]["segmentation"] = [corners]  # a polygon
    annotations += [
        crowd,
        annotations[2] | {"id": 90002, "bbox": [3, 3, 0, 5]},  # no area
        annotations[2] | {"id": 90003, "category_id": 77},  # a category that is not listed
        annotations[2] | {"id": 90004, "image_id": 70001},  # of the missing image
        {"id": 90005, "image_id": 1, "category_id": 11},  # no box
    ]
    images.append({"id": 70001, "file_name": "gone/away.png", "width": 32, "height": 32})
    images.append({"id": 70002, "file_name": "deep/er/empty.png", "width": 40, "height": 24})  # without annotations, another size
    (folder / "deep" / "er").mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 40, 3), np.uint8)).save(folder / "deep" / "er" / "empty.png")
    return content


@pytest.fixture(scope="module")
def messy(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(scenes, tmp_path_factory.mktemp("messy") / "photos")
    for half in ("train", "test"):
        file = folder / "annotations" / f"{half}.json"
        file.write_text(json.dumps(make_messy(json.loads(file.read_text()), folder / half)))
    return folder


def words_of(messy: Path, out: Path, task: str, spec: str | Path, *more: str) -> list[str]:
    data = ("--train", messy / "train", "--test", messy / "test")
    return ["finetune", str(spec), "--task", task, *map(str, data), "--out", str(out), *TINY, *more]


@pytest.fixture(scope="module")
def instances(messy: Path, tmp_path_factory: pytest.TempPathFactory):
    """A run of Mask R-CNN, what it said, and its words."""
    out = tmp_path_factory.mktemp("runs") / "instances"
    words = words_of(messy, out, "instances", "random:detection_small", *FRESH, *MASKS)
    return out, openjepa(*words), words


def last_record(said: subprocess.CompletedProcess[str]) -> dict:
    return json.loads(said.stdout.splitlines()[-1])


def run_by_itself(folder: Path, kind: str) -> list[float]:
    """The library as its own documentation runs it, on the files that a run leaves."""
    truth = COCO(str(folder / "truth.json"))
    evaluator = COCOeval_faster(truth, truth.loadRes(str(folder / "found.json")), kind)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator.stats[:3].tolist()


def test_what_cannot_be_used_is_one_line_and_ap_is_the_librarys_own(instances, messy: Path):
    run, said, _ = instances
    record = last_record(said)
    assert record["main"] == "mask_AP" and record["task"] == "instances" and record["interval"] is None
    assert (record["num_train"], record["num_test"], record["num_classes"], record["seed"]) == (25, 13, 12, 0)
    (line,) = (line for line in said.stderr.splitlines() if "train.json" in line)
    for kind in (
        "1 images that are missing",
        "1 boxes without area",
        "1 annotations of unknown categories",
        "1 annotations without a box",
    ):
        assert kind in line
    for part, kind in (("mask", "segm"), ("box", "bbox")):
        ours = [record["scores"][f"{part}_{name}"]["value"] for name in ("AP", "AP50", "AP75")]
        assert ours == pytest.approx(run_by_itself(Path(record["predictions"]), kind))
    assert len(list(Path(record["predictions"]).glob("*.png"))) == 13
    assert set(record["by_class"]) <= set(json.loads((run / "run.json").read_text())["classes"])


def test_a_kill_changes_nothing(instances, tmp_path: Path):
    whole, _, words = instances
    out = tmp_path / "run"
    words = [str(out) if word == str(whole) else word for word in words]
    process = start(*words)
    metrics = out / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count('"kind": "train"') > 4):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    openjepa(*words, "--resume")
    last = f"checkpoints/step-{STEPS:08}.safetensors"
    ours, theirs = load_file(out / last), load_file(whole / last)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_report_evaluate_embed_and_predict_take_it(instances, messy: Path, tmp_path: Path):
    run, said, _ = instances
    evaluated = last_record(openjepa("evaluate", run, "--task", "instances", "--test", messy / "test", "--json"))
    trained = last_record(said)
    assert evaluated["scores"] == trained["scores"] and evaluated["sha256"] == trained["sha256"]
    assert len(list((run / "evals").glob("*.json"))) == 1, "the same question has one record"
    assert_refused(openjepa("evaluate", run, "--task", "detection", "--test", messy / "test", check=False), "instances")
    openjepa("report", run)
    page = (run / "report.html").read_text()
    assert "Mask AP" in page and "Target encoder" not in page
    openjepa("embed", run, messy / "test", "--out", tmp_path / "features.parquet")
    openjepa("predict", run, messy / "test", "--out", tmp_path / "found.json")
    found = COCO(str(tmp_path / "found.json"))
    assert len(found.imgs) == 13 and len(found.cats) == 12
    assert all(row["score"] > 0 and row["segmentation"]["size"] for row in found.anns.values())
    assert {(row["height"], row["width"]) for row in found.imgs.values()} == {(32, 32), (24, 40)}
    assert len(list((tmp_path / "found").glob("*.png"))) == 13


def test_from_a_pretrained_encoder_frozen_or_not_on_few_images(messy: Path, tmp_path: Path):
    """Positions are resized from the pretrained grid; a frozen encoder comes out as it went in."""
    openjepa("pretrain", messy / "train", "--out", tmp_path / "pretrained", *PRETRAINED)
    start = load_file(next((tmp_path / "pretrained" / "checkpoints").glob("*.safetensors")))
    for frozen in (True, False):
        out = tmp_path / f"frozen-{frozen}"
        words = words_of(
            messy, out, "detection", tmp_path / "pretrained", "train.length=2steps", f"method.frozen={frozen}".lower()
        )
        words[words.index("--train") + 1] = f"few:8:1:{messy / 'train'}"
        said = openjepa(*words)
        record = last_record(said)
        assert record["main"] == "box_AP" and record["num_train"] == 8
        weights = load_file(next((out / "checkpoints").glob("*.safetensors")))
        names = [name for name in start if name.startswith("method.context_encoder.blocks")]
        assert all(torch.equal(weights[name], start[name]) for name in names) == frozen
        assert weights["method.context_encoder.pos_embed"].shape[1] == 4 * start["method.context_encoder.pos_embed"].shape[1]


def test_bad_input_is_one_line_and_leaves_nothing(messy: Path, scenes: Path, instances, tmp_path: Path):
    bare = shutil.copytree(scenes / "test", tmp_path / "bare" / "test")
    other = shutil.copytree(scenes, tmp_path / "other")
    file = other / "annotations" / "test.json"
    content = json.loads(file.read_text())
    content["categories"][3]["name"] = "zebra"
    file.write_text(json.dumps(content))
    crowded = shutil.copytree(scenes, tmp_path / "crowded")
    file = crowded / "annotations" / "test.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"annotations": [row | {"iscrowd": 1} for row in content["annotations"]]}))
    train, out = ("--train", scenes / "train"), ("--out", tmp_path / "out")
    spec, task = "random:detection_small", ("--task", "detection")
    for words, named in (
        ((spec, *task, *train, "--test", bare), ("no annotations", "annotations/test.json")),
        ((spec, *task, *train, "--test", other / "test"), ("zebra",)),
        ((spec, *task, *train, "--test", crowded / "test"), ("no object",)),
        ((spec, *task, *train, "--test", tmp_path / "nowhere"), ("nowhere",)),
        ((spec, *task, *train, "--test", scenes / "test", "--recipe", "finetune_small"), ("detection_small",)),
        ((spec, *task, *train, "--test", scenes / "test", "method.detector=mask_rcnn"), ("detection_small",)),
        ((spec, *task, *train, "--test", scenes / "test", "views.main.crop_scale=[0.3, 1.0]"), ("crop_scale",)),
        ((spec, *task, *train, "--test", scenes / "test", "model.patch_size=7", "data.image_size=28"), ("patch_size",)),
        ((spec, *task, *train, "--test", scenes / "test", "method.channels=40"), ("32",)),
        (("timm:vit_small_patch16_224", *task, *train, "--test", scenes / "test"), ("openjepa import",)),
    ):
        assert_refused(openjepa("finetune", *words, *out, check=False), *named)
        assert not (tmp_path / "out").exists()
    refused = openjepa("pretrain", tmp_path / "bare" / "test", "--recipe", "detection_small", *out, check=False)
    assert_refused(refused, "no annotations")
    run, _, _ = instances
    assert_refused(openjepa("predict", run, scenes / "test", "--out", tmp_path / "p.csv", check=False), ".json")
    assert_refused(openjepa("evaluate", run, "--task", "linear", "--test", scenes / "test", check=False), "--train")
