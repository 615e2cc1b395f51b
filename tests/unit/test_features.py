"""Feature extraction: which images, in which mode and precision, what is skipped; raw pixels; the progress bar."""

import numpy as np
import pytest
import torch
from torch import nn

from openjepa.data.decode import Decoded, DecodeError
from openjepa.data.sources import open_source, spread
from openjepa.evals import features as module
from openjepa.evals.features import FeatureStore, ImageEncoder, RawPixels, extract_features, stream_features
from openjepa.nn.encoder import Encoder
from openjepa.nn.vit import VisionTransformer


class FlatSource:
    """Images of one grey value each, 8 x 8 px, of which some cannot be read."""

    def __init__(self, count=10, unreadable=(), labels=None):
        self.spec, self.channels, self.count, self.unreadable = "flat", 1, count, unreadable
        self.labels = None if labels is None else np.asarray(labels)
        self.classes = [] if labels is None else ["dark", "light"]

    def __len__(self):
        return self.count

    def open(self, index):
        return Decoded(self.load(index))

    def load(self, index):
        if index in self.unreadable:
            raise DecodeError(self.path(index), "truncated")
        return np.full((8, 8, 1), 10 * index, np.uint8)

    def path(self, index):
        return f"flat/{index}.png"


class Wobbly(nn.Module):
    """An encoder whose dropout and batch statistics give wrong features unless it is in eval mode."""

    size, channels = (8, 8), 1

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))

    def forward(self, images):
        pooled = self.layers(images.float() / 255)
        return pooled, pooled[:, None, None]


def make_encoder():
    torch.manual_seed(0)
    return Encoder(VisionTransformer((28, 28), 7, 1, (32, 2, 4, 4.0)), [0.286], [0.353])


def test_layers_on_request_are_those_of_an_encoder_made_for_them():
    torch.manual_seed(0)
    vit = VisionTransformer((28, 28), 4, 1, (32, 4, 2, 4.0))
    images = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    one, four = (Encoder(vit, [0.286], [0.353], layers) for layers in (1, 4))
    with torch.no_grad():
        assert torch.equal(one.with_layers(4)(images).pooled, four(images).pooled)
        assert torch.equal(four.with_layers(1)(images).pooled, one(images).pooled)
    with pytest.raises(ValueError, match="5 layers .* the encoder has 4"):
        one.with_layers(5)


class Counted(nn.Module):
    """Counts the images that it encodes."""

    size, channels = (8, 8), 1

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale, self.seen = nn.Parameter(torch.tensor(scale)), 0

    def forward(self, images):
        self.seen += len(images)
        rows = images.float().flatten(1) * self.scale
        return rows, rows.view(len(images), 8, 8, 1)


def test_features_are_computed_once_and_kept_on_disk(tmp_path):
    encoder, source = Counted(), FlatSource(10, unreadable=(3,), labels=[0, 1] * 5)
    first = FeatureStore(encoder, "one", folder=tmp_path / "cache").extract(source)
    again = FeatureStore(encoder, "one", folder=tmp_path / "cache")
    found = again.extract(source)
    assert encoder.seen == 9
    assert np.array_equal(found.rows, first.rows) and np.array_equal(found.image_idx, first.image_idx)
    assert np.array_equal(found.labels, first.labels)
    assert found.skipped == first.skipped == [(source.path(3), "truncated")]
    assert again.extract(source) is found and encoder.seen == 9

    assert FeatureStore(encoder, "other weights", folder=tmp_path / "cache").extract(source).rows.shape == (9, 64)
    assert encoder.seen == 18
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:40])
    assert np.array_equal(FeatureStore(encoder, "one", folder=tmp_path / "cache").extract(source).rows, first.rows)
    assert encoder.seen == 27


def test_a_file_that_is_written_again_is_read_again(tmp_path):
    """Also one of which a run's fingerprint knows no more than the name: 300 files, 256 of them sampled."""
    draw = np.random.default_rng(0)
    for number in range(300):
        np.save(tmp_path / f"{number:03}.npy", draw.integers(0, 256, (8, 8, 1), dtype=np.uint8))
    unsampled = sorted(set(range(300)) - set(spread(300, 256).tolist()))[0]
    first = FeatureStore(Counted(), "one", folder=tmp_path / "cache").extract(open_source(str(tmp_path), 1))
    np.save(tmp_path / f"{unsampled:03}.npy", np.zeros((8, 8, 1), np.uint8))  # as many bytes
    again = FeatureStore(Counted(), "one", folder=tmp_path / "cache").extract(open_source(str(tmp_path), 1))
    changed = (first.rows != again.rows).any(1)
    assert np.flatnonzero(changed).tolist() == [unsampled]


def test_patches_that_do_not_fit_into_memory_are_refused(monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 4 * 10 * 64)
    assert FeatureStore(Counted(), "one").extract_patches(FlatSource(10)).rows.shape == (10, 64, 1)
    with pytest.raises(ValueError, match="fewer labelled images"):
        FeatureStore(Counted(), "one").extract_patches(FlatSource(11))


def test_features_are_the_encoder_s_in_the_order_of_the_source():
    source = open_source("sample:test", 1)
    encoder = make_encoder()
    features = extract_features(encoder, source, batch_size=300)
    chosen = [0, 299, 300, 1234, 1999]
    images = torch.from_numpy(np.stack([source.load(index)[..., 0] for index in chosen]))[:, None]
    with torch.no_grad():
        expected = encoder.eval()(images).pooled
    assert features.rows.shape == (len(source), 32)
    assert features.rows.dtype == np.float32
    assert np.allclose(features.rows[chosen], expected.numpy(), atol=1e-5)
    assert np.array_equal(features.labels, source.labels)
    assert np.array_equal(features.image_idx, np.arange(len(source)))
    assert (features.classes, features.spec, features.skipped) == (source.classes, "sample:test", [])


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_batches_change_nothing(batch_size):
    encoder, source = Wobbly(), FlatSource(10)
    whole = extract_features(encoder, source, batch_size=10).rows
    assert np.allclose(extract_features(encoder, source, batch_size=batch_size).rows, whole, atol=1e-6)


def test_a_module_is_evaluated_in_eval_mode_and_then_as_it_was():
    encoder = Wobbly()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    first, second = (extract_features(encoder, FlatSource()).rows for _ in range(2))
    assert np.array_equal(first, second)
    assert all(part.training for part in encoder.modules())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())  # batch statistics too
    extract_features(encoder.eval(), FlatSource())
    assert not encoder.training


def test_the_mode_comes_back_after_an_error():
    encoder = Wobbly()
    with torch.no_grad():
        encoder.layers[1].bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="features of flat/0.png are not finite"):
        extract_features(encoder, FlatSource())
    assert encoder.training


def test_between_batches_gradients_are_as_the_caller_has_them():
    for _ in stream_features(Wobbly(), FlatSource(), batch_size=4):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()


def test_unreadable_images_are_left_out_and_listed():
    labels = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    features = extract_features(RawPixels((8, 8), 1), FlatSource(10, {0, 5, 9}, labels), batch_size=2)
    assert features.image_idx.tolist() == [1, 2, 3, 4, 6, 7, 8]
    assert features.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert features.rows[:, 0] == pytest.approx(features.image_idx * 10 / 255)
    assert [path for path, _ in features.skipped] == ["flat/0.png", "flat/5.png", "flat/9.png"]


def test_nothing_readable_is_an_error():
    with pytest.raises(ValueError, match="none of 3 images"):
        extract_features(RawPixels((8, 8), 1), FlatSource(3, {0, 1, 2}))


def test_workers_change_nothing():
    alone, helped = (extract_features(RawPixels((8, 8), 1), FlatSource(9, {4}), batch_size=2, workers=n) for n in (0, 2))
    assert np.array_equal(alone.rows, helped.rows)
    assert alone.skipped == helped.skipped


def test_bf16_is_close_and_comes_back_as_float32():
    encoder, source = make_encoder(), open_source("sample:test", 1)
    exact, rough = (next(stream_features(encoder, source, precision=precision)).rows for precision in ("fp32", "bf16"))
    assert rough.dtype == np.float32
    assert not np.array_equal(rough, exact)
    cosine = (rough * exact).sum(1) / np.linalg.norm(rough, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.999


def test_an_encoder_that_ends_in_bf16_gives_float32_too():
    encoder, source = Wobbly(), FlatSource()
    exact, rough = (extract_features(encoder, source, precision=precision).rows for precision in ("fp32", "bf16"))
    assert rough.dtype == np.float32
    assert np.allclose(rough, exact, atol=0.02)


def test_other_channels_than_the_encoder_s_are_refused():
    with pytest.raises(ValueError, match="flat was opened with 1 channels, the encoder takes 3"):
        extract_features(RawPixels((8, 8), 3), FlatSource())


def test_raw_pixels_are_the_image_in_a_row():
    images = torch.randint(0, 256, (3, 2, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pooled, patches = RawPixels((4, 5), 2)(images)
    assert np.allclose(pooled.numpy(), images.numpy().reshape(3, -1) / 255)
    assert patches.shape == (3, 4, 5, 2)
    assert patches[1, 2, 3, 1] == pooled[1, 20 + 2 * 5 + 3]
    assert torch.equal(RawPixels((4, 5), 2)(images.float() / 255).pooled, pooled)
    squares = RawPixels((4, 6), 2, 2)(torch.arange(48, dtype=torch.uint8).view(1, 2, 4, 6)).patches * 255
    assert squares.shape == (1, 2, 3, 8)
    assert squares[0, 1, 2].round().tolist() == [16, 17, 22, 23, 40, 41, 46, 47]  # channel by channel, row by row


def test_our_encoders_keep_the_contract():
    for encoder in (make_encoder(), RawPixels((28, 28), 1), Wobbly()):
        assert isinstance(encoder, ImageEncoder)


def test_the_progress_bar_is_for_terminals_alone(capsys, monkeypatch):
    for variable in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(variable, raising=False)
    extract_features(RawPixels((8, 8), 1), FlatSource(), label="reading pixels")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    extract_features(RawPixels((8, 8), 1), FlatSource())
    assert capsys.readouterr() == ("", "")
    extract_features(RawPixels((8, 8), 1), FlatSource(), label="reading pixels")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "reading pixels" in shown.err
    assert "10/10" in shown.err
    assert shown.err.endswith("\x1b[2K")  # the line is wiped at the end
