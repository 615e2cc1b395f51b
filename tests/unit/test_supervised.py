"""The classifier against its loss written out, its labels, and stochastic depth by its rate."""

import math

import pytest
import torch
from PIL import Image

from openjepa.data.batch import one_view
from openjepa.data.sources import open_source
from openjepa.methods.supervised import mix
from openjepa.recipe.edit import with_changes
from openjepa.recipe.files import load_recipe
from openjepa.training.build import count_classes, make_batches
from tests.models import RATES, call, small_method, small_recipe


def test_the_loss_is_cross_entropy_with_smoothed_labels():
    """Of K classes the right one has 1 - s + s / K, every other s / K (arXiv 1512.00567, section 7)."""
    method = small_method("supervised", seed=0, method__label_smoothing=0.2)
    images, labels = torch.randn(6, 1, 32, 32), torch.tensor([0, 1, 2, 3, 4, 0])
    loss, metrics = call(method, images, labels=labels)
    logits = method.classifier(method.context_encoder(images).mean(1)).detach().double()
    expected = 0.0
    for row, label in zip(logits, labels.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(float(value)) for value in row))
        expected += sum(
            (0.2 / 5 + (0.8 if place == label else 0.0)) * (log_sum - float(value)) for place, value in enumerate(row)
        )
    assert float(loss) == pytest.approx(expected / 6, rel=1e-5)
    assert float(metrics["train_accuracy"]) == pytest.approx(float((logits.argmax(1) == labels).double().mean()))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_what_is_wanted_of_a_mixture_is_the_share_of_each_image_in_it(mixup: float, cutmix: float):
    """Each image has one grey level, so that its pixels tell how much of whom is there (1710.09412; 1905.04899, section 3.1)."""
    levels, wanted = torch.tensor([0.0, 1.0, 10.0, 100.0]), torch.eye(4)
    images = levels[:, None, None, None].expand(4, 2, 12, 16)
    ways = set()
    for seed in range(40):
        torch.manual_seed(seed)
        mixed, shares = mix(images, wanted, mixup, cutmix)
        assert torch.allclose(shares.sum(1), torch.ones(4))
        assert torch.allclose(mixed.mean((1, 2, 3)), shares @ levels, atol=1e-3)
        ways |= {"blend"} if not bool(torch.isin(mixed, levels).all()) else set()
        ways |= {"box"} if any(len(image.unique()) > 1 for image in mixed) else set()
        torch.manual_seed(seed)
        assert torch.equal(mix(images, wanted, mixup, cutmix)[0], mixed)
    assert ways == ({"box"} if not mixup else {"blend"} if not cutmix else {"box", "blend"})


def test_a_share_of_mixup_follows_its_beta_distribution():
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1))."""
    images, wanted = torch.zeros(2, 1, 4, 4), torch.eye(2)
    shares = []
    for seed in range(3000):
        torch.manual_seed(seed)
        mixed = mix(images, wanted, 0.8, 0.0)[1]
        if float(mixed[0, 0]) != 1.0:  # its partner was another
            shares.append(float(mixed[0, 0]))
    found = torch.tensor(shares)
    assert float(found.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(found.var()) == pytest.approx(1 / (4 * 2.6), rel=0.1)


def test_mixing_refuses_to_be_accumulated():
    with pytest.raises(ValueError, match=r"method\.cutmix 1.*whole batch"):
        small_recipe("supervised", method__cutmix=1.0, train__accumulation_steps=2)


def test_labels_are_those_of_the_images_that_were_seen(tmp_path):
    """Also of the images that took the place of unreadable ones: each class here has a grey level of its own."""
    for number in range(3):
        folder = tmp_path / f"class_{number}"
        folder.mkdir()
        for place in range(6):
            if number == 1 and place < 4:
                (folder / f"{place}.png").write_bytes(b"no picture")
            else:
                Image.new("L", (16, 16), 40 + 80 * number).save(folder / f"{place}.png")
    changes = {"data.batch_size": 6, "data.image_size": 16, "data.channels": 1, "data.workers": 0, "model.patch_size": 4}
    recipe = with_changes(load_recipe("supervised_small"), changes)
    source = open_source(str(tmp_path), 1)
    assert count_classes(recipe, source) == 3
    skipped = 0
    for batch in make_batches(recipe, source, 0, 9):
        greys = batch.views["main"].images.float().mean((1, 2, 3, 4))
        assert torch.equal(batch.labels, ((greys - 40) / 80).round().long())
        skipped += len(batch.skipped)
    assert skipped > 0


def test_layers_are_skipped_in_training_alone_in_any_precision():
    """At a rate of 0.9 the last of two layers is skipped by nine images in ten, and by none in evaluation."""
    torch.manual_seed(0)
    method = small_method("supervised", method__drop_path=0.9)
    with torch.no_grad():
        for layer in method.context_encoder.blocks:
            layer.mlp.fc2.bias.fill_(5.0)  # what a layer adds
    images, last = torch.randn(1, 1, 32, 32).expand(400, -1, -1, -1), method.context_encoder.blocks[-1]
    for reduced in (False, True):
        seen = []
        handle = last.register_forward_hook(lambda _layer, given, answer, seen=seen: seen.append((given[0], answer)))
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=reduced):
            method.train()(one_view(images, labels=torch.zeros(400, dtype=torch.int64)), RATES)
        handle.remove()
        ((given, answer),) = seen
        is_skipped = (answer - given).abs().amax((1, 2)) < 4
        # Attention and MLP are skipped apart, each at 0.9: the MLP's bias tells of the MLP.
        assert float(is_skipped.float().mean()) == pytest.approx(0.9, abs=0.06)
    method.eval()
    with torch.no_grad():
        tokens = method.context_encoder(images[:8])
    assert bool((tokens == tokens[:1]).all())


def test_a_source_without_labels_is_refused(tmp_path):
    Image.new("L", (16, 16)).save(tmp_path / "a.png")
    Image.new("L", (16, 16), 9).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="no labels"):
        count_classes(small_recipe("supervised"), open_source(str(tmp_path), 1))
    assert count_classes(small_recipe("ijepa"), open_source(str(tmp_path), 1)) is None
