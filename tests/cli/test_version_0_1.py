"""Run folders of version 0.1 whose targets were pixels of ijepa: every verb that reads a run reads them.

The recipe and the facts are those of a run that commit c501f71 made (`pretrain sample:train --recipe small_10k`, tiny); its
checkpoint held a target encoder beside what MAE has, and PCA's fit under the names that it has today.
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
from openjepa.methods import MAE
from openjepa.methods.make import make_method
from openjepa.recipe import files, sections
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
PCA = RECIPE | {"method": RECIPE["method"] | {"targets": "pca", "target_norm": "none"}}


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


@pytest.fixture(params=["pixels", "pca"])
def old(request: pytest.FixtureRequest, photos: Path, tmp_path: Path) -> Path:
    """A run folder after 2 of 4 steps, as version 0.1 wrote it."""
    folder, recorded = tmp_path / "old", {"pixels": RECIPE, "pca": PCA}[request.param]
    trainer = make_trainer(files.build_recipe(recorded), [0.5], [0.25], 4, "fp32")
    method, optimizer = trainer.method, trainer.optimizer
    if request.param == "pca":
        masks_of_all = torch.arange(16).expand(8, 1, 16)
        method.pixel_targets(torch.randn(8, 1, 16, 16), masks_of_all)
    for weight in trainer.weights:
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    tensors = {f"method.{name}": value for name, value in method.state_dict().items()}
    tensors |= {f"method.target_encoder.{name}": 0.9 * value for name, value in method.context_encoder.state_dict().items()}
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
    return folder


def test_a_run_is_evaluated_embedded_reported_and_exported(old: Path, photos: Path, tmp_path: Path):
    assert evaluate(old, "knn", str(photos), str(photos))["encoder"] == "context"
    assert embed(old, str(photos), tmp_path / "features.parquet") == 32
    main(["report", str(old)])
    assert "data:image/" in (old / "report.html").read_text()  # pictures of what its encoder sees
    main(["export", str(old), "--format", "safetensors", "--out", str(tmp_path / "encoder.safetensors")])
    assert (tmp_path / "encoder.safetensors").is_file()


def test_its_method_is_mae_with_its_weights(old: Path):
    (file,) = (old / "checkpoints").glob("*.safetensors")
    trained = load_method(file)
    tensors, _ = load_checkpoint(file, prefix="method.")
    assert isinstance(trained.method, MAE)
    assert trained.recipe.momentum == sections.Momentum()
    ours = trained.method.state_dict()
    assert ours.keys() == {name.removeprefix("method.") for name in tensors if "target_encoder" not in name}
    assert all(torch.equal(value, tensors[f"method.{name}"]) for name, value in ours.items())
    assert files.load_recipe(old / "recipe.yaml") == trained.recipe


def test_weights_of_another_name_are_still_refused(old: Path):
    (file,) = (old / "checkpoints").glob("*.safetensors")
    trained = load_method(file)
    for strange in ("target_encoder_2.norm.weight", "context_encoder.target_encoder.norm.weight"):
        with pytest.raises(RuntimeError, match=strange):
            make_method(trained.recipe).load_state_dict(trained.method.state_dict() | {strange: torch.zeros(1)}, strict=True)


@pytest.mark.parametrize("recipe", ["small_1k", "demo"])
def test_a_new_run_starts_from_its_weights(old: Path, photos: Path, tmp_path: Path, recipe: str):
    """Of MAE, which predicts the same where it predicts pixels, and of I-JEPA, whose predictor is a new one."""
    tiny = [f"--model.{key.replace('_', '-')}={RECIPE['model'][key]}" for key in
            ("width", "depth", "heads", "patch_size", "predictor_width", "predictor_depth", "predictor_heads")]  # fmt: skip
    tiny += ["--data.image-size=16", "--data.channels=1", "--data.batch-size=16", "--data.workers=0", "--optim.lr=0.0"]
    tiny += ["--train.max-minutes=None", "--train.max-steps=1", "--train.precision=fp32", "--health.num-images=16"]
    out = tmp_path / "new"
    main(["pretrain", str(photos), "--out", str(out), "--recipe", recipe, "--init", str(old), *tiny])
    before, _ = load_checkpoint(next((old / "checkpoints").glob("*.safetensors")), "method.")
    after, _ = load_checkpoint(next((out / "checkpoints").glob("*.safetensors")), "method.")
    encoders = ("method.context_encoder.",) if recipe == "small_1k" else ("method.context_encoder.", "method.target_encoder.")
    assert {name for name in after if "_encoder." in name} == {name for name in before if name.startswith(encoders)}
    moved = {name.split(".")[1] for name, value in after.items() if not torch.equal(value, before.get(name, torch.zeros(0)))}
    targets = json.loads((old / "run.json").read_text())["recipe"]["method"]["targets"]
    same_predictions = recipe == "small_1k" and targets == "pixels"
    assert moved - {"target_encoder"} == (set() if same_predictions else {"predictor"})
    taken = json.loads((out / "run.json").read_text())["init"]["taken"]
    assert ("a new predictor" in taken) != same_predictions
    assert ("target encoder" in taken) == (recipe == "demo")


def test_a_run_goes_on(old: Path, photos: Path):
    main(["pretrain", str(photos), "--out", str(old), "--resume"])
    tensors, info = load_checkpoint(old / "checkpoints" / "step-00000004.safetensors")
    assert info["step"] == 4
    assert not any("target_encoder" in name for name in tensors)
    recipe = files.build_recipe(info["recipe"])
    assert (recipe.method.name, recipe.version) == ("mae", 2)
