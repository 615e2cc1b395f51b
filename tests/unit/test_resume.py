"""What a resumed run does with every recipe key that has changed: it acts, or it is refused and nothing is lost."""

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from openjepa.commands.pretrain import pretrain
from openjepa.recipe.check import build_recipe, recipe_keys
from openjepa.recipe.edit import nest, with_changes
from openjepa.recipe.methods import SECTIONS
from openjepa.training import hooks
from openjepa.training.resume import IGNORED, REFUSED
from tests.models import SMALL_SECTIONS

STEPS = 4
TINY = {
    "data.image_size": 28, "data.channels": 1, "data.batch_size": 8, "data.workers": 0, "data.normalization": "measured",
    "model.width": 16, "model.depth": 2, "model.heads": 2, "model.patch_size": 4,
    "optim.lr": 1e-2, "optim.warmup_frac": 0.0, "optim.clip_grad_norm": 0.5, "optim.lr_batch_size": 8,
    "train.length": f"{STEPS}steps", "train.precision": "fp32", "train.device": "cpu", "train.log_every_steps": 1,
    "health.num_images": 8, "health.every_steps": 2, "checkpoint.every_steps": STEPS // 2,
}  # fmt: skip
MASKED = {
    "method.predictor": {"width": 8, "depth": 1, "heads": 2}, "method.loss": "mse",
    "method.regularizer": {"name": "vicreg", "weight": 0.1, "acts_on": "pooled"},
    "views.main.mask": {
        "sampler": "union", "num_contexts": 3, "context_scale": [0.1, 0.2], "num_targets": 2, "target_scale": [0.1, 0.2],
    },
}  # fmt: skip
METHODS = {
    "ijepa": TINY | MASKED | {"method.name": "ijepa", "method.momentum": {"start": 0.9, "end": 0.99}},
    "mae": TINY | MASKED | {"method.name": "mae"},
    "simclr": TINY | {"method.name": "simclr", "method.projector_hidden": 16, "method.projector_width": 8},
    "supervised": TINY | {"method.name": "supervised", "method.drop_path": 0.2},
} | {
    name: TINY | SMALL_SECTIONS[name] | {
        "method.name": name, "method.teacher_temperature.warmup_frac": 1.0, "method.frozen_frac": 0.0, "views.local.size": 16,
    }
    for name in ("dino", "ibot")
} | {
    "detection": TINY | SMALL_SECTIONS["detection"] | {"method.name": "detection", "data.image_size": 32, "views.main.flip": 0.5},
}  # fmt: skip
METHODS |= {name: TINY | SMALL_SECTIONS.get(name, {}) | {"method.name": name} for name in SECTIONS if name not in METHODS}

# A value other than TINY's for every key that a resumed run can follow; "weights" where it must show in them after STEPS.
ACTS = {
    "data.batch_size": (16, "weights"),
    "data.workers": (1, "nothing"),
    "views.main.crop_scale": ([0.1, 0.2], "weights"),
    "views.main.flip": (0.0, "weights"),
    "views.main.colour": (1.0, "weights"),
    "views.main.jitter": ([0.1, 0.1, 0.1, 0.1], "nothing"),  # no view changes colour
    "views.main.grey": (1.0, "nothing"),  # all images are
    "views.main.blur": (1.0, "weights"),
    "views.main.solarize": (1.0, "weights"),
    "views.main.rand_augment": (2, "weights"),
    "views.main.rand_magnitude": (3.0, "nothing"),  # of no operations
    "views.main.mask.sampler": ("random", "weights"),
    "views.main.mask.num_contexts": (1, "weights"),
    "views.main.mask.context_scale": ([0.3, 0.35], "weights"),
    "views.main.mask.context_aspect": ([0.5, 0.6], "weights"),
    "views.main.mask.num_targets": (1, "weights"),
    "views.main.mask.target_scale": ([0.05, 0.06], "weights"),
    "views.main.mask.target_aspect": ([2.0, 2.1], "weights"),
    "method.target_input": ("patches", "weights"),
    "method.target_norm": ("none", "weights"),
    "method.predict": ("joint", "weights"),
    "method.loss": ("smooth_l1", "weights"),
    "method.regularizer": (None, "weights"),
    "method.regularizer.name": ("sigreg", "weights"),
    "method.regularizer.acts_on": ("tokens", "weights"),
    "method.regularizer.weight": (0.5, "weights"),
    "method.momentum.schedule": ("fixed", "weights"),
    "method.momentum.start": (0.5, "weights"),
    "method.momentum.end": (1.0, "weights"),
    "method.temperature": (0.5, "weights"),
    "method.label_smoothing": (0.5, "weights"),
    "method.mixup": (0.8, "weights"),
    "method.cutmix": (1.0, "weights"),
    "views.main.mask.per_view": (2, "weights"),
    "method.teacher_temperature.start": (0.02, "weights"),
    "method.teacher_temperature.end": (0.2, "weights"),
    "method.teacher_temperature.warmup_frac": (0.5, "weights"),
    "method.centre_momentum": (0.1, "weights"),
    "method.frozen_frac": (1.0, "weights"),
    "method.masked_frac": (0.0, "weights"),
    "method.patch_weight": (0.1, "weights"),
    "method.noise": (1.0, "weights"),
    "method.trade_off": (0.5, "weights"),
    "method.directions": (4, "weights"),
    "method.drop_path": (0.9, "weights"),
    "method.scale_jitter": ([0.9, 1.0], "weights"),
    "method.boxes_per_image": (64, "nothing"),  # of Mask R-CNN
    "optim.lr": (1e-3, "weights"),
    "optim.lr_batch_size": (16, "weights"),
    "optim.start_lr": (5e-3, "nothing"),  # the warm-up has none
    "optim.final_lr": (5e-3, "weights"),
    "optim.warmup_frac": (0.5, "weights"),
    "optim.weight_decay": ([0.5, 0.5], "weights"),
    "optim.predictor_weight_decay": ([0.5, 0.5], "weights"),
    "optim.layer_decay": (0.5, "weights"),
    "optim.clip_grad_norm": (None, "weights"),
    "optim.betas": ([0.5, 0.9], "weights"),
    "optim.eps": (1e-2, "weights"),
    "train.length": ("6steps", "length"),
    "train.precision": ("fp16", "precision"),
    "train.accumulation_steps": (2, "weights"),  # rounding, and what stochastic depth draws for each part
    "train.activation_checkpointing": ("full", "nothing"),
    "train.log_every_steps": (3, "nothing"),
    "checkpoint.every_steps": (1, "nothing"),
    "checkpoint.every_epochs": (1, "nothing"),
    "checkpoint.keep": (1, "nothing"),
    "health.every_steps": (1, "nothing"),
    "health.probe": ({"train": "sample:test", "test": "sample:test"}, "probe"),
    "health.probe_every_steps": (1, "nothing"),
}
ACTED_ON = {key: next(name for name in METHODS if key in recipe_keys(name)) for key in ACTS}
ACTED_ON["views.main.mask.per_view"] = "data2vec"
ACTED_ON["train.accumulation_steps"] = "supervised"  # I-JEPA's regulariser here needs the whole batch
# Groups whose keys are tried one by one; keys that act only with others, or only on a GPU: they are read where the trainer is
# built, as are those above; and what another value makes another method.
NOT_TRIED = {
    "views.main.mask", "method.momentum", "health.probe.train", "health.probe.test", "views.main.mask.fidelity",
    "views.main.count", "views.main.size", "train.compile", "train.fp8", "train.device", "method.teacher_temperature",
}  # fmt: skip
NOT_TRIED |= {
    key for key in recipe_keys() if key.startswith("views.") and not key.startswith("views.main.")
}  # they act as main's
REFUSED_VALUES = {
    "data.image_size": 56,
    "data.channels": 3,
    "data.normalization": "imagenet",
    "data.white_level": 4095.0,
    "data.layout": "channels_first",
    "data.pages": "all",
    "data.window": "ignore",
    "model.encoder": "small",
    "model.width": 32,
    "model.depth": 3,
    "model.heads": 4,
    "model.patch_size": 7,
    "train.seed": 1,
    "method.name": "mae",
    "method.predictor.width": 16,
    "method.predictor.depth": 2,
    "method.predictor.heads": 1,
    "method.predictor.positions": "projected",
    "method.targets": "pixels",
    "method.pool_targets": True,
    "method.projector_width": 16,
    "method.projector_hidden": 32,
    "method.projector.hidden": 8,
    "method.projector.bottleneck": 4,
    "method.projector.prototypes": 12,
    "method.decoder.width": 16,
    "method.decoder.depth": 2,
    "method.decoder.kernel": 1,
    "method.decoder.groups": 2,
    "method.averaged_layers": 2,
    "method.freeze_patches": False,
    "method.detector": "mask_rcnn",
    "method.channels": 64,
    "method.frozen": True,
    "health.num_images": 16,
}


DATA = {}  # of methods that do not learn from the sample


def data_of(values):
    return DATA.get(values["method.name"], "sample:train")


def train(out, values, **options):
    return pretrain(data_of(values), build_recipe(nest(values)), out, console=Console(quiet=True), **options)


def read_files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module", autouse=True)
def _measure_no_peak():
    """What a run says of the machine's peak is not what these tests ask about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hooks, "_peak", lambda *_: 1e12)
        yield


@pytest.fixture(scope="module", autouse=True)
def _draw_annotated_images(scenes):
    DATA["detection"] = str(scenes / "train")


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """Of a method: a run of STEPS steps whose folder was left at half, with a checkpoint of step 2 and no later one."""

    @cache
    def make(method):
        folder = tmp_path_factory.mktemp("half") / "run"
        train(folder, METHODS[method])
        for path in folder.glob(f"checkpoints/step-{STEPS:08}.*"):
            path.unlink()
        return folder

    return make


@pytest.fixture(scope="module")
def unchanged(halves, tmp_path_factory):
    """Of a method: the last weights of a run that went on from half-way as it was."""

    @cache
    def make(method):
        folder = tmp_path_factory.mktemp("unchanged") / "run"
        shutil.copytree(halves(method), folder)
        train(folder, METHODS[method], resume=True)
        return last_weights(folder)

    return make


@pytest.fixture
def half(halves):
    return halves("ijepa")


@pytest.fixture
def copy(half, tmp_path):
    shutil.copytree(half, tmp_path / "run")
    return tmp_path / "run"


def last_weights(folder):
    tensors = load_file(sorted(folder.glob("checkpoints/*.safetensors"))[-1])
    return {name: value.tolist() for name, value in tensors.items() if name.startswith("method.")}


def find(values, key):
    for part in key.split("."):
        values = values[part]
    return values


def test_every_key_is_in_one_table():
    """A key of a refused group, as model.width of model, is refused with it; so is the group itself."""
    refused = {key for key in recipe_keys() if any(key == name or key.startswith(f"{name}.") for name in REFUSED)}
    tables = [set(ACTS), refused, set(IGNORED), NOT_TRIED]
    assert set().union(*tables) == set(recipe_keys())
    assert sum(map(len, tables)) == len(recipe_keys())
    groups = {"method.predictor", "method.projector", "method.decoder"}
    of_a_stated_white_level = {"data.black_level", "data.nodata"}  # else they are measured with it
    assert refused - groups - of_a_stated_white_level == set(REFUSED_VALUES)
    assert REFUSED.keys() - refused == {"model", "number of classes"}


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_run_that_never_stopped(unchanged, tmp_path, method):
    """Bit by bit, centres included."""
    train(tmp_path / "whole", METHODS[method])
    assert last_weights(tmp_path / "whole") == unchanged(method)


@pytest.mark.parametrize("key", ACTS)
def test_an_accepted_change_acts_and_is_recorded(halves, unchanged, tmp_path, key):
    (value, shows_in), method = ACTS[key], ACTED_ON[key]
    run = shutil.copytree(halves(method), tmp_path / "run")
    recipe = with_changes(build_recipe(nest(METHODS[method])), {key: value})
    pretrain(data_of(METHODS[method]), recipe, run, console=Console(quiet=True), resume=True, accept_changes=True)
    facts = json.loads((run / "run.json").read_text())
    assert find(facts["recipe"], key) == value != find(build_recipe(nest(METHODS[method])).model_dump(mode="json"), key)
    if shows_in == "weights":
        assert last_weights(run) != unchanged(method)
    elif shows_in == "length":
        steps = int(value.removesuffix("steps"))
        assert facts["total_steps"] == steps
        assert (run / f"checkpoints/step-{steps:08}.safetensors").exists()
    elif shows_in == "precision":  # a CPU that emulates it takes fp32, and that is recorded
        assert facts["precision"] in ("fp16", "fp32")
    else:
        assert last_weights(run) == unchanged(method)
        assert ('"kind": "probe"' in (run / "metrics.jsonl").read_text()) == (shows_in == "probe")


@pytest.mark.parametrize("key", REFUSED_VALUES)
def test_a_change_that_weights_cannot_follow_is_refused_and_nothing_is_lost(halves, unchanged, tmp_path, key):
    method = next(name for name in METHODS if key in recipe_keys(name))
    copy = shutil.copytree(halves(method), tmp_path / "run")
    before = read_files(copy)
    changed = with_changes(build_recipe(nest(METHODS[method])), {key: REFUSED_VALUES[key]})
    with pytest.raises(ValueError, match=key.replace(".", r"\.")) as refusal:
        pretrain(data_of(METHODS[method]), changed, copy, console=Console(quiet=True), resume=True, accept_changes=True)
    assert "--init" in str(refusal.value) and len(str(refusal.value).splitlines()) == 1
    after = read_files(copy)
    after.pop(Path(".lock"), None)
    before.pop(Path(".lock"), None)
    assert after == before
    train(copy, METHODS[method], resume=True)
    assert last_weights(copy) == unchanged(method)


def test_a_change_that_was_not_accepted_is_named(copy):
    with pytest.raises(ValueError, match=r"optim\.lr 0\.01 -> 0\.5.*--accept-changes"):
        train(copy, METHODS["ijepa"] | {"optim.lr": 0.5}, resume=True)


def test_another_precision_is_the_one_that_runs(copy, monkeypatch):
    """Version 0.1 recorded the new one and went on in the old one."""
    from openjepa.training import prepare, session

    monkeypatch.setattr(prepare, "choose_precision", lambda device, asked: asked)
    seen = []
    make = session.make_trainer
    monkeypatch.setattr(session, "make_trainer", lambda *given: seen.append(given[4]) or make(*given))
    train(copy, METHODS["ijepa"] | {"train.precision": "bf16"}, resume=True, accept_changes=True)
    assert seen == ["bf16"]
    assert json.loads((copy / "run.json").read_text())["precision"] == "bf16"


def test_a_run_on_other_images_of_the_same_number_is_not_resumed(copy, tmp_path):
    """Version 0.1 compared the number of images alone."""
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        generator = np.random.default_rng(seed)
        for number in range(12):
            side = 28 + 4 * seed
            Image.fromarray(generator.integers(0, 256, (side, side), np.uint8)).save(tmp_path / name / f"{number}.png")
    longer, quiet = build_recipe(nest(METHODS["ijepa"])), Console(quiet=True)
    recipe = with_changes(longer, {"train.length": "2steps"})
    pretrain(str(tmp_path / "a"), recipe, tmp_path / "r", console=quiet)
    with pytest.raises(ValueError, match="images"):
        pretrain(str(tmp_path / "b"), recipe, tmp_path / "r", resume=True, console=quiet)
    (tmp_path / "a").rename(tmp_path / "moved")
    pretrain(str(tmp_path / "moved"), longer, tmp_path / "r", resume=True, accept_changes=True, console=quiet)
    assert json.loads((tmp_path / "r" / "run.json").read_text())["data"] == str(tmp_path / "moved")


def test_a_classifier_is_not_resumed_for_other_classes(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(16):
        folder = tmp_path / "photos" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (28, 28), np.uint8)).save(folder / f"{number}.png")
    recipe, quiet = build_recipe(nest(METHODS["supervised"])), Console(quiet=True)
    pretrain(str(tmp_path / "photos"), recipe, tmp_path / "run", changes={"train.length": "2steps"}, console=quiet)
    (tmp_path / "photos" / "c").mkdir()
    (tmp_path / "photos" / "b" / "9.png").rename(tmp_path / "photos" / "c" / "9.png")
    before = read_files(tmp_path / "run")
    with pytest.raises(ValueError, match=r"number of classes 2 -> 3: the classifier was made for the recorded number"):
        pretrain(str(tmp_path / "photos"), recipe, tmp_path / "run", resume=True, accept_changes=True, console=quiet)
    assert read_files(tmp_path / "run") == before


def test_a_resumed_run_keeps_its_batch_size(copy):
    with pytest.raises(ValueError, match="a resumed run keeps its batch size"):
        train(copy, METHODS["ijepa"] | {"data.batch_size": "auto"}, resume=True, accept_changes=True)


def test_weights_that_do_not_fit_leave_the_place_free(half, tmp_path):
    """Version 0.1 took OUT, then failed."""
    wider = METHODS["ijepa"] | {"method.predictor": {"width": 16, "depth": 1, "heads": 2}}
    with pytest.raises(ValueError, match="add method.predictor.width=8, or choose"):
        train(tmp_path / "new", wider, init=half)
    assert not (tmp_path / "new").exists()


def test_weights_of_a_run_start_another_one_as_it_says(half, tmp_path):
    train(tmp_path / "new", METHODS["ijepa"] | {"data.normalization": "imagenet"}, init=half)
    facts = json.loads((tmp_path / "new" / "run.json").read_text())
    fresh = json.loads((half / "run.json").read_text())["untrained"]
    # measured before the weights came: another normalisation of the same encoder, and nothing of the trained one
    assert facts["untrained"]["effective_rank_pooled"] == pytest.approx(fresh["effective_rank_pooled"], rel=0.2)
