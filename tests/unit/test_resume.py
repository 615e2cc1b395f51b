"""What a resumed run does with every recipe key that has changed: it acts, or it is refused and nothing is lost."""

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file

from openjepa.commands.pretrain import pretrain
from openjepa.recipe.files import build_recipe, recipe_keys
from openjepa.training.resume import IGNORED, REFUSED

STEPS = 4
TINY = {
    "data": {
        "image_size": 28, "channels": 1, "batch_size": 8, "workers": 0, "normalization": "measured", "augmentation": "minimal",
    },
    "model": {
        "width": 16, "depth": 2, "heads": 2, "patch_size": 4,
        "predictor_width": 8, "predictor_depth": 1, "predictor_heads": 2,
    },
    "mask": {"sampler": "union", "num_contexts": 3, "context_scale": [0.1, 0.2], "num_targets": 2, "target_scale": [0.1, 0.2]},
    "method": {"regularizer": "vicreg", "regularizer_weight": 0.1, "loss": "mse"},
    "optim": {"lr": 1e-2, "warmup_epochs": 0, "clip_grad_norm": 0.5, "lr_batch_size": 8},
    "momentum": {"start": 0.9, "end": 0.99},
    "train": {"max_steps": STEPS, "epochs": 300, "precision": "fp32", "device": "cpu", "log_every_steps": 1},
    "health": {"num_images": 8, "every_steps": 2},
}  # fmt: skip

# A value other than TINY's for every key that a resumed run can follow; "weights" where it must show in them after STEPS.
ACTS = {
    "data.batch_size": (16, "weights"),
    "data.augmentation": ("none", "weights"),
    "data.crop_scale": ((0.1, 0.2), "weights"),
    "data.flip_probability": (0.0, "weights"),
    "data.workers": (1, "nothing"),
    "mask.sampler": ("random", "weights"),
    "mask.num_contexts": (1, "weights"),
    "mask.context_scale": ((0.3, 0.35), "weights"),
    "mask.context_aspect": ((0.5, 0.6), "weights"),
    "mask.num_targets": (1, "weights"),
    "mask.target_scale": ((0.05, 0.06), "weights"),
    "mask.target_aspect": ((2.0, 2.1), "weights"),
    "method.target_input": ("patches", "weights"),
    "method.target_norm": ("none", "weights"),
    "method.target_layers": (2, "weights"),
    "method.predict": ("joint", "weights"),
    "method.loss": ("smooth_l1", "weights"),
    "method.regularizer": ("sigreg", "weights"),
    "method.regularizer_on": ("tokens", "weights"),
    "method.regularizer_weight": (0.5, "weights"),
    "optim.lr": (1e-3, "weights"),
    "optim.lr_batch_size": (16, "weights"),
    "optim.start_lr": (5e-3, "nothing"),  # the warm-up has none
    "optim.final_lr": (5e-3, "weights"),
    "optim.warmup_epochs": (150, "weights"),
    "optim.weight_decay": ((0.5, 0.5), "weights"),
    "optim.predictor_weight_decay": ((0.5, 0.5), "weights"),
    "optim.layer_decay": (0.5, "weights"),
    "optim.clip_grad_norm": (None, "weights"),
    "optim.betas": ((0.5, 0.9), "weights"),
    "optim.eps": (1e-2, "weights"),
    "momentum.schedule": ("fixed", "weights"),
    "momentum.start": (0.5, "weights"),
    "momentum.end": (1.0, "weights"),
    "train.max_steps": (6, "length"),
    "train.precision": ("fp16", "precision"),
    "train.accumulation_steps": (1, "nothing"),
    "train.activation_checkpointing": ("full", "nothing"),
    "train.log_every_steps": (3, "nothing"),
    "checkpoint.every_steps": (1, "nothing"),
    "checkpoint.every_epochs": (1, "nothing"),
    "checkpoint.keep": (1, "nothing"),
    "health.every_steps": (1, "nothing"),
    "health.probe_every_steps": (1, "nothing"),
}
# Only with others, or only on a GPU: they are read where the trainer is built, as are those above.
NOT_TRIED = {"mask.fidelity", "train.epochs", "train.max_minutes", "train.compile", "train.fp8", "train.device"}
REFUSED_VALUES = {
    "data.image_size": 56,
    "data.channels": 3,
    "data.normalization": "imagenet",
    "model.encoder": "small",
    "model.width": 32,
    "model.depth": 3,
    "model.heads": 4,
    "model.patch_size": 7,
    "model.predictor_width": 16,
    "model.predictor_depth": 2,
    "model.predictor_heads": 1,
    "model.predictor_positions": "projected",
    "model.residual_rescale": True,
    "train.seed": 1,
    "health.num_images": 16,
}


def change(values, key, value):
    """The plain values with section.key replaced."""
    copy = json.loads(json.dumps(values))
    section, _, name = key.partition(".")
    copy.setdefault(section, {})[name] = value
    return copy


def train(out, values, **options):
    return pretrain("sample:train", build_recipe(values), out, console=Console(quiet=True), **options)


def read_files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run of STEPS steps whose folder was left at half: it has a checkpoint of step 2 and no later one."""
    folder = tmp_path_factory.mktemp("half") / "run"
    train(folder, change(TINY, "checkpoint.every_steps", STEPS // 2))
    for path in folder.glob(f"checkpoints/step-{STEPS:08}.*"):
        path.unlink()
    return folder


@pytest.fixture
def copy(half, tmp_path):
    shutil.copytree(half, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def unchanged(half, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unchanged") / "run"
    shutil.copytree(half, folder)
    train(folder, change(TINY, "checkpoint.every_steps", STEPS // 2), resume=True)
    return folder


def last_weights(folder):
    tensors = load_file(sorted(folder.glob("checkpoints/*.safetensors"))[-1])
    return {name: value.tolist() for name, value in tensors.items() if name.startswith("method.")}


def test_every_key_is_in_one_table():
    tables = [set(ACTS), set(REFUSED), set(IGNORED), NOT_TRIED]
    assert set().union(*tables) == set(recipe_keys())
    assert sum(map(len, tables)) == len(recipe_keys())


@pytest.mark.parametrize("key", ACTS)
def test_an_accepted_change_acts_and_is_recorded(copy, unchanged, key):
    value, shows_in = ACTS[key]
    values = change(change(TINY, "checkpoint.every_steps", STEPS // 2), key, value)
    train(copy, values, resume=True, accept_changes=True)
    facts = json.loads((copy / "run.json").read_text())
    section, _, name = key.partition(".")
    assert facts["recipe"][section][name] == json.loads(json.dumps(value))
    if shows_in == "weights":
        assert last_weights(copy) != last_weights(unchanged)
    elif shows_in == "length":
        assert facts["total_steps"] == value
        assert (copy / f"checkpoints/step-{value:08}.safetensors").exists()
    elif shows_in == "precision":  # a CPU that emulates it takes fp32, and that is recorded
        assert facts["precision"] in ("fp16", "fp32")
    else:
        assert last_weights(copy) == last_weights(unchanged)


@pytest.mark.parametrize("key", REFUSED_VALUES)
def test_a_change_that_weights_cannot_follow_is_refused_and_nothing_is_lost(copy, unchanged, key):
    before = read_files(copy)
    base = change(TINY, "checkpoint.every_steps", STEPS // 2)
    with pytest.raises(ValueError, match=key.replace(".", r"\.")) as refusal:
        train(copy, change(base, key, REFUSED_VALUES[key]), resume=True, accept_changes=True)
    assert "--init" in str(refusal.value) and len(str(refusal.value).splitlines()) == 1
    after = read_files(copy)
    after.pop(Path(".lock"), None)
    before.pop(Path(".lock"), None)
    assert after == before
    train(copy, base, resume=True)
    assert last_weights(copy) == last_weights(unchanged)


def test_a_change_that_was_not_accepted_is_named(copy):
    values = change(change(TINY, "checkpoint.every_steps", STEPS // 2), "optim.lr", 0.5)
    with pytest.raises(ValueError, match=r"optim\.lr 0\.01 -> 0\.5.*--accept-changes"):
        train(copy, values, resume=True)


def test_another_precision_is_the_one_that_runs(copy, monkeypatch):
    """Version 0.1 recorded the new one and went on in the old one."""
    from openjepa.training import hooks, prepare, session

    monkeypatch.setattr(prepare, "choose_precision", lambda device, asked: asked)
    monkeypatch.setattr(hooks, "_peak", lambda *_: 1e12)  # of emulated products it would take minutes
    values = change(change(TINY, "checkpoint.every_steps", STEPS // 2), "train.precision", "bf16")
    seen = []
    make = session.make_trainer
    monkeypatch.setattr(session, "make_trainer", lambda *given: seen.append(given[-1]) or make(*given))
    train(copy, values, resume=True, accept_changes=True)
    assert seen == ["bf16"]
    assert json.loads((copy / "run.json").read_text())["precision"] == "bf16"


def test_a_run_on_other_images_of_the_same_number_is_not_resumed(copy, tmp_path):
    """Version 0.1 compared the number of images alone."""
    import numpy as np
    from PIL import Image

    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        generator = np.random.default_rng(seed)
        for number in range(12):
            side = 28 + 4 * seed
            Image.fromarray(generator.integers(0, 256, (side, side), np.uint8)).save(tmp_path / name / f"{number}.png")
    recipe, quiet = build_recipe(change(TINY, "train.max_steps", 2)), Console(quiet=True)
    pretrain(str(tmp_path / "a"), recipe, tmp_path / "r", console=quiet)
    longer = build_recipe(TINY)
    with pytest.raises(ValueError, match="images"):
        pretrain(str(tmp_path / "b"), recipe, tmp_path / "r", resume=True, console=quiet)
    (tmp_path / "a").rename(tmp_path / "moved")
    pretrain(str(tmp_path / "moved"), longer, tmp_path / "r", resume=True, accept_changes=True, console=quiet)
    assert json.loads((tmp_path / "r" / "run.json").read_text())["data"] == str(tmp_path / "moved")


def test_weights_that_do_not_fit_leave_the_place_free(half, tmp_path):
    """Version 0.1 took OUT, then failed."""
    values = change(TINY, "model.predictor_width", 16)
    with pytest.raises(ValueError, match="predictor"):
        train(tmp_path / "new", values, init=half)
    assert not (tmp_path / "new").exists()


def test_weights_of_a_run_start_another_one_as_it_says(half, tmp_path):
    train(tmp_path / "new", change(TINY, "data.normalization", "imagenet"), init=half)
    facts = json.loads((tmp_path / "new" / "run.json").read_text())
    fresh = json.loads((half / "run.json").read_text())["untrained"]
    # measured before the weights came: another normalisation of the same encoder, and nothing of the trained one
    assert facts["untrained"]["effective_rank_pooled"] == pytest.approx(fresh["effective_rank_pooled"], rel=0.2)
