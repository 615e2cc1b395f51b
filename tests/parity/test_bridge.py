"""Weights in and out: nothing changes on the way, other libraries compute our features from them, bad files leave no trace.

Release checkpoints are made here by giving our own random weights the release's names, which are spelt out below and are those
of ../shared/golden. What a library computes is asked of the library, without our code in between.
"""

import json
import os
import pickle
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import transformers
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import checkpoint_filter_fn

from openjepa import cli
from openjepa.commands import convert as bridge
from openjepa.commands.convert import export, import_weights
from openjepa.commands.pretrain import pretrain
from openjepa.data.decode import Decoded
from openjepa.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from openjepa.data.sources import open_source
from openjepa.data.views import evaluation_view
from openjepa.engine.checkpoint import load_checkpoint, save_checkpoint
from openjepa.methods import make
from openjepa.methods.ijepa import IJEPA
from openjepa.recipe.edit import with_changes
from openjepa.recipe.files import load_recipe
from openjepa.recipe.sections import Recipe
from openjepa.weights.load import load_encoder
from openjepa.weights.match import Weights, infer_recipe

SHAPE = {
    "data.image_size": 32, "data.channels": 3,
    "model.encoder": "base", "model.width": 48, "model.depth": 2, "model.heads": 4, "model.patch_size": 8,
    "method.predictor.width": 24, "method.predictor.depth": 2, "method.predictor.heads": 4,
}  # fmt: skip
HEADS = ("--heads", "4")
HUGE_LAYERS = 2  # of the 32 of ViT-H/14; all of them went in and out within 16 GB on 2026-11-26, in five minutes
RUNTIME_GB = 1.0  # what Python and PyTorch take
PREDICTOR = {
    "input_proj": "predictor_embed", "blocks": "predictor_blocks", "norm": "predictor_norm", "output_proj": "predictor_proj",
    "pos_embed": "predictor_pos_embed", "mask_token": "mask_token",
}  # fmt: skip
Content = dict[str, Any]


def paper_recipe(**data: Any) -> Recipe:
    """The paper's recipe in this shape, but for some keys of its data."""
    return with_changes(load_recipe("paper_vit_base_16"), SHAPE | {f"data.{key}": value for key, value in data.items()})


def make_method(recipe: Recipe) -> IJEPA:
    """A method whose every weight is off its initial value, the two encoders apart."""
    torch.manual_seed(1)
    method = make.make_method(recipe)
    with torch.no_grad():
        for name, weight in method.named_parameters():
            if not name.endswith("pos_embed"):
                weight.add_(torch.randn_like(weight), alpha=0.02)
    return method


def release_content(method: IJEPA) -> Content:
    """What the release saves of a method: DDP's names, and everything else that it puts beside the weights."""
    predictor = {}
    for name, value in method.predictor.state_dict().items():
        first, dot, rest = name.partition(".")
        predictor[f"module.{PREDICTOR[first]}{dot}{rest}"] = value
    encoder, target = (
        {f"module.{name}": value for name, value in part.state_dict().items()}
        for part in (method.context_encoder, method.target_encoder)
    )
    optimizer = torch.optim.AdamW(method.predictor.parameters())
    facts = {"opt": optimizer.state_dict(), "scaler": None, "epoch": 3, "loss": 0.1, "batch_size": 8, "world_size": 2, "lr": 1e-3}
    return {"encoder": encoder, "predictor": predictor, "target_encoder": target} | facts


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("something wants to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def method() -> IJEPA:
    return make_method(paper_recipe())


@pytest.fixture(scope="module")
def release(method: IJEPA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("release") / "jepa-latest.pth.tar"
    torch.save(release_content(method), path)
    return path


@pytest.fixture(scope="module")
def imported(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("imported") / "ours.safetensors"
    import_weights(release, path, heads=4)
    return path


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    source = open_source("sample:test", 3)
    return torch.from_numpy(np.stack([evaluation_view(source.open(index), (32, 32)) for index in range(5)]))


def checkpoint_of(folder: Path, recipe: Recipe) -> Path:
    tensors = {f"method.{name}": value for name, value in make_method(recipe).state_dict().items()}
    channels = recipe.data.channels
    info = {"recipe": recipe.model_dump(mode="json"), "step": 0, "mean": [0.3] * channels, "std": [0.4] * channels}
    return save_checkpoint(folder, 0, tensors, info, permanent=True, keep=1)


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit status, output and errors of the command line, in this process."""
    try:
        cli.main([str(argument) for argument in arguments])
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


# In


def test_every_weight_of_a_release_checkpoint_arrives(method: IJEPA, release: Path, tmp_path: Path, capsys):
    status, said, _ = run_cli(capsys, "import", release, "--out", tmp_path / "ours.safetensors", *HEADS)
    assert status == 0
    for words in ("48 wide, 2 layers, 4 heads", "patches of 8 px", "32 x 32 px", "24 wide, 2 layers", "fresh AdamW"):
        assert words in said
    tensors, info = load_checkpoint(tmp_path / "ours.safetensors")
    state = method.state_dict()
    assert set(tensors) == {f"method.{name}" for name in state}
    assert all(torch.equal(tensors[f"method.{name}"], value) for name, value in state.items())
    assert not torch.equal(state["context_encoder.norm.weight"], state["target_encoder.norm.weight"])
    assert info["mean"] == [0.485, 0.456, 0.406]


def test_imported_golden_weights_give_the_releases_features(shared: Path, tmp_path: Path):
    golden = load_file(shared / "golden" / "official_step.safetensors")
    content: Content = {part: {} for part in ("encoder", "target_encoder", "predictor")}
    for name, value in golden.items():
        part, _, rest = name.partition(".")
        if part in content:
            content[part][f"module.{rest}"] = value
    torch.save(content | {"epoch": 1}, tmp_path / "golden.pth.tar")
    import_weights(tmp_path / "golden.pth.tar", tmp_path / "ours.safetensors", heads=4)
    for encoder, output in (("target", "target_encoder_output"), ("context", "context_encoder_full_output")):
        ours = load_encoder(tmp_path / "ours.safetensors", encoder)
        with torch.no_grad():
            difference = (ours.vit(golden["images"]) - golden[output]).abs().max() / golden[output].abs().max()
        assert float(difference) < 1e-5


def test_timm_takes_the_context_encoder_of_a_release_checkpoint(release: Path, imported: Path, photos: torch.Tensor):
    content = torch.load(release, weights_only=True)
    model = timm.create_model(
        "vit_base_patch16_gap_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4, num_classes=0
    )
    model.load_state_dict(checkpoint_filter_fn(content, model), strict=True)
    normalised = (photos / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    with torch.no_grad():
        theirs = model.eval()(normalised)
        differences = {
            name: float((load_encoder(imported, name)(photos).pooled - theirs).abs().max()) for name in ("context", "target")
        }
    assert differences["context"] < 1e-5
    assert differences["target"] > 1e-2


@pytest.mark.parametrize("encoder", ["context", "target"])
def test_one_encoder_alone(release: Path, method: IJEPA, tmp_path: Path, encoder: str):
    import_weights(release, tmp_path / "one.safetensors", encoder=encoder, heads=4)
    tensors, _ = load_checkpoint(tmp_path / "one.safetensors")
    assert {name.split(".")[1] for name in tensors} == {f"{encoder}_encoder"}
    other = "target" if encoder == "context" else "context"
    with pytest.raises(ValueError, match=f"no {other} encoder; --encoder {encoder}"):
        load_encoder(tmp_path / "one.safetensors", other)


@pytest.mark.parametrize("name", ["paper_vit_base_16", "paper_vit_large_16", "paper_vit_huge_14", "paper_vit_huge_16_448",
                                  "paper_vit_giant_16"])  # fmt: skip
def test_the_papers_architectures_are_inferred_from_shapes(name: str):
    recipe = load_recipe(name)
    with torch.device("meta"):
        method = make.make_method(recipe)
    assert infer_recipe(Weights("release checkpoint", dict(method.state_dict()))) == recipe


def test_half_precision_is_converted_when_asked(method: IJEPA, tmp_path: Path):
    content = release_content(method)
    for part in ("encoder", "target_encoder", "predictor"):
        content[part] = {name: value.half() for name, value in content[part].items()}
    torch.save(content, tmp_path / "half.pth.tar")
    import_weights(tmp_path / "half.pth.tar", tmp_path / "ours.safetensors", heads=4, to_float32=True)
    weight = load_checkpoint(tmp_path / "ours.safetensors")[0]["method.context_encoder.blocks.0.attn.qkv.weight"]
    assert torch.equal(weight, method.context_encoder.blocks[0].attn.qkv.weight.half().float())


def test_weights_that_transformers_names_otherwise_are_read(tmp_path: Path, photos: torch.Tensor):
    config = transformers.IJepaConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, image_size=32, patch_size=8,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    model = transformers.IJepaModel(config).eval()
    normalised = (photos / 255 - 0.5) / 0.25
    with torch.no_grad():
        theirs = model(normalised).last_hidden_state
    for folder in (tmp_path / "published", tmp_path / "own"):
        model.save_pretrained(folder)
        processor = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "own" / "model.safetensors")
    names = [set(load_file(tmp_path / folder / "model.safetensors")) for folder in ("published", "own")]
    assert any("q_proj" in name for name in names[1])
    for folder in (tmp_path / "published", tmp_path / "own"):
        lines = import_weights(folder, folder / "ours.safetensors", encoder="target")
        assert "does not say which encoder" in " ".join(lines)
        with torch.no_grad():
            ours = load_encoder(folder / "ours.safetensors", "target")(photos).patches.flatten(1, 2)
        assert float((ours - theirs).abs().max()) < 1e-5


@pytest.mark.parametrize("form", ["hf", "timm", "safetensors", "hub folder"])
@pytest.mark.parametrize("recorded", ["context", "target"])
def test_a_file_that_records_its_encoder_is_not_taken_for_the_other(
    imported: Path, tmp_path: Path, form: str, recorded: str, capsys
):
    file = tmp_path / ("folder" if form == "hf" else "file.safetensors")
    export(imported, "timm" if form == "hub folder" else form, file, encoder=recorded)
    if form == "hub folder":
        settings = {"architecture": "vit_base_patch16_gap_224", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
        (tmp_path / "hub").mkdir()
        (tmp_path / "hub" / "config.json").write_text(json.dumps(settings))
        file = file.rename(tmp_path / "hub" / "model.safetensors").parent
    other = "target" if recorded == "context" else "context"
    capsys.readouterr()  # what the export's libraries warn of
    for wrong, words in ((("--encoder", other), (recorded, other)), (("--heads", "6"), ("4", "6"))):
        status, said, errors = run_cli(capsys, "import", file, "--out", tmp_path / "ours.safetensors", *wrong)
        assert (status, said, errors.count("\n")) == (2, "", 1), errors
        assert all(word in errors for word in (str(file), f"drop {' '.join(wrong)}", *words))
        assert not (tmp_path / "ours.safetensors").exists()
    for number, right in enumerate([(), ("--encoder", recorded), ("--heads", "4")]):
        status, said, _ = run_cli(capsys, "import", file, "--out", tmp_path / f"{number}.safetensors", *right)
        assert status == 0 and "--encoder" not in said  # nothing is left to decide
        tensors, _ = load_checkpoint(tmp_path / f"{number}.safetensors")
        assert {name.split(".")[1] for name in tensors} == {f"{recorded}_encoder"}


def test_a_file_that_records_no_known_encoder_is_damaged(imported: Path, tmp_path: Path):
    export(imported, "safetensors", tmp_path / "file.safetensors")
    tensors = load_file(tmp_path / "file.safetensors")
    save_file(tensors, tmp_path / "odd.safetensors", metadata={"openjepa": json.dumps({"encoder": "teacher"})})
    with pytest.raises(ValueError, match="teacher"):
        import_weights(tmp_path / "odd.safetensors", tmp_path / "ours.safetensors", encoder="target")


# Out


@pytest.mark.parametrize("encoder", ["context", "target"])
@pytest.mark.parametrize("form", ["hf", "timm", "safetensors"])
def test_a_round_trip_changes_no_bit(imported: Path, tmp_path: Path, form: str, encoder: str):
    out = tmp_path / ("folder" if form == "hf" else "file.safetensors")
    assert export(imported, form, out, encoder=encoder).same_pixels < 1e-4
    import_weights(out, tmp_path / "back.safetensors")
    before, info_before = load_checkpoint(imported, f"method.{encoder}_encoder.")
    after, info_after = load_checkpoint(tmp_path / "back.safetensors")
    assert set(after) == set(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert (info_after["mean"], info_after["std"]) == (info_before["mean"], info_before["std"])
    model_before, model_after = info_before["recipe"]["model"], info_after["recipe"]["model"]
    assert {key: model_after[key] for key in ("width", "depth", "heads", "patch_size")} == {
        key: model_before[key] for key in ("width", "depth", "heads", "patch_size")
    }


def test_transformers_loads_the_folder_and_its_pipeline_agrees(imported: Path, tmp_path: Path, photos: torch.Tensor):
    export(imported, "hf", tmp_path / "folder", encoder="target")
    model = transformers.AutoModel.from_pretrained(tmp_path / "folder")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "folder")
    assert (tuple(processor.image_mean), tuple(processor.image_std)) == (IMAGENET_MEAN, IMAGENET_STD)
    ours = load_encoder(imported, "target")
    with torch.no_grad():
        pixels = processor(images=list(photos), return_tensors="pt")["pixel_values"]
        theirs = model.eval()(pixels).last_hidden_state
        assert float((theirs - ours(photos).patches.flatten(1, 2)).abs().max()) < 1e-5


SIZES = [(200, 300), (300, 200), (333, 201), (201, 333), (90, 161), (480, 641), (17, 13), (32, 32)]  # height, width


@pytest.mark.parametrize("size", SIZES)
def test_the_processor_cuts_the_middle_square_to_half_a_pixel_of_the_picture(
    imported: Path, tmp_path: Path, size: tuple[int, int]
):
    """Of a picture whose levels grow evenly along its longer side, the closed form of every column of the view is known."""
    export(imported, "hf", tmp_path / "folder")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "folder")
    long, short = max(size), min(size)
    ramp = np.rint(255 * (np.arange(long) + 0.5) / long).astype(np.uint8)
    rows = np.broadcast_to(ramp, (short, long)) if size[1] == long else np.broadcast_to(ramp[:, None], (long, short))
    picture = np.repeat(rows[:, :, None], 3, axis=2)
    middle = (long - short) / 2 + (np.arange(32) + 0.5) * short / 32  # of each column, in pixels of the picture
    expected = 255 * middle / long
    mean, std = np.array(IMAGENET_MEAN)[:, None, None], np.array(IMAGENET_STD)[:, None, None]
    theirs = 255 * (processor(images=Image.fromarray(picture), return_tensors="np")["pixel_values"][0] * std + mean)
    half_pixel = 0.5 * 255 / long
    for view in (theirs, evaluation_view(Decoded(picture), (32, 32)).astype(float)):
        profile = view.mean(axis=(0, 1) if size[1] == long else (0, 2))
        assert np.abs(profile - expected)[2:-2].max() < half_pixel + 1  # a level for rounding; edges are cut off otherwise


def test_what_is_said_of_whole_pictures_is_what_the_pipeline_gives(imported: Path, tmp_path: Path, capsys):
    status, said, _ = run_cli(capsys, "export", imported, "--format", "hf", "--out", tmp_path / "said", "--encoder", "target")
    agreement = export(imported, "hf", tmp_path / "folder", encoder="target")
    assert status == 0 and f"{agreement.same_pixels:.2g}" in said and f"{agreement.whole_pictures:.2g}" in said
    model = transformers.AutoModel.from_pretrained(tmp_path / "folder").eval()
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "folder")
    ours = load_encoder(imported, "target")
    pictures = bridge.real_pictures(imported, ours, sum(bridge.BATCHES))
    largest, cosines = 0.0, []
    with torch.no_grad():
        for whole, size in zip(pictures, bridge.PICTURE_SIZES, strict=False):
            picture = np.tile(whole.decode(), (size[0] // 28 + 1, size[1] // 28 + 1, 1))[: size[0], : size[1]].copy()
            theirs = model(processor(images=Image.fromarray(picture), return_tensors="pt")["pixel_values"]).last_hidden_state
            view = torch.from_numpy(evaluation_view(Decoded(picture), (32, 32)))[None]
            largest = max(largest, float((theirs - ours(view).patches.flatten(1, 2)).abs().max()))
            cosines.append(float(torch.cosine_similarity(theirs.mean(1), ours(view).pooled)))
    assert agreement.whole_pictures == pytest.approx(largest, rel=1e-3)
    assert agreement.least_cosine == pytest.approx(min(cosines), abs=1e-5)
    assert agreement.whole_pictures > 100 * agreement.same_pixels  # so that one cannot be taken for the other


def test_whole_pictures_are_the_runs_own_where_they_are_there(tmp_path: Path):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(10):
        picture = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((160, 120), Image.Resampling.BICUBIC)
        picture.save(tmp_path / "photos" / f"{number}.png")
    pretrain(str(tmp_path / "photos"), small_recipe(), tmp_path / "run")
    (tmp_path / "photos" / "0.png").write_bytes(b"broken since")
    pictures = bridge.real_pictures(tmp_path / "run", load_encoder(tmp_path / "run"), 8)
    assert [picture.size for picture in pictures] == [(120, 160)] * 8
    agreement = export(tmp_path / "run", "hf", tmp_path / "folder")
    assert agreement.least_cosine is not None and agreement.least_cosine > 0.99


def test_timm_builds_what_the_json_says(imported: Path, tmp_path: Path, photos: torch.Tensor):
    export(imported, "timm", tmp_path / "file.safetensors", encoder="context")
    written = json.loads((tmp_path / "file.json").read_text())
    model = timm.create_model(**written["create_model"]).eval()
    model.load_state_dict(load_file(tmp_path / "file.safetensors"), strict=True)
    normalised = (photos / 255 - torch.tensor(written["mean"]).view(3, 1, 1)) / torch.tensor(written["std"]).view(3, 1, 1)
    with torch.no_grad():
        assert float((model(normalised) - load_encoder(imported)(photos).pooled).abs().max()) < 1e-5


def test_onnxruntime_takes_any_batch_of_plain_images(imported: Path, tmp_path: Path, photos: torch.Tensor):
    export(imported, "onnx", tmp_path / "file.onnx", encoder="context")
    session = onnxruntime.InferenceSession(tmp_path / "file.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 2, 5):
        pooled, patches = session.run(["pooled", "patches"], {"images": (photos[:count] / 255).numpy()})
        with torch.no_grad():
            ours = load_encoder(imported)(photos[:count])
        assert np.abs(pooled - ours.pooled.numpy()).max() < 1e-5
        assert np.abs(patches - ours.patches.numpy()).max() < 1e-5
    with pytest.raises(InvalidArgument, match="uint8"):
        session.run(["pooled"], {"images": photos.numpy()})
    assert "[0, 1]" in onnx.load(tmp_path / "file.onnx", load_external_data=False).graph.input[0].doc_string


@pytest.mark.parametrize("form", ["hf", "timm", "onnx", "safetensors"])
@pytest.mark.parametrize(("size", "channels"), [((32, 16), 3), ((32, 32), 1)])
def test_images_that_are_not_square_or_not_coloured(tmp_path: Path, form: str, size: tuple[int, int], channels: int):
    checkpoint = checkpoint_of(tmp_path / "run", paper_recipe(image_size=size, channels=channels))
    out = tmp_path / {"hf": "folder", "onnx": "file.onnx"}.get(form, "file.safetensors")
    assert export(checkpoint, form, out).same_pixels < 1e-4


def test_a_folder_for_transformers_takes_no_five_channels(tmp_path: Path, capsys):
    checkpoint = checkpoint_of(tmp_path / "run", paper_recipe(channels=5))
    before = sorted(tmp_path.rglob("*"))
    status, _, errors = run_cli(capsys, "export", checkpoint, "--format", "hf", "--out", tmp_path / "folder")
    assert (status, errors.count("\n")) == (2, 1)
    assert "1 or 3 channels" in errors
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", [2e-4, float("nan")])
def test_an_export_whose_features_differ_leaves_nothing(imported: Path, tmp_path: Path, monkeypatch, capsys, error: float):
    honest = bridge.FORMATS["timm"]

    def reload(path: Path) -> bridge.Features:
        features = honest.reload(path)

        def wrong(images: torch.Tensor) -> bridge.EncoderOutput:
            output = features(images)
            if len(images) == 1:  # the first of several batches
                output.patches[-1, 0, 0, 0] += error
            return output

        return wrong

    monkeypatch.setitem(bridge.FORMATS, "timm", honest._replace(reload=reload))
    out = tmp_path / "file.safetensors"
    status, _, errors = run_cli(capsys, "export", imported, "--format", "timm", "--out", out)
    assert (status, errors.count("\n")) == (2, 1)
    assert "not written" in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["hf", "timm", "onnx", "safetensors"])
def test_a_run_from_a_gpu_is_exported_on_the_cpu(tmp_path: Path, form: str):
    """A checkpoint holds no device, and of its recipe no export asks for one."""
    checkpoint = checkpoint_of(tmp_path / "run", paper_recipe())
    tensors, info = load_checkpoint(checkpoint)
    info["recipe"]["train"] |= {"device": "cuda:7", "precision": "fp16", "compile": True, "fp8": True}
    trained = save_checkpoint(tmp_path / "gpu", 0, tensors, info, permanent=True, keep=1)
    out = tmp_path / {"hf": "folder", "onnx": "file.onnx"}.get(form, "file.safetensors")
    assert export(trained, form, out).same_pixels < 1e-4


def test_nothing_is_overwritten(imported: Path, release: Path, tmp_path: Path, capsys):
    for name in ("file.safetensors", "other.json"):
        (tmp_path / name).write_text("mine")
    for arguments in (
        ("export", imported, "--format", "safetensors", "--out", tmp_path / "file.safetensors"),
        ("export", imported, "--format", "timm", "--out", tmp_path / "other.safetensors"),
        ("import", release, *HEADS, "--out", tmp_path / "file.safetensors"),
    ):
        status, _, errors = run_cli(capsys, *arguments)
        assert (status, errors.count("\n")) == (2, 1)
        assert "already exists" in errors
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file.safetensors": "mine", "other.json": "mine"}


# Bad input


class Code:
    """Unpickling it would leave a file."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def damage(content: Content, folder: Path) -> dict[str, tuple[Path, list[str]]]:
    """Bad files by what is wrong with them, each with words that the refusal must have."""

    def save(name: str, value: Any) -> Path:
        torch.save(value, folder / name)
        return folder / name

    def changed(part: str, **tensors: Any) -> Content:
        return content | {part: {**content[part], **tensors}}

    whole = save("whole.pth.tar", content)
    cut = folder / "cut.pth.tar"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(folder / "bits.pth.tar", "w") as bits:
        for item in archive.namelist():
            data = archive.read(item)
            bits.writestr(item, data[: len(data) // 2] if item.endswith("data.pkl") else data)
    plain = {name.removeprefix("module."): value.clone() for name, value in content["encoder"].items()}
    save_file(plain, folder / "cut.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "cut.safetensors").read_bytes()[:-100])
    norm, mask_token, nan = "module.norm.weight", "module.mask_token", torch.full((1, 1, 24), torch.nan)
    less = {name: value for name, value in content["encoder"].items() if "blocks.1.mlp" not in name}
    half = {name: value.half() for name, value in content["encoder"].items()}
    bert = folder / "bert"
    bert.mkdir()
    (bert / "config.json").write_text(json.dumps({"model_type": "bert"}))
    save_file({"weight": torch.zeros(1)}, bert / "model.safetensors")
    (folder / "empty").mkdir()
    (folder / "text.pth.tar").write_text("not a checkpoint")
    (folder / "pickle.pth.tar").write_bytes(pickle.dumps({"encoder": Code()}, protocol=4))
    return {
        "truncated": (cut, ["damaged"]),
        "garbled": (folder / "bits.pth.tar", ["damaged"]),
        "no archive": (folder / "text.pth.tar", ["damaged"]),
        "truncated safetensors": (folder / "cut.safetensors", ["damaged"]),
        "code": (save("code.pth.tar", content | {"opt": Code()}), ["refused", "system"]),
        "old code": (save_old(folder / "old.pth.tar", content | {"opt": Code()}), ["refused", "system"]),
        "pickled code": (folder / "pickle.pth.tar", ["may hold code", "nothing in it was run"]),
        "missing weights": (save("less.pth.tar", content | {"encoder": less}), ["4 missing", "0 unexpected", "blocks.1.mlp.fc1"]),
        "class token": (save("cls.pth.tar", changed("encoder", cls_token=torch.zeros(1, 1, 48))), ["1 unexpected", "cls_token"]),
        "another shape": (save("shape.pth.tar", changed("target_encoder", **{norm: torch.ones(7)})), ["1 of another", "(7,)"]),
        "NaN": (save("nan.pth.tar", changed("predictor", **{mask_token: nan})), ["mask_token", "NaN"]),
        "infinity": (save("inf.pth.tar", changed("encoder", **{norm: torch.full((48,), torch.inf)})), ["norm.weight"]),
        "float16": (save("half.pth.tar", content | {"encoder": half}), ["float16", "--to-float32"]),
        "another model": (save("resnet.pth.tar", {"conv1.weight": torch.zeros(8, 3, 7, 7)}), ["neither", "conv1.weight"]),
        "another network": (save("net.pth.tar", {"encoder": {"conv1.weight": torch.zeros(1)}}), ["no architecture that we have"]),
        "a list": (save("list.pth.tar", [1, 2]), ["list"]),
        "another folder": (bert, ["bert", "ijepa"]),
        "an empty folder": (folder / "empty", ["config.json"]),
        "nothing": (folder / "nowhere", ["no such file"]),
    }  # fmt: skip


def save_old(path: Path, value: Any) -> Path:
    """As torch before 1.6 saved: no archive."""
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return path


def test_bad_files_are_refused_in_one_line(method: IJEPA, tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    for wrong, (path, words) in damage(release_content(method), tmp_path / "in").items():
        status, said, errors = run_cli(capsys, "import", path, "--out", "ours.safetensors", *HEADS)
        assert (wrong, status, said, errors.count("\n")) == (wrong, 2, "", 1), errors
        assert str(path) in errors
        for word in words:
            assert word in errors, (wrong, errors)
        assert list((tmp_path / "out").iterdir()) == [], wrong


def test_an_unknown_width_needs_the_heads(release: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="width 48 is none of .*--heads"):
        import_weights(release, tmp_path / "ours.safetensors")
    with pytest.raises(ValueError, match="heads"):
        import_weights(release, tmp_path / "ours.safetensors", heads=5)
    assert list(tmp_path.iterdir()) == []


# On


def small_recipe(changes: dict[str, Any] | None = None) -> Recipe:
    """The demo's recipe in this shape for one step, with rates of 0."""
    values = SHAPE | {
        "data.batch_size": 8, "data.workers": 0, "data.normalization": "imagenet", "health.num_images": 8,
        "optim.lr": 0.0, "method.momentum.schedule": "fixed", "method.momentum.start": 1.0,
        "train.length": "1steps", "train.precision": "fp32",
    }  # fmt: skip
    return with_changes(load_recipe("demo"), values | (changes or {}))


def saved_weights(run: Path) -> dict[str, torch.Tensor]:
    tensors, info = load_checkpoint(sorted((run / "checkpoints").glob("*.safetensors"))[-1], "method.")
    assert info["step"] == 1
    return tensors


def test_a_run_starts_from_imported_weights_and_resumes_without_the_flag(imported: Path, tmp_path: Path):
    # Rates of 0 leave every weight where it started.
    pretrain("sample:train", small_recipe(), tmp_path / "run", init=imported)
    start = load_checkpoint(imported)[0]
    assert all(torch.equal(value, start[name]) for name, value in saved_weights(tmp_path / "run").items())
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["init"]["checkpoint"] == str(imported.resolve())
    for file in (tmp_path / "run" / "checkpoints").iterdir():  # as if killed before the first save
        file.unlink()
    pretrain("sample:train", None, tmp_path / "run", resume=True)
    assert all(torch.equal(value, start[name]) for name, value in saved_weights(tmp_path / "run").items())


def test_one_encoder_serves_for_both_and_positions_follow_the_grid(release: Path, tmp_path: Path):
    import_weights(release, tmp_path / "one.safetensors", encoder="target", heads=4)
    recipe = small_recipe({"data.image_size": (48, 32)})
    pretrain("sample:train", recipe, tmp_path / "run", init=tmp_path / "one.safetensors")
    start, weights = load_checkpoint(tmp_path / "one.safetensors")[0], saved_weights(tmp_path / "run")
    for name, value in start.items():
        for encoder in ("target", "context"):
            ours = weights[name.replace("target", encoder)]
            assert ours.shape[1:2] == (24,) if name.endswith("pos_embed") else torch.equal(ours, value)


def test_a_checkpoint_that_does_not_fit_starts_no_run(imported: Path, tmp_path: Path):
    for changes, flag in (
        ({"model.heads": 2}, "model.heads=4"),
        ({"model.depth": 3}, "model.depth=2"),
        ({"method.predictor.width": 32}, "method.predictor.width=24"),
        ({"data.channels": 1}, "data.channels=3"),
    ):
        with pytest.raises(ValueError, match=flag):
            pretrain("sample:train", small_recipe(changes), tmp_path / "run", init=imported)
    assert list(tmp_path.iterdir()) == []


def save_huge(path: str) -> None:
    """A release checkpoint of HUGE_LAYERS of ViT-H/14, random weights, for small images, because tokens take time."""
    recipe = with_changes(load_recipe("paper_vit_huge_14"), {"data.image_size": 112, "model.depth": HUGE_LAYERS})
    with torch.device("meta"):
        method = make.make_method(recipe)
    for value in method.to_empty(device="cpu").state_dict().values():
        value.detach().uniform_(-0.05, 0.05)
    torch.save(release_content(method), path)


@pytest.mark.slow
def test_vit_huge_goes_in_and_out_within_16_gb(tmp_path: Path):
    """A sixteenth of its layers in a sixteenth of what the runtime leaves of it: what is held grows with the weights."""
    most_gb = RUNTIME_GB + (16 - RUNTIME_GB) * HUGE_LAYERS / 32
    release = tmp_path / "huge.pth.tar"
    make = "import sys; from tests.parity.test_bridge import save_huge; save_huge(sys.argv[1])"  # its memory is not counted
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", make, release], check=True, cwd=root, env=environment)
    measure = (
        "import resource, sys; from openjepa.cli import main; main(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    ours = tmp_path / "huge.safetensors"
    export = ("export", ours, "--encoder", "target", "--format", "onnx", "--out", tmp_path / "huge.onnx")
    for command in (("import", release, "--out", ours), export):  # all formats were measured with all layers
        done = subprocess.run(
            [sys.executable, "-c", measure, *map(str, command)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        peak_gb = int(done.stdout.split()[-1]) * 1024 / 1e9  # pages of mapped files included
        print(f"{' '.join(map(str, command))}: {peak_gb:.1f} GB\n{done.stdout}")
        assert peak_gb < most_gb
