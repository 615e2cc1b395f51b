"""Energies: against one image and one mask at a time, against predictors whose error is known, and the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from openjepa.data.sources import ArraySource
from openjepa.engine.checkpoint import write_checkpoint
from openjepa.evals import energy
from openjepa.evals.energy import Drawing, measure_energy
from openjepa.evals.pictures import UNKNOWN, draw_heat
from openjepa.masks import sample_masks
from openjepa.methods.ijepa import IJEPA
from openjepa.methods.make import make_method
from openjepa.nn.encoder import normalise
from openjepa.weights.load import TrainedMethod
from tests.cli.console import assert_refused, openjepa
from tests.models import small_recipe

UNION = {"sampler": "union", "context_scale": (0.15, 0.2), "target_scale": (0.1, 0.15)}
RANDOM = {"sampler": "random", "context_scale": (0.25, 0.25), "target_scale": (0.75, 0.75)}
KINDS = {
    "the paper's": ("ijepa", {}),
    "the brief's": ("ijepa", {"method__target_input": "patches", "method__predict": "joint", "views__main__mask": UNION}),
    "pooled": ("ijepa", {"method__pool_targets": True}),
    "MAE": ("mae", {"method__targets": "normalised_pixels", "method__predict": "joint", "views__main__mask": RANDOM}),
}


def make_trained(method: str = "ijepa", **changes: object) -> TrainedMethod:
    smaller = {"data__image_size": 24, "model__width": 16}
    if method in ("ijepa", "mae"):
        smaller |= {"method__predictor__width": 8, "method__predictor__depth": 1}
    recipe = small_recipe(method, **(smaller | changes))
    torch.manual_seed(0)
    built = make_method(recipe).eval()
    for weight in built.parameters():  # fresh predictors are nearly 0 and have nearly one error everywhere
        weight.data += 0.1 * torch.randn_like(weight)
    channels = recipe.data.channels
    return TrainedMethod(built, recipe, [0.4] * channels, [0.3] * channels)


def make_source(count: int = 5, seed: int = 0) -> ArraySource:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 24, 24)) * np.linspace(0.2, 1, count)[:, None, None]
    return ArraySource("noise", 1, images.astype(np.uint8), None, [])


@pytest.mark.parametrize("kind", KINDS)
def test_energies_are_those_of_one_image_and_one_mask_at_a_time(kind: str) -> None:
    method, changes = KINDS[kind]
    trained, source = make_trained(method, **changes), make_source()
    found = measure_energy(trained, source, Drawing(share=1e-9, most=11, seed=3))
    pixels = normalise(torch.from_numpy(source.images[:, None]), torch.tensor([[[0.4]]]), torch.tensor([[[0.3]]]))
    for image in range(len(source)):
        draws, of_patch = [], [[] for _ in range(36)]
        for draw in range(11):
            masks = sample_masks(trained.recipe.mask, (6, 6), 1, seed=3, step=draw, group=energy.GROUP)
            one = pixels[image : image + 1]
            with torch.no_grad():
                targets = trained.method.make_targets(one, masks)
                predictions = trained.method.predict(trained.method.encode_context(one, masks), masks)
            errors = []
            for block in range(masks.target_idx.shape[1]):
                for place in range(int(masks.target_lengths[0, block])):
                    error = np.mean((predictions[0, block, place] - targets[0, block, place]).numpy() ** 2)
                    errors.append(error)
                    of_patch[masks.target_idx[0, block, place]].append(error)
            draws.append(np.mean(errors))
        assert found.energy[image] == pytest.approx(np.mean(draws), rel=1e-4)
        assert found.standard_error[image] == pytest.approx(np.std(draws, ddof=1) / 11**0.5, rel=1e-2)
        expected = [np.mean(errors) if errors else np.nan for errors in of_patch]
        assert found.patches[image].ravel() == pytest.approx(expected, rel=1e-3, nan_ok=True)
    assert found.draws.tolist() == [11] * 5 and not found.reached.any()


def test_an_energy_does_not_depend_on_the_images_around_it() -> None:
    trained, source = make_trained(), make_source(7)
    drawing = Drawing(share=0.02, most=40)
    whole = measure_energy(trained, source, drawing)
    assert len(set(whole.draws.tolist())) > 1  # images leave at different times
    for parts in (measure_energy(trained, source, drawing, batch_size=2), measure_energy(trained, source, drawing)):
        assert parts.energy == pytest.approx(whole.energy, rel=1e-6)
        assert parts.draws.tolist() == whole.draws.tolist()
    for row in range(7):
        alone = measure_energy(trained, ArraySource("one", 1, source.images[row : row + 1], None, []), drawing)
        assert alone.energy[0] == pytest.approx(whole.energy[row], rel=1e-6)
        assert alone.patches[0] == pytest.approx(whole.patches[row], rel=1e-4, nan_ok=True)
    assert measure_energy(trained, source, Drawing(share=0.02, most=40, seed=1)).energy != pytest.approx(whole.energy, rel=1e-6)


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_a_predictor_that_is_off_by_a_constant_has_its_square_as_energy(offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, source = make_trained(), make_source()
    pixels = normalise(torch.from_numpy(source.images[:, None]), torch.tensor([[[0.4]]]), torch.tensor([[[0.3]]]))
    monkeypatch.setattr(IJEPA, "predict", lambda self, _, masks: self.make_targets(pixels, masks) + offset)
    found = measure_energy(trained, source, Drawing())
    assert found.energy == pytest.approx(offset**2, abs=1e-6)
    assert found.patches[~np.isnan(found.patches)] == pytest.approx(offset**2, abs=1e-5)
    assert found.draws.tolist() == [energy.ROUND] * 5  # nothing to average
    assert found.reached.all()


def test_the_standard_error_is_how_far_other_masks_would_take_the_energy() -> None:
    trained, source = make_trained(), make_source(8)
    found = [measure_energy(trained, source, Drawing(share=1e-9, most=8, seed=seed)) for seed in range(10)]
    spread = np.var([one.energy for one in found], axis=0, ddof=1)
    expected = np.mean([one.standard_error**2 for one in found], axis=0)
    assert np.mean(spread / expected) == pytest.approx(1, abs=0.9)  # two standard deviations, if all images had one error


@pytest.mark.parametrize(("share", "most"), [(0.5, 20), (0.03, 20), (0.03, 50), (1e-6, 3), (1e-6, 20)])
def test_draws_stop_at_the_share_or_at_the_most(share: float, most: int) -> None:
    found = measure_energy(make_trained(), make_source(), Drawing(share, most))
    for row in range(5):
        count = int(found.draws[row])
        assert count <= most and (count % energy.ROUND == 0 or count == most)
        assert found.reached[row] == (found.standard_error[row] <= share * found.energy[row])
        assert found.reached[row] or count == most


def test_a_heat_map_is_brightest_where_the_energy_is_highest() -> None:
    values = np.array([[0.0, 1.0], [2.0, np.nan]], np.float32)
    black = np.zeros((8, 6, 3), np.uint8)
    drawn = draw_heat(black, values, 0.0, 2.0).astype(int)
    light = drawn.sum(2)
    assert light[0, 0] < light[0, 5] < light[7, 0]
    assert (drawn[4:, 3:] == round(0.6 * UNKNOWN)).all()  # no colour, no value
    assert (drawn[:4, :3] == drawn[0, 0]).all()


def write_run(path: Path, trained: TrainedMethod) -> Path:
    tensors = {f"method.{name}": value for name, value in trained.method.state_dict().items()}
    info = {"recipe": trained.recipe.model_dump(mode="json"), "mean": trained.mean, "std": trained.std, "step": 1}
    write_checkpoint(path, tensors, info)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "set"
    for number, pixels in enumerate(make_source(6).images):
        file = folder / ("<b>one" if number % 2 else "two") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    (folder / "two" / "damaged.png").write_bytes((folder / "two" / "0.png").read_bytes()[:60])
    return folder


@pytest.mark.parametrize("method", ["ijepa", "mae"])
def test_tables_and_maps_on_the_command_line(method: str, photos: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.safetensors", make_trained(method))
    shown = openjepa("energy", run, photos, "--out", tmp_path / "out", "--share", "0.02", "--most-draws", "12", "--maps", "4")
    assert shown.stdout.startswith("Energy of 6 images: median ")
    assert "1 of 7 images could not be read" in shown.stderr
    table, patches = (pq.read_table(tmp_path / "out" / f"{name}.parquet") for name in ("energy", "patches"))
    assert table.column_names == ["path", "label", "energy", "standard_error", "draws", "reached"]
    rows = table.to_pylist()
    assert [row["path"] for row in rows] == patches["path"].to_pylist()
    assert {(row["label"], Path(row["path"]).name) for row in rows} == {
        ("<b>one" if number % 2 else "two", f"{number}.png") for number in range(6)
    }
    for row, of_patches in zip(rows, patches["patches"].to_pylist(), strict=True):
        assert len(of_patches) == 36
        assert np.nanmin(of_patches) <= row["energy"] <= np.nanmax(of_patches)
        assert row["reached"] == (row["standard_error"] <= 0.02 * row["energy"])
    late = sum(not row["reached"] for row in rows)
    assert ("all reached" if not late else f"all but {late} reached") in shown.stdout
    drawn = sorted((tmp_path / "out" / "maps").iterdir())
    order = sorted(range(6), key=lambda row: -rows[row]["energy"])
    assert [file.name for file in drawn] == [f"{rank:04d}-row-{row}.png" for rank, row in enumerate(order[:4], start=1)]
    assert patches.schema.metadata[b"openjepa.grid"] == b"6 x 6"
    again = openjepa("energy", run, photos, "--out", tmp_path / "again", "--share", "0.02", "--most-draws", "12")
    assert again.stdout == shown.stdout
    for name in ("energy", "patches"):
        assert (tmp_path / "again" / f"{name}.parquet").read_bytes() == (tmp_path / "out" / f"{name}.parquet").read_bytes()


def test_mistakes_are_one_line_and_leave_nothing(photos: Path, tmp_path: Path) -> None:
    run, other = write_run(tmp_path / "run.safetensors", make_trained()), tmp_path / "other.safetensors"
    write_run(other, make_trained("simclr"))

    def refused(run: Path, *more: str, out: str = "out", images: Path = photos):
        return openjepa("energy", run, images, "--out", tmp_path / out, *more, check=False)

    assert_refused(refused(other), "simclr", "ijepa or mae")
    assert_refused(refused(run, "--share", "0"), "--share must be above 0")
    assert_refused(refused(run, "--most-draws", "1"), "--most-draws must be at least 2")
    assert_refused(refused(run, "--maps", "-1"), "--maps must be at least 0")
    assert_refused(refused(run, images=tmp_path / "none"), "none")
    (tmp_path / "there").mkdir()
    assert_refused(refused(run, out="there"), "there exists")
    assert {path.name for path in tmp_path.iterdir()} == {"run.safetensors", "other.safetensors", "there"}
