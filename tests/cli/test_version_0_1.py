"""Run folders of version 0.1: every verb that reads a run reads them, and none goes on with one.

The recipe and the facts are those of a run that commit c501f71 made (`pretrain sample:train --recipe small_10k`, tiny). Where
its targets were pixels of ijepa, its checkpoint held a target encoder beside what MAE has; PCA's fit has the names of today.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from openjepa.cli import main
from openjepa.commands.embed import embed
from openjepa.commands.evaluate import evaluate
from openjepa.engine.checkpoint import load_checkpoint, save_checkpoint
from openjepa.engine.optim import state_tensors
from openjepa.methods.ijepa import IJEPA
from openjepa.methods.mae import MAE
from openjepa.methods.make import make_method
from openjepa.recipe import methods
from openjepa.recipe.check import build_recipe
from openjepa.recipe.files import load_recipe
from openjepa.training.build import make_trainer
from openjepa.weights.load import load_method

RECIPE: dict[str, Any] = json.loads("""
{"name": "small_10k", "description": "About 10,000 images",
 "data": {"image_size": 16, "channels": 1, "batch_size": 16, "workers": 0, "augmentation": "minimal", "crop_scale": [0.3, 1.0],
          "flip_probability": 0.5, "normalization": "measured"},
 "model": {"encoder": "tiny", "width": 16, "depth": 2, "heads": 2, "patch_size": 4, "predictor_width": 8, "predictor_depth": 1,
           "predictor_heads": 2, "predictor_positions": "own", "residual_rescale": false},
 "mask": {"sampler": "random", "num_contexts": 1, "context_scale": [0.25, 0.25], "context_aspect": [1.0, 1.0], "num_targets": 4,
          "target_scale": [0.75, 0.75], "target_aspect": [0.75, 1.5], "fidelity": "unbiased"},
 "method": {"name": "ijepa", "targets": "pixels", "target_input": "image", "target_norm": "layer", "target_layers": 1,
            "predict": "joint", "loss": "mse", "regularizer": "vicreg", "regularizer_on": "tokens", "regularizer_weight": 0.3},
 "optim": {"lr": 0.00125, "lr_batch_size": 128, "start_lr": 0.0, "final_lr": 0.0, "warmup_epochs": 20.0,
           "weight_decay": [0.05, 0.05], "predictor_weight_decay": [0.04, 0.04], "layer_decay": 1.0, "clip_grad_norm": 1.0,
           "betas": [0.9, 0.999], "eps": 1e-08},
 "momentum": {"schedule": "linear", "start": 0.99, "end": 1.0},
 "train": {"epochs": 200.0, "max_steps": 4, "max_minutes": null, "precision": "fp32", "accumulation_steps": 1,
           "activation_checkpointing": "none", "compile": false, "fp8": false, "device": "auto", "seed": 0,
           "log_every_steps": 10},
 "checkpoint": {"every_steps": 500, "every_epochs": 50, "keep": 2},
 "health": {"every_steps": 200, "num_images": 16, "probe_every_steps": 1000}}
""")
KINDS: dict[str, dict[str, Any]] = {
    "pixels": RECIPE,
    "pca": RECIPE | {"method": RECIPE["method"] | {"targets": "pca", "target_norm": "none"}},
    "features": RECIPE | {"method": RECIPE["method"] | {"targets": "features"}},
    "mae": RECIPE | {"method": RECIPE["method"] | {"name": "mae", "targets": "features"}, "momentum": {
        "schedule": "linear", "start": 0.996, "end": 1.0}},  # which were not looked at
}  # fmt: skip


ROWS = [  # as version 0.1 logged them, momentum beside the rate
    {"kind": "train", "step": step, "epoch": 0.5 * step, "loss": 1.5 - step / 10, "explained_variance": 0.1, "grad_norm": 0.5,
     "lr": 0.001, "weight_decay": 0.05, "momentum": 0.99, "images_per_s": 100.0, "fraction_of_peak": 0.1, "data_wait_frac": 0.0,
     "skipped_steps": 0, "overflowed_steps": 0, "trained_s": 0.1}
    for step in range(2)
] + [
    {"kind": "health", "step": step, "effective_rank_pooled": 3.0 + step, "effective_rank_tokens": 3.0, "feature_std": 0.5,
     "image_cosine": 0.8, "loss": 1.5, "explained_variance": 0.1, "grad_norm": 0.5, "skipped_in_a_row": 0, "label": "too early"}
    for step in range(2)
]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name in ("bright", "dark"):
        (folder / name).mkdir()
        for number in range(16):
            pixels = generator.integers(0, 128, (20, 20), dtype=np.uint8) + 120 * (name == "bright")
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:02}.png")
    return folder


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def old(kind: str, photos: Path, tmp_path: Path) -> Path:
    """A run folder after 2 of 4 steps, as version 0.1 wrote it."""
    folder, recorded = tmp_path / "old", KINDS[kind]
    trainer = make_trainer(build_recipe(recorded), [0.5], [0.25], 4, "fp32")
    method, optimizer = trainer.method, trainer.optimizer
    if kind == "pca":
        masks_of_all = torch.arange(16).expand(8, 1, 16)
        method.pixel_targets(torch.randn(8, 1, 16, 16), masks_of_all)
    for weight in trainer.weights:
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    tensors = {f"method.{name}": value for name, value in method.state_dict().items()}
    if kind != "mae":
        weights = method.context_encoder.state_dict()
        tensors |= {f"method.target_encoder.{name}": 0.9 * value for name, value in weights.items()}
    tensors |= {f"optimizer.{name}": value for name, value in state_tensors(method, optimizer).items()}
    info = {"step": 2, "recipe": recorded, "mean": [0.5], "std": [0.25], "num_skipped": 0, "skipped_in_a_row": 0, "scaler": {}}
    save_checkpoint(folder / "checkpoints", 2, tensors, info, permanent=False, keep=2)
    facts = {
        "name": "small_10k", "data": str(photos), "num_images": 32, "recipe": recorded, "total_steps": 4, "plans": [[0, 4]],
        "measured_step_ms": None, "mean": [0.5], "std": [0.25], "num_parameters": {"encoder": 6864, "predictor": 1176},
        "versions": {"openjepa": "0.1.0"}, "git": {"commit": "c501f71", "dirty": False},
        "hardware": {"cpu": "AMD EPYC", "num_cores": 2, "memory_gb": 23.5, "device": "cpu"}, "precision": "fp32", "init": None,
        "started": "2026-11-27T00:23:45+0000", "finished": None,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "recipe.yaml").write_text(json.dumps(recorded))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def test_a_run_is_evaluated_embedded_reported_and_exported(old: Path, photos: Path, tmp_path: Path):
    assert evaluate(old, "knn", str(photos), str(photos))["encoder"] == "context"
    assert embed(old, str(photos), tmp_path / "features.parquet") == 32
    main(["report", str(old)])
    assert "data:image/" in (old / "report.html").read_text()  # pictures of what its encoder sees
    main(["export", str(old), "--format", "safetensors", "--out", str(tmp_path / "encoder.safetensors")])
    assert (tmp_path / "encoder.safetensors").is_file()


def test_features_are_those_of_its_weights(old: Path, kind: str, photos: Path, tmp_path: Path):
    """The context encoder's, by timm's own code."""
    import pyarrow.parquet as pq
    from timm.models.vision_transformer import VisionTransformer

    embed(old, str(photos), tmp_path / "features.parquet")
    table = pq.read_table(tmp_path / "features.parquet")
    (file,) = (old / "checkpoints").glob("*.safetensors")
    tensors, _ = load_checkpoint(file, prefix="method.context_encoder.")
    vit = VisionTransformer(
        img_size=16, patch_size=4, in_chans=1, embed_dim=16, depth=2, num_heads=2, class_token=False, num_classes=0,
        fc_norm=False, global_pool="avg",
    )  # fmt: skip
    vit.load_state_dict({name.removeprefix("method.context_encoder."): value for name, value in tensors.items()}, strict=True)
    pictures = [np.asarray(Image.open(path).resize((16, 16), Image.Resampling.BILINEAR)) for path in table["path"].to_pylist()]
    images = (torch.from_numpy(np.stack(pictures))[:, None] / 255 - 0.5) / 0.25
    with torch.no_grad():
        expected = vit.eval()(images)
    torch.testing.assert_close(torch.tensor(table["features"].to_pylist()), expected, rtol=1e-3, atol=1e-4)


def test_its_method_is_todays_with_its_weights(old: Path, kind: str):
    (file,) = (old / "checkpoints").glob("*.safetensors")
    trained = load_method(file)
    tensors, _ = load_checkpoint(file, prefix="method.")
    assert isinstance(trained.method, IJEPA if kind == "features" else MAE)
    if kind == "features":
        assert trained.recipe.method.momentum == methods.Momentum(start=0.99)
    else:
        assert trained.recipe.method.targets == ("pca" if kind == "pca" else "normalised_pixels")
    ours = trained.method.state_dict()
    theirs = {name.removeprefix("method.") for name in tensors}
    assert ours.keys() == (theirs if kind == "features" else {name for name in theirs if "target_encoder" not in name})
    assert all(torch.equal(value, tensors[f"method.{name}"]) for name, value in ours.items())
    assert load_recipe(old / "recipe.yaml") == trained.recipe


def test_its_health_is_judged_again(old: Path, capsys: pytest.CaptureFixture[str]):
    main(["health", str(old), "--all"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" (")[0] for line in lines] == ["step 0", "step 1", "now: step 1"]
    assert all(": too early: " in line for line in lines)


def test_weights_of_another_name_are_still_refused(old: Path):
    (file,) = (old / "checkpoints").glob("*.safetensors")
    trained = load_method(file)
    for strange in ("target_encoder_2.norm.weight", "context_encoder.target_encoder.norm.weight"):
        with pytest.raises(RuntimeError, match=strange):
            make_method(trained.recipe).load_state_dict(trained.method.state_dict() | {strange: torch.zeros(1)}, strict=True)


@pytest.mark.parametrize("recipe", ["small_1k", "demo"])
def test_a_new_run_starts_from_its_weights(old: Path, kind: str, photos: Path, tmp_path: Path, recipe: str):
    """Of MAE or of I-JEPA: the predictor is a new one where it predicts something else."""
    shape = RECIPE["model"]
    tiny = [f"model.{key}={shape[key]}" for key in ("width", "depth", "heads", "patch_size")]
    tiny += [f"method.predictor.{key}={shape[f'predictor_{key}']}" for key in ("width", "depth", "heads")]
    tiny += ["--data.image-size=16", "--data.channels=1", "--data.batch-size=16", "--data.workers=0", "--optim.lr=0.0"]
    tiny += ["--train.length=1steps", "--train.precision=fp32", "--health.num-images=16"]
    out = tmp_path / "new"
    main(["pretrain", str(photos), "--out", str(out), "--recipe", recipe, "--init", str(old), *tiny])
    before, _ = load_checkpoint(next((old / "checkpoints").glob("*.safetensors")), "method.")
    after, _ = load_checkpoint(next((out / "checkpoints").glob("*.safetensors")), "method.")
    ours = {name for name in after if "_encoder." in name}
    theirs = {name for name in before if "_encoder." in name}
    context = {name for name in theirs if name.startswith("method.context_encoder.")}
    targets = {name.replace("context_encoder", "target_encoder") for name in context}
    assert theirs == (context if kind == "mae" else context | targets)
    assert ours == (context if recipe == "small_1k" else context | targets)
    moved = {name.split(".")[1] for name, value in after.items() if not torch.equal(value, before.get(name, torch.zeros(0)))}
    same_predictions = kind in (("pixels", "mae") if recipe == "small_1k" else ("features",))
    assert moved - {"target_encoder"} == (set() if same_predictions else {"predictor"})
    taken = json.loads((out / "run.json").read_text())["init"]["taken"]
    assert ("a new predictor" in taken) != same_predictions
    assert ("target encoder" in taken) == (recipe == "demo" and kind != "mae")


def test_a_run_cannot_go_on(old: Path, photos: Path, capsys: pytest.CaptureFixture[str]):
    """In one line that says what can be done instead; nothing of the run is touched."""
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", str(photos), "--out", str(old), "--resume"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "earlier version" in line and f"--init {old}" in line
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before
