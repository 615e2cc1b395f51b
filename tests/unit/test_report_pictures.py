"""The pictures of a report: neighbours are training images, the nearest ones, and what the page says of them is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from openjepa.commands import report as summarize
from openjepa.commands.report import write_report
from openjepa.data.sources import open_source
from openjepa.data.views import evaluation_view
from openjepa.engine.checkpoint import save_checkpoint
from openjepa.nn.encoder import Encoder
from openjepa.nn.vit import VisionTransformer
from openjepa.report.pictures import Neighbours, Pictures
from openjepa.runs.folder import RunFolder, write_json
from openjepa.weights.load import load_encoder
from tests.models import small_recipe

SIZE, PATCH, SHAPE = (16, 16), 4, (48, 2, 4, 4.0)


def make_images(folder: Path, classes: str, count: int, seed: int) -> None:
    """`count` different images of each class, in a sub-folder of its own."""
    generator = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            blocks = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            blocks.resize(SIZE, Image.Resampling.NEAREST).save(folder / name / f"{number}.png")


def make_run(folder: Path, data: str) -> Path:
    """A run folder with the checkpoint of a random encoder, and without a predictor, which saves time."""
    recipe = small_recipe(
        data__image_size=SIZE[0], data__channels=3,
        model__width=SHAPE[0], model__depth=SHAPE[1], model__heads=SHAPE[2], model__patch_size=PATCH,
    ).model_dump(mode="json")  # fmt: skip
    torch.manual_seed(0)
    vit = VisionTransformer(SIZE, PATCH, 3, SHAPE)
    tensors = {f"method.context_encoder.{name}": 3 * value for name, value in vit.state_dict().items()}
    run = RunFolder(folder)
    run.create()
    info = {"step": 1, "recipe": recipe, "mean": [0.5] * 3, "std": [0.3] * 3}
    save_checkpoint(run.checkpoints, 1, tensors, info, permanent=True, keep=1)
    write_json(run.run_json, {"name": "small", "data": data, "recipe": recipe})
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What reports are built from; they are built none the less."""
    given: list[Any] = []
    build = summarize.build_report

    def spy(folder: RunFolder, shown: Pictures | None, levels: Any, out: Path | None) -> Path:
        given.append(shown)
        return build(folder, shown, levels, out)

    monkeypatch.setattr(summarize, "build_report", spy)
    return given


def views_of(spec: Path) -> tuple[np.ndarray, list[str]]:
    """All images of a folder as evaluation sees them, (N, H, W, C), and their classes."""
    source = open_source(str(spec), 3)
    assert source.labels is not None
    views = [evaluation_view(source.open(number), SIZE).transpose(1, 2, 0) for number in range(len(source))]
    return np.stack(views), [source.classes[label] for label in source.labels]


def find_by_hand(run: Path, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Cosines (queries, candidates) of pooled features, in float64."""
    encoder = load_encoder(run)
    with torch.no_grad():
        one, other = (
            encoder(torch.from_numpy(part.transpose(0, 3, 1, 2).copy())).pooled.double() for part in (queries, candidates)
        )
    norms = one.norm(dim=1)[:, None] * other.norm(dim=1)
    return ((one @ other.T) / norms).numpy()


def read_words(page: Path) -> str:
    section = page.read_text("utf-8").split('id="neighbours"')[1].split("<div")[0]
    return re.sub(r"\s+", " ", section)


def test_neighbours_of_held_out_images_are_the_nearest_training_images(tmp_path: Path, drawn: list[Any]) -> None:
    make_images(tmp_path / "train", "abc", 7, seed=0)
    make_images(tmp_path / "test", "bd", 4, seed=1)  # so that equal class numbers mean other classes
    run = make_run(tmp_path / "run", str(tmp_path / "train"))
    page = write_report(run)
    found = drawn[0].neighbours
    assert isinstance(found, Neighbours)
    (train, train_classes), (test, test_classes) = views_of(tmp_path / "train"), views_of(tmp_path / "test")
    asked = [next(n for n, view in enumerate(test) if (view == query).all()) for query in found.query_images]
    assert len(set(asked)) == len(asked) == 6
    cosines = find_by_hand(run, test[asked], train)
    for row, (query, images) in enumerate(zip(asked, found.neighbour_images, strict=True)):
        order = np.argsort(-cosines[row])[:8]
        assert (images == train[order]).all()
        assert found.cosines[row] == pytest.approx(cosines[row][order], abs=1e-5)
        assert found.match_mask[row].tolist() == [train_classes[place] == test_classes[query] for place in order]
    words = read_words(page)
    assert "held-out" in words and "21 training images" in words and "other training" not in words


def test_without_held_out_images_no_training_image_is_its_own_neighbour(tmp_path: Path, drawn: list[Any]) -> None:
    make_images(tmp_path / "photos", "ab", 6, seed=0)
    run = make_run(tmp_path / "run", str(tmp_path / "photos"))
    page = write_report(run)
    found = drawn[0].neighbours
    train, _ = views_of(tmp_path / "photos")
    asked = [next(n for n, view in enumerate(train) if (view == query).all()) for query in found.query_images]
    cosines = find_by_hand(run, train[asked], train)
    cosines[np.arange(len(asked)), asked] = -2
    assert (found.neighbour_images == train[np.argsort(-cosines)[:, :8]]).all()
    words = read_words(page)
    assert "11 other training images" in words and "held-out" not in words


def test_a_held_out_folder_without_images_costs_no_picture(tmp_path: Path, drawn: list[Any]) -> None:
    make_images(tmp_path / "train", "ab", 6, seed=0)
    (tmp_path / "test").mkdir()
    write_report(make_run(tmp_path / "run", str(tmp_path / "train")))
    assert drawn[0] is not None and not drawn[0].neighbours.is_held_out


@pytest.mark.parametrize(("num_train", "num_test"), [(8, 0), (7, 3)])
def test_too_few_training_images_have_no_neighbours(tmp_path: Path, drawn: list[Any], num_train: int, num_test: int) -> None:
    make_images(tmp_path / "train", "a", num_train, seed=0)
    if num_test:
        make_images(tmp_path / "test", "a", num_test, seed=1)
    write_report(make_run(tmp_path / "run", str(tmp_path / "train")))
    assert drawn[0].neighbours is None and len(drawn[0].pca_images) == (num_test or 8)


def test_features_are_computed_where_the_encoder_is_and_drawn_on_the_cpu() -> None:
    """A fake GPU: its tensors have no values, and refuse to meet those of a CPU."""
    encoder = Encoder(VisionTransformer(SIZE, PATCH, 3, SHAPE), [0.5] * 3, [0.3] * 3)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        images = mode.from_tensor(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
        encoder.to("cuda")
        with pytest.raises(RuntimeError, match="cuda"):
            encoder(images)
        output = summarize._encode(encoder, images)
    assert {part.device.type for part in output} == {"cpu"}


def test_a_report_takes_the_best_device_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_images(tmp_path / "photos", "a", 3, seed=0)
    run = make_run(tmp_path / "run", str(tmp_path / "photos"))
    asked = []

    def spy(checkpoint: Path, device: str = "cpu") -> Encoder:
        asked.append(device)
        return load_encoder(checkpoint)

    monkeypatch.setattr(summarize, "load_encoder", spy)
    write_report(run)
    write_report(run, "cpu")
    assert asked == ["auto", "cpu"]
