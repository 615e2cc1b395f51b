"""The method's parts against closed forms and independent counts."""

import pytest
import torch

import openjepa
from openjepa.engine.optim import make_optimizer
from openjepa.masks import Masks
from openjepa.methods.make import make_method
from openjepa.methods.regularizers import sigreg, vicreg
from openjepa.nn.ema import update_target
from openjepa.nn.encoder import Encoder
from openjepa.nn.vit import VisionTransformer, make_layers
from openjepa.recipe.files import load_recipe
from openjepa.recipe.sections import ENCODERS, Optim
from openjepa.recipe.views import Mask
from tests.models import call, draw_masks, small_method


def count(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad)


def test_vit_base_has_the_published_number_of_parameters():
    """85.8 M for ViT-B/16, of which the fixed positions are 0.15 M.

    The predictor of the brief's shape, 384 wide and 6 deep, has 11.2 M: the stated 12 M is rounded up.

    By hand: 12 P^2 + 13 P a layer, 6 layers; two projections of 768 x 384; mask token; final norm.
    """
    recipe = load_recipe("brief_vit_base_16")
    with torch.device("meta"):
        method = make_method(recipe)
    positions = method.context_encoder.pos_embed.numel()
    assert count(method.context_encoder) + positions == 85_797_120
    assert count(method.context_encoder) == 85_646_592 == 768 * 768 + 768 + 12 * (12 * 768**2 + 13 * 768) + 2 * 768
    width = 384
    by_hand = 6 * (12 * width**2 + 13 * width) + (768 * width + width) + (width * 768 + 768) + width + 2 * width
    assert count(method.predictor) == by_hand
    assert round(by_hand / 1e6, 1) == 11.2


@pytest.mark.parametrize(("preset", "millions"), [("tiny", 5.5), ("small", 21.6), ("large", 303.1), ("huge", 630.7)])
def test_presets_have_the_sizes_of_their_papers(preset, millions):
    with torch.device("meta"):
        vit = VisionTransformer((224, 224), 14 if preset == "huge" else 16, 3, ENCODERS[preset])
    assert count(vit) / 1e6 == pytest.approx(millions, abs=0.5)


def test_the_target_encoder_starts_equal_and_never_gets_gradients():
    method = small_method()
    for name, value in method.context_encoder.state_dict().items():
        assert torch.equal(value, method.target_encoder.state_dict()[name])
    call(method, torch.randn(2, 1, 32, 32), draw_masks(method, 2))[0].backward()
    assert all(weight.grad is None for weight in method.target_encoder.parameters())
    assert all(weight.grad is not None for weight in method.predictor.parameters())


def test_momentum_update_by_hand():
    target, context = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    with torch.no_grad():
        for weight, value in ((target.weight, 1.0), (target.bias, 2.0), (context.weight, 3.0), (context.bias, -2.0)):
            weight.fill_(value)
    update_target(target, context, 0.75)
    assert (target.weight.item(), target.bias.item()) == (1.5, 1.0)


def test_every_weight_is_initialised(monkeypatch):
    """Weights filled with NaN before initialisation would stay NaN if it forgot one."""

    def poison(self):
        with torch.no_grad():
            for weight in self.parameters(recurse=False):
                weight.fill_(float("nan"))

    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", poison)
    monkeypatch.setattr(torch.nn.LayerNorm, "reset_parameters", poison)
    assert any(bool(weight.isnan().all()) for weight in make_layers(8, 1, 2, 4.0).parameters())  # the poison works
    method = small_method()
    assert all(bool(weight.isfinite().all()) for weight in method.state_dict().values())


def test_initial_weights_are_the_releases_effective_ones():
    """Normal 0.02, biases 0, norms 1 and 0."""
    method = small_method(
        seed=0, data__channels=3, model__width=128, model__depth=3, method__predictor__width=64, method__predictor__depth=3
    )
    for name, weight in method.named_parameters():
        if "norm" in name or name.endswith(".bias"):
            assert torch.equal(weight, torch.full_like(weight, float("norm" in name and name.endswith("weight")))), name
        elif not name.endswith("pos_embed"):
            spread = 5 * 0.02 / (2 * weight.numel()) ** 0.5  # five standard errors
            assert weight.std(unbiased=False).item() == pytest.approx(0.02, abs=spread + 1e-4), name
            assert abs(weight.mean().item()) < 2 * spread, name


def test_patches_as_targets_see_nothing_else():
    """With target_input patches, changing the image outside the targets changes no target; with image it does."""
    methods = {
        target_input: small_method(seed=0, method__target_input=target_input, method__target_norm="none")
        for target_input in ("patches", "image")
    }
    masks = draw_masks(methods["image"], 1)
    images = torch.randn(1, 1, 32, 32)
    changed = images.clone()
    outside = sorted(set(range(64)) - set(masks.target_idx.flatten().tolist()))[0]
    row, column = divmod(outside, 8)
    changed[..., 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 3
    for target_input, method in methods.items():
        first, second = method.make_targets(images, masks), method.make_targets(changed, masks)
        assert torch.equal(first, second) == (target_input == "patches")


def test_patches_as_targets_are_encoded_together_and_each_once():
    """The target encoder sees the union of an image's blocks, as in the seed, though blocks overlap and are padded."""
    blocks = [[[9, 10], [10, 11, 18, 19]], [[40, 41, 42], [3]]]
    idx = torch.tensor([[block + block[:1] * (4 - len(block)) for block in image] for image in blocks])
    lengths = torch.tensor([[len(block) for block in image] for image in blocks])
    method = small_method(method__target_input="patches", method__target_norm="none")
    images = torch.randn(2, 1, 32, 32)
    targets = method.make_targets(images, Masks(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2).long(), idx, lengths))
    for number, image in enumerate(blocks):
        union = sorted({patch for block in image for patch in block})
        alone = method.target_encoder(images[number : number + 1], torch.tensor([union]))[0]
        for block, patches in enumerate(image):
            expected = alone[[union.index(patch) for patch in patches]]
            torch.testing.assert_close(targets[number, block, : len(patches)], expected, atol=1e-5, rtol=0)


def test_joint_and_per_block_prediction_agree_for_one_block():
    images, outputs = torch.randn(3, 1, 32, 32), []
    for predict in ("joint", "per_block"):
        method = small_method(seed=0, method__predict=predict)
        outputs.append(call(method, images, draw_masks(method, 3, mask=Mask(num_targets=1)))[0])
    torch.testing.assert_close(outputs[0], outputs[1])


def test_regularisers_prefer_spread_features():
    torch.manual_seed(0)
    normal = torch.randn(4096, 8)
    flat = torch.cat([normal[:, :1]] * 8, dim=1)
    for term in (vicreg, sigreg):
        assert float(term(normal)) < 0.01
        assert float(term(torch.zeros(64, 8))) > 10 * float(term(normal))
        assert float(term(flat)) > 10 * float(term(normal))


def test_layer_decay_by_the_briefs_words():
    """Layer 11 of 12 runs at the full rate, layer 0 at 0.75^11, the patch embedding, earlier still, at 0.75^12."""
    with torch.device("meta"):
        method = make_method(load_recipe("brief_vit_base_16"))
    settings = Optim(layer_decay=0.75, weight_decay=(0.05, 0.05), predictor_weight_decay=(0.04, 0.04))
    found = {
        id(weight): (group["lr_scale"], group["decay"])
        for group in make_optimizer(method.weight_groups(), settings).param_groups
        for weight in group["params"]
    }
    weights = {name: weight for name, weight in method.named_parameters() if weight.requires_grad}
    assert found.keys() == {id(weight) for weight in weights.values()}
    key = lambda name: found[id(weights[name])]  # noqa: E731
    assert key("context_encoder.blocks.11.mlp.fc1.weight") == (1.0, (0.05, 0.05))
    assert key("context_encoder.blocks.0.attn.qkv.bias") == (pytest.approx(0.04223514, rel=1e-5), (0.0, 0.0))
    assert key("context_encoder.patch_embed.proj.weight") == (pytest.approx(0.03167635, rel=1e-5), (0.05, 0.05))
    assert key("context_encoder.norm.weight") == (1.0, (0.0, 0.0))
    assert key("predictor.blocks.0.mlp.fc1.weight") == (1.0, (0.04, 0.04))


def test_encoder_takes_bytes_or_fractions_and_other_sizes():
    vit = VisionTransformer((32, 32), 4, 3, (32, 2, 2, 4.0))
    encoder = Encoder(vit, [0.5, 0.4, 0.3], [0.2, 0.2, 0.2]).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        from_bytes, from_fractions = encoder(images), encoder(images / 255)
        torch.testing.assert_close(from_bytes.pooled, from_fractions.pooled)
        torch.testing.assert_close(from_bytes.pooled, from_bytes.patches.flatten(1, 2).mean(1))
        assert encoder(images[..., :24]).patches.shape == (2, 8, 6, 32)
        with pytest.raises(ValueError, match="cannot be cut"):
            encoder(images[..., :23])
        with pytest.raises(ValueError, match="channels"):
            encoder(images[:, :1])


def test_the_public_names_are_there():
    for name in openjepa.__all__:
        assert getattr(openjepa, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = openjepa.nothing
