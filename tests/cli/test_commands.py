"""What a user does: the command line on a messy folder of images, and what it wrote."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from openjepa.cli import split_assignments
from openjepa.recipe.edit import read_assignments
from tests.cli.console import assert_refused, openjepa
from tests.messy_folder import build_messy_folder

SMALL = (
    "--recipe", "demo", "train.length=6steps", "--data.batch-size", "16", "--data.workers", "2",
    "--data.image-size", "32", "--data.channels", "3", "--model.patch-size", "8", "--model.width", "32", "--model.heads", "2",
    "--model.depth", "2", "--method.predictor.width", "16", "--method.predictor.heads", "2", "--health.every-steps", "2",
    "--health.num-images", "16", "--checkpoint.every-steps", "3",
)  # fmt: skip
DEMO = ("pretrain", "sample:train", "--out", "run", "--recipe", "demo")
SAMPLE = ("--train", "sample:train", "--test", "sample:test")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("messy") / "photos"
    build_messy_folder(folder, num_good=60)
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "messy"
    openjepa("pretrain", photos, "--out", path, *SMALL, process=True)
    return path


def test_pretrain_leaves_a_whole_run_folder(run: Path):
    facts = json.loads((run / "run.json").read_text())
    assert facts["total_steps"] == 6
    assert facts["recipe"]["model"]["patch_size"] == 8
    assert facts["finished"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert {row["kind"] for row in rows} >= {"train", "health"}
    assert list(run.glob("events.out.tfevents.*"))
    assert json.loads((run / "verdict.json").read_text())["label"]


def test_unreadable_files_are_listed(run: Path):
    listed = (run / "skipped.txt").read_text().splitlines()
    assert 1 <= len(listed) <= 2  # both are met in 96 draws unless the stream misses one
    assert all("\t" in line for line in listed)


def test_evaluate_ends_in_json_and_leaves_a_record(photos: Path, run: Path):
    for protocol in ("knn", "linear"):
        result = openjepa("evaluate", run, "--protocol", protocol, "--train", photos, "--test", photos)
        record = json.loads(result.stdout.strip().splitlines()[-1])
        assert 0 <= record["accuracy"] <= 1
        assert record["encoder"] == "context"
        saved = [json.loads(path.read_text()) for path in (run / "evals").glob(f"{protocol}-context-*.json")]
        assert [entry["accuracy"] for entry in saved] == [record["accuracy"]]


def test_every_task_on_features_leaves_a_record_that_the_report_shows(photos: Path, run: Path):
    for task in ("lowshot", "labels-needed", "retrieval", "robustness"):
        for encoder in ("context", "pixels") if task == "lowshot" else ("context",):
            result = openjepa(
                "evaluate", run, "--task", task, "--encoder", encoder, "--train", photos, "--test", photos,
                *(("--accuracy", "0.9") if task == "labels-needed" else ()),
            )  # fmt: skip
            record = json.loads(result.stdout.strip().splitlines()[-1])
            assert record["words"] in result.stdout
            assert record["scores"][record["main"]]["value"] == record[record["main"]]
            assert len(list((run / "evals").glob(f"{task}-{encoder}-*.json"))) == 1
    openjepa("report", run)
    page = (run / "report.html").read_text()
    for words in ("Few labels: accuracy by logistic regression", "for 90.0%", "Retrieval", "Robustness"):
        assert words in page
    assert "Not shown" not in page


def test_a_checkpoint_file_serves_as_well_as_the_run(photos: Path, run: Path, tmp_path: Path):
    file = run / "checkpoints" / "step-00000006.safetensors"
    tables = []
    for name, source in (("run", run), ("file", file)):
        openjepa("embed", source, photos, "--out", tmp_path / f"{name}.parquet", "--encoder", "target")
        tables.append(pq.read_table(tmp_path / f"{name}.parquet"))
    assert tables[0]["features"].equals(tables[1]["features"])
    assert tables[0].num_rows == 60
    assert all(Path(path).exists() for path in tables[0]["path"].to_pylist())


def test_report_and_doctor_on_the_messy_folder(photos: Path, run: Path):
    openjepa("report", run)
    page = (run / "report.html").read_text()
    assert "http://" not in re.sub(r"http://www\.w3\.org\S*", "", page)
    assert page.count("data:image/png") > 5
    findings = openjepa("doctor", photos, "--recipe", "demo").stdout
    assert "62 images" in findings
    assert "peak memory" in findings


def test_health_replays_to_the_verdict_that_the_run_ended_with(run: Path):
    verdict = json.loads((run / "verdict.json").read_text())
    lines = openjepa("health", run, "--all").stdout.splitlines()
    measured = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    measured = [row for row in measured if row["kind"] == "health"]
    assert [line.split(": ")[1] for line in lines[:-1]] == [row["label"] for row in measured]
    assert lines[-1] == f"now: step 5 (100% of the run): {verdict['label']}: {verdict['reason']} {verdict['advice']}"


def test_a_pack_serves_in_the_folders_place(photos: Path, run: Path, tmp_path: Path):
    packed = tmp_path / "deep" / "packed"
    result = openjepa("pack", photos, packed, "--size", "1600")
    assert re.search(r"^60 images, 0\.\d\d GB in .*; 2 could not be read, see .*skipped.txt$", result.stdout.strip())
    assert_refused(openjepa("pack", photos, packed, check=False), str(packed), "exists already")
    tables = []
    for name, data in (("folder", photos), ("pack", packed)):
        openjepa("embed", run, data, "--out", tmp_path / f"{name}.parquet")
        tables.append(pq.read_table(tmp_path / f"{name}.parquet"))
    assert tables[0]["path"].equals(tables[1]["path"]) and tables[0]["label"].equals(tables[1]["label"])
    for one, other in zip(tables[0]["features"].to_pylist(), tables[1]["features"].to_pylist(), strict=True):
        assert one == pytest.approx(other, abs=0.05)  # JPEGs of the folder are decoded reduced
    (packed / "pixels.bin").write_bytes(b"")
    assert_refused(openjepa("embed", run, packed, "--out", tmp_path / "no.parquet", check=False), "damaged pack", "pixels.bin")


def test_masks_are_drawn_and_their_coverage_printed(tmp_path: Path):
    shares = r"context \d+\.\d %, targets \d+\.\d %, unseen \d+\.\d %; context by row, top to bottom: 0\.\d\d "
    for recipe, words in (("brief_vit_base_16", ["union"]), ("paper_vit_base_16", ["unbiased", "released"])):
        result = openjepa("masks", "--recipe", recipe, "--out", tmp_path / f"{recipe}.png", "--batch-size", "64")
        lines = [line for line in result.stdout.splitlines() if re.search(shares, line)]
        assert [line.split(":")[0].split()[0] for line in lines] == words
        assert Image.open(tmp_path / f"{recipe}.png").size[0] > 600


def test_recipes_lists_all_and_prints_one_that_loads(tmp_path: Path):
    listing = openjepa("recipes").stdout
    for name in ("brief_vit_base_16", "paper_vit_base_16", "paper_vit_huge_16_448", "paper_vit_giant_16", "demo"):
        assert name in listing
    (tmp_path / "mine.yaml").write_text(openjepa("recipes", "demo").stdout)
    assert openjepa("recipes", tmp_path / "mine.yaml").stdout == openjepa("recipes", "demo").stdout


def test_keys_are_explained_with_their_values():
    lines = openjepa("keys").stdout.splitlines()
    assert {line.partition(" ")[0] for line in lines} >= {"optim.lr", "views.main.mask.sampler", "method.temperature"}
    (line,) = openjepa("keys", "optim.lr_batch_size", "--recipe", "paper_vit_base_16").stdout.splitlines()
    assert line.startswith("optim.lr_batch_size = 2048: ")
    assert "method.temperature" not in openjepa("keys", "method", "--recipe", "demo").stdout


@pytest.mark.parametrize(
    "words",
    [
        ["data.batch_size=64", "views.main.crop_scale=[0.3, 1]", "train.compile=true"],
        ["--data.batch-size", "64", "--views.main.crop-scale", "[0.3, 1]", "--train.compile"],
        ["--data.batch-size=64", "--views.main.crop_scale=[0.3, 1]", "--train.compile=true"],
    ],
)
def test_a_value_is_written_in_three_ways(words: list[str]):
    rest, assignments = split_assignments(["pretrain", "photos", *words, "--out", "runs/mine", "--resume"])
    assert rest == ["pretrain", "photos", "--out", "runs/mine", "--resume"]
    assert read_assignments(assignments) == {"data.batch_size": 64, "views.main.crop_scale": [0.3, 1], "train.compile": True}


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "lr=0.1", "--out", "runs/lr=0.2"],  # which is a folder
        ["pretrain", "photos", "--out=runs/lr=0.2", "--recipe=my.best.yaml", "--init", "./step.1.safetensors"],
        ["pretrain", "photos", "--out", "lr=0.2", "--recipe", "demo"],
        ["pretrain", "photos", "--recipe", "demo", "--init", "seed=1"],
    ],
)
def test_folders_may_be_called_what_looks_like_a_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    assert split_assignments(words) == (words, [])


def test_make_scenes_writes_a_set_and_never_over_another(tmp_path: Path):
    result = openjepa("make-scenes", tmp_path / "scenes", "--train", "60", "--test", "12", "--size", "32", "--seed", "3")
    assert "60 training and 12 test scenes" in result.stdout
    assert len(list((tmp_path / "scenes" / "train").glob("*/*.png"))) == 60
    assert json.loads((tmp_path / "scenes" / "dataset.json").read_text())["seed"] == 3
    again = openjepa("make-scenes", tmp_path / "scenes", "--train", "60", check=False)
    assert_refused(again, "scenes exists")
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_help_does_not_wait_for_slow_imports():
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "openjepa.cli", "--help"], capture_output=True, text=True, check=True
    )
    assert not re.search(r"\| +(torch|timm|sklearn|matplotlib)$", loaded.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pretrain", "nowhere", "--out", "run", "--recipe", "demo"), ["nowhere"]),
        (("pretrain", "sample:train", "--out", "run"), ["--recipe", "brief_vit_base_16"]),
        (("pretrain", "sample:train", "--out", "run", "--recipe", "demmo"), ["did you mean demo"]),
        ((*DEMO, "--data.image-size", "30"), ["30", "28", "32"]),
        ((*DEMO, "data.image_size=30"), ["30", "28", "32"]),
        ((*DEMO, "optim.lrr=1"), ["did you mean optim.lr?"]),
        ((*DEMO, "--optim.lr", "fast"), ["optim.lr = 'fast'"]),
        ((*DEMO, "optim.betas=[0.9"), ["optim.betas", "YAML"]),
        ((*DEMO, "--train.max-steps", "5"), ["did you mean train.length?"]),
        ((*DEMO, "train.length=5"), ["300epochs, 5000steps or 30minutes"]),
        ((*DEMO, "method.temperature=1"), ["method.name simclr"]),
        ((*DEMO, "views.main.mask.sampler=squares"), ["squares", "block"]),
        (("pretrain", "empty", "--out", "run", "--recipe", "demo"), ["empty"]),
        (("pretrain", "sample:train", "--out", "run", "--resume"), ["run"]),
        (("pretrain", "sample:train", "--out", "file/run", "--recipe", "demo"), ["file"]),
        (("evaluate", "run", "--protocol", "knn", "--train", "sample:train", "--test", "sample:test"), ["run"]),
        (("evaluate", "timm:vit_smal_patch16_224", "--task", "knn", *SAMPLE), ["did you mean vit_small_patch16_224"]),
        (("evaluate", "pixels:", "--task", "knn", *SAMPLE), ["pixels:28"]),
        (("evaluate", "hf:empty", "--task", "knn", *SAMPLE), ["empty", "config.json"]),
        (("evaluate", "pixels:8", "--task", "linear", "--layers", "2", *SAMPLE), ["--layers 1"]),
        (("evaluate", "pixels:8", "--task", "knn", "--accuracy", "0.9", *SAMPLE), ["--accuracy", "knn"]),
        (("evaluate", "pixels:8", "--task", "labels-needed", "--accuracy", "90", *SAMPLE), ["--accuracy", "0.9", "90"]),
        (("report", "empty"), ["empty", "run.json"]),
        (("health", "empty"), ["empty", "run.json"]),
        (("make-scenes", "scenes", "--train", "0"), ["--train 0", "12"]),
        (("make-scenes", "scenes", "--size", "8"), ["--size 8", "32"]),
        (("make-scenes", "file/scenes", "--train", "12", "--test", "12"), ["file"]),
        (("masks", "--recipe", "bad.yaml", "--out", "masks.png"), ["optim.lr", "did you mean"]),
        (("masks", "--recipe", "crowded.yaml", "--out", "masks.png"), ["patches"]),
        (("masks", "--recipe", "demo", "--out", "masks.png", "--batch-size", "0"), ["--batch-size 0"]),
        (("masks", "--recipe", "simclr_small", "--out", "masks.png"), ["simclr_small", "hides no patches"]),
        (("keys", "optics"), ["optics", "optim"]),
        (("keys", "--recipe", "demmo"), ["did you mean demo"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, arguments: tuple[str, ...], words: list[str]):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "bad.yaml").write_text("optim: {lrr: 1}\n")
    (tmp_path / "crowded.yaml").write_text(
        "extends: brief_vit_base_16\nviews: {main: {mask: {context_scale: [0.9, 1.0], target_scale: [0.5, 0.9]}}}\n"
    )
    before = sorted(tmp_path.rglob("*"))
    assert_refused(openjepa(*arguments, check=False, cwd=tmp_path), *words)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_second_run_does_not_overwrite_the_first(photos: Path, run: Path):
    assert_refused(openjepa("pretrain", photos, "--out", run, *SMALL, check=False), "--resume")


def test_a_damaged_latest_checkpoint_falls_back(photos: Path, run: Path, tmp_path: Path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    latest = copy / "checkpoints" / "step-00000006.safetensors"
    latest.write_bytes(latest.read_bytes()[:-100])
    result = openjepa("pretrain", photos, "--out", copy, "--resume")
    assert "step-00000006" in result.stderr
    assert "Resuming at step 3" in result.stderr
    assert latest.read_bytes() == (run / "checkpoints" / latest.name).read_bytes()
