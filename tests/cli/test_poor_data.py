"""Images from which nothing can be learned, and runs too short to say so: what a user reads at the start and in the verdict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openjepa.cli import main
from tests.cli.console import openjepa
from tests.cli.test_commands import SMALL

QUICK = (*SMALL, "train.precision=fp32", "data.workers=0", "health.num_images=256", "views.main.crop_scale=null")


def write_folder(folder: Path, pictures: list[np.ndarray]) -> Path:
    folder.mkdir()
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def draw(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))


BLACK = np.zeros((32, 32, 3), np.uint8)


def run_here(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """The command line in this process, which saves its imports: exit status, standard output and standard error."""
    status = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = int(stop.code or 0)
    return status, *capsys.readouterr()


@pytest.mark.parametrize(
    ("pictures", "said", "labels"),
    [
        (draw(3), "only 3 images", {"collapsed", "not learning yet"}),
        ([BLACK] * 120, "all 120 images are black", {"collapsed"}),
    ],
)
def test_the_warning_comes_first_and_the_verdict_blames_the_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pictures: list[np.ndarray], said: str, labels: set[str]
):
    photos = write_folder(tmp_path / "photos", pictures)
    status, out, err = run_here(capsys, "pretrain", photos, "--out", tmp_path / "run", *QUICK)
    assert status == 0
    assert err.splitlines()[0].lower().startswith(said)
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert verdict["reason"].startswith(said)
    assert verdict["label"] in labels
    assert out.splitlines()[0].startswith(f"{verdict['label']}: {said}")
    assert "vicreg" not in out


def test_a_process_on_copies_of_one_image_says_so(tmp_path: Path):
    photos = write_folder(tmp_path / "photos", draw(1) * 120)
    result = openjepa("pretrain", photos, "--out", tmp_path / "run", *QUICK)
    assert result.stderr.splitlines()[0].startswith("All 120 images are identical")
    assert result.stdout.startswith("collapsed: all 120 images are identical: there is nothing to tell apart. Train on ")
    (tmp_path / "run" / "checkpoints" / "step-00000006.json").unlink()
    again = openjepa("pretrain", photos, "--out", tmp_path / "run", "--resume")
    assert again.stdout.startswith("collapsed: all 120 images are identical")


@pytest.mark.parametrize(
    ("count", "flags", "words"),
    [(1, (), ("holds 1 image",)), (12, ("health.probe.train=photos", "health.probe.test=photos"), ("no labels", "sub-folder"))],
)
def test_what_cannot_run_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, count: int, flags: tuple[str, ...],
    words: tuple[str, ...],
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos", draw(count))
    status, _, err = run_here(capsys, "pretrain", "photos", "--out", "run", *QUICK, *flags)
    assert status == 2 and len(err.strip().splitlines()) == 1
    assert all(word in err for word in words)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_doctor_warns_of_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from openjepa.commands import doctor

    monkeypatch.setattr(doctor, "MEASURED_S", 0.1)
    photos = write_folder(tmp_path / "photos", draw(1) * 12)
    status, out, _ = run_here(capsys, "doctor", photos, "--recipe", "demo")
    assert status == 0
    assert "warning: all 12 images are identical: there is nothing to tell apart" in out.splitlines()


def test_a_run_too_short_for_a_verdict_says_how_long_it_must_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    photos = write_folder(tmp_path / "photos", draw(120))
    _, out, err = run_here(capsys, "pretrain", photos, "--out", tmp_path / "run", *QUICK, "train.length=2steps")
    for said in (err.splitlines()[0], out):
        assert "at least 3 steps" in said and "has 2" in said
    assert out.startswith("too early: ")
    assert json.loads((tmp_path / "run" / "verdict.json").read_text())["label"] == "too early"
