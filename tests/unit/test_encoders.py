"""Encoders by spec: the same images through whatever is named, compared with the library that it comes from."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from openjepa.commands.evaluate import evaluate
from openjepa.commands.pretrain import pretrain
from openjepa.evals.encoders import open_encoder
from openjepa.weights.hf import load_hf_encoder
from openjepa.weights.load import load_encoder, load_random_encoder
from tests.models import small_recipe

IMAGES = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
RECIPE = small_recipe(
    data__image_size=28, data__batch_size=16, model__width=24, model__depth=4, model__patch_size=7,
    method__predictor__width=12, method__predictor__depth=1,
    train__length="2steps", train__precision="fp32", train__device="cpu", health__num_images=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    pretrain("sample:train", RECIPE, folder)
    return folder


def features(spec, encoder="context", images=IMAGES):
    with torch.no_grad():
        return open_encoder(spec, "sample:train", encoder, "cpu").encoder(images)


@pytest.mark.parametrize("encoder", ["context", "target"])
def test_a_run_gives_its_encoders(run, encoder):
    with torch.no_grad():
        assert torch.equal(features(run, encoder).pooled, load_encoder(run, encoder)(IMAGES).pooled)


def test_random_and_pixels_of_a_run_are_its_own(run):
    with torch.no_grad():
        expected = load_random_encoder(run)(IMAGES).pooled
    for found in (features(f"random:{run}"), features(run, "random")):
        assert torch.equal(found.pooled, expected)
    assert features(f"pixels:{run}").patches.shape == (2, 4, 4, 49)
    assert torch.equal(features(run, "pixels").pooled, IMAGES.flatten(1) / 255)


def test_random_of_a_recipe_is_the_encoder_that_a_run_starts_from(run, tmp_path):
    """The run's recipe in a file, without the run."""
    file = tmp_path / "mine.yaml"
    file.write_text((run / "recipe.yaml").read_text())
    torch.testing.assert_close(features(f"random:{file}").pooled, features(run, "random").pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t", "swin_tiny_patch4_window7_224"])
def test_timm_models_are_timms_own(name, tmp_path):
    subject = open_encoder(f"timm:{name}", "sample:train", device="cpu")
    assert subject.encoder.channels == 1
    torch.manual_seed(1)
    model = timm.create_model(name, pretrained=False, num_classes=0, in_chans=1).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    loaded = open_encoder(f"timm:{name}:{tmp_path / 'weights.safetensors'}", "sample:train", device="cpu")
    assert loaded.weights != subject.weights
    images = torch.randint(0, 256, (2, 1, *loaded.encoder.size), dtype=torch.uint8)
    with torch.no_grad():
        found = loaded.encoder(images)
        mean, std = (sum(model.pretrained_cfg[key]) / 3 for key in ("mean", "std"))
        expected = model((images / 255 - mean) / std)
    torch.testing.assert_close(found.pooled, expected, rtol=1e-4, atol=1e-4)
    assert found.patches.shape[0] == 2 and found.patches.shape[-1] == model.num_features
    assert found.patches.shape[1] == found.patches.shape[2] > 1


def test_weights_that_do_not_fit_are_refused(tmp_path):
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors does not fit timm's vit_tiny_patch16_224: it lacks"):
        open_encoder(f"timm:vit_tiny_patch16_224:{tmp_path / 'other.safetensors'}", "sample:train", device="cpu")


def test_a_hugging_face_folder_gives_what_transformers_computes(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    shape |= {"image_size": 28, "patch_size": 7}
    for model in (
        transformers.IJepaModel(transformers.IJepaConfig(**shape)),
        transformers.ViTModel(transformers.ViTConfig(**shape)),  # has a token of no patch, which is left out
    ):
        folder = tmp_path / model.config.model_type
        model.save_pretrained(folder)
        images = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
        with torch.no_grad():
            found = load_hf_encoder(folder)(images)
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
            tokens = model.eval()(pixel_values=(images / 255 - mean) / std).last_hidden_state[:, -16:]
        torch.testing.assert_close(found.patches.flatten(1, 2), tokens, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.pooled, tokens.mean(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", ["random:demo", "pixels:14", "timm:test_vit", "RUN"])
def test_all_of_them_are_measured(spec, run):
    record = evaluate(str(run) if spec == "RUN" else spec, "knn", "sample:test", "sample:test", device="cpu")
    assert record["encoder"] == ("context" if spec == "RUN" else spec)
    assert 0.15 < record["accuracy"] < 0.95
    low, high = record["interval"]
    assert low < record["accuracy"] < high


def test_a_record_is_kept_where_there_is_a_run(run):
    first = evaluate(run, "linear", "sample:test", "sample:test", layers=2, device="cpu")
    again = evaluate(run, "linear", "sample:test", "sample:test", layers=2, device="cpu")
    assert {key: first[key] for key in first if key != "time"} == {key: again[key] for key in again if key != "time"}
    assert len(list((run / "evals").glob("linear-context-*.json"))) == 1
    assert list((run / "cache").glob("pooled-2-*.safetensors"))
