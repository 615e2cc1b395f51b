"""How many processes train a run changes nothing but the order of sums: 1 x 8, 2 x 4 and 4 x 2 images are one step."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openjepa.commands.pretrain import pretrain
from openjepa.data.sources import open_labelled
from openjepa.engine.world import current, join
from openjepa.recipe.edit import with_changes
from openjepa.training.build import make_batches, make_trainer
from tests.models import small_recipe
from tests.ranks import run_ranks

VICREG = {"name": "vicreg", "weight": 0.5, "acts_on": "tokens"}
SIGREG = {"name": "sigreg", "weight": 0.5, "acts_on": "pooled"}
TWENTY = {  # the runs of which twenty steps are compared; of the others, six
    "ijepa": {}, "ijepa vicreg": {"method__regularizer": VICREG}, "mae": {}, "simclr": {"optim__lr": 1e-4},
}  # fmt: skip
RUNS = TWENTY | {
    "simclr float64": {}, "byol float64": {}, "mocov3 float64": {}, "lejepa float64": {},  # in which rounding grows fast
    "ijepa sigreg": {"method__regularizer": SIGREG}, "ijepa parts": {"train__accumulation_steps": 2},
    "mae pca": {"method__targets": "pca"}, "dino": {}, "ibot": {}, "data2vec": {},
    "supervised mixed": {"method__mixup": 0.8, "method__cutmix": 1.0, "method__drop_path": 0.3},
}  # fmt: skip
ON_FOUR = ("ijepa", "ijepa vicreg", "simclr", "byol float64", "ibot")


def train(name: str) -> dict[str, torch.Tensor]:
    """Losses of some steps, and the weights after them."""
    settings = {"data__image_size": 16, "optim__lr": 1e-3, "optim__warmup_frac": 0.0} | RUNS[name]
    recipe = small_recipe(name.split()[0], **settings)
    steps, source = 20 if name in TWENTY else 6, open_labelled("sample:test", 1)
    trainer = make_trainer(recipe, [0.5], [0.25], steps, "fp32", num_classes=len(source.classes))
    if "float64" in name:
        trainer.method.double()
        trainer.mean, trainer.std = trainer.mean.double(), trainer.std.double()
    records = list(trainer.steps(make_batches(recipe, source, 0, steps)))
    losses = torch.stack([record.metrics["loss"] for record in records])
    return {"losses": losses, "norms": torch.stack([record.grad_norm for record in records])} | {
        f"weights.{key}": value.clone() for key, value in trainer.method.state_dict().items()
    }


def train_all(folder: Path, names: tuple[str, ...]) -> Callable[[], None]:
    def work() -> None:
        with join() as world:
            for name in names:
                save_file(train(name), folder / f"{name}-{world.rank}-of-{world.size}.safetensors")

    return work


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs on two processes, and some on four."""
    folder = tmp_path_factory.mktemp("ranks")
    assert run_ranks(2, train_all(folder, tuple(RUNS))) == [0, 0]
    assert run_ranks(4, train_all(folder, ON_FOUR)) == [0] * 4
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_and_four_processes_train_as_one(trained: Path, name: str):
    assert current().size == 1
    alone = train(name)
    for size in (2, 4) if name in ON_FOUR else (2,):
        first, last = (load_file(trained / f"{name}-{rank}-of-{size}.safetensors") for rank in (0, size - 1))
        assert first.keys() == last.keys() == alone.keys()
        assert all(torch.equal(first[key], last[key]) for key in first), "the processes have drifted apart"
        torch.testing.assert_close(first["losses"], alone["losses"], rtol=1e-9 if "float64" in name else 1e-6, atol=0)
        torch.testing.assert_close(first["norms"][0], alone["norms"][0], rtol=1e-6, atol=0)
        # Adam makes whole steps of the rounding where a gradient is zero, as that of a key's bias.
        apart = 1e-8 if "float64" in name else 5e-4 if name == "simclr" else 2e-5
        for key, value in alone.items():
            if key.startswith("weights."):
                assert float((first[key].double() - value.double()).abs().max()) <= apart, key


def losses(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"]


def test_what_two_processes_saved_goes_on_with_one_and_with_four(tmp_path: Path):
    recipe = small_recipe(
        data__image_size=16, train__length="4steps", train__precision="fp32", train__log_every_steps=1, health__num_images=16
    )
    whole, saved, longer = tmp_path / "whole", tmp_path / "saved", {"train.length": "8steps"}
    pretrain("sample:test", with_changes(recipe, {"optim.lr": 1e-3}), whole)
    pretrain("sample:test", None, whole, resume=True, accept_changes=True, changes=longer)
    work = lambda: pretrain("sample:test", with_changes(recipe, {"optim.lr": 1e-3}), saved)  # noqa: E731
    assert run_ranks(2, work) == [0, 0]
    assert sorted(path.name for path in saved.iterdir() if "tfevents" not in path.name) == sorted(
        path.name for path in whole.iterdir() if "tfevents" not in path.name
    )
    for size in (1, 4):
        run = tmp_path / f"on {size}"
        shutil.copytree(saved, run)
        go_on = lambda run=run: pretrain("sample:test", None, run, resume=True, accept_changes=True, changes=longer)  # noqa: E731
        assert run_ranks(size, go_on) == [0] * size
        assert [step for step, _ in losses(run)] == list(range(8))
        for (_, ours), (_, theirs) in zip(losses(run), losses(whole), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("batch", [6, 10])
def test_a_batch_that_cannot_be_shared_is_refused_before_anything_is_written(tmp_path: Path, batch: int, capfd):
    from openjepa import cli

    flags = ["--recipe", "demo", f"data.batch_size={batch}", "data.image_size=16"]
    assert run_ranks(4, lambda: cli.main(["pretrain", "sample:test", "--out", str(tmp_path / "run"), *flags])) == [2] * 4
    errors = capfd.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and f"batch_size {batch} cannot be shared evenly by 4 processes" in errors[0], errors
    assert not (tmp_path / "run").exists()
