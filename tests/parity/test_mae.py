"""Our MAE against transformers' ViTMAEForPreTraining: same weights, images and masks give the same loss, pixels and gradients.

Theirs has a class token and ours has none, so theirs is masked out of every attention of their encoder and decoder: it is there,
reads what it likes and is read by nobody. Their patches list pixels as row, column, channel, ours as channel, row, column.
"""

import pytest
import torch

from openjepa.masks import sample_masks
from openjepa.methods.make import make_method
from openjepa.recipe.files import load_recipe
from tests import models

transformers = pytest.importorskip("transformers")
modeling = pytest.importorskip("transformers.models.vit_mae.modeling_vit_mae")

SIZE, PATCH, CHANNELS = 24, 4, 3
SHAPE = {
    "data__image_size": SIZE, "data__channels": CHANNELS, "model__patch_size": PATCH,
    "model__width": 48, "model__depth": 3, "model__heads": 4,
    "method__predictor__width": 32, "method__predictor__depth": 2, "method__predictor__heads": 4,
}  # fmt: skip
FORWARD, GRADIENT = 1e-5, 1e-4  # largest difference, relative to the largest value

# Ours -> theirs, per layer; their query, key and value are three.
LAYER = {
    "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}  # fmt: skip
OURS_ARE_ROWS = [channel * PATCH**2 + place for place in range(PATCH**2) for channel in range(CHANNELS)]  # their row -> our row


def make_theirs(norm_pix_loss):
    settings = transformers.ViTMAEConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192, image_size=SIZE, patch_size=PATCH,
        num_channels=CHANNELS, decoder_hidden_size=32, decoder_num_hidden_layers=2, decoder_num_attention_heads=4,
        decoder_intermediate_size=128, mask_ratio=0.75, norm_pix_loss=norm_pix_loss, layer_norm_eps=1e-6,
        attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(1)
    theirs = transformers.ViTMAEForPreTraining(settings)
    with torch.no_grad():  # their biases and norms start at 0 and 1, which would hide a mix-up
        for weight in theirs.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
        # transformers 5.23 computes its positions and then leaves them at 0. Its authors' have the column first, as ours do.
        for table in (theirs.vit.embeddings.position_embeddings, theirs.decoder.decoder_pos_embed):
            rows, columns = modeling.build_2d_sinusoidal_position_embedding(6, 6, table.shape[-1]).chunk(2, dim=-1)
            table[0, 1:] = torch.cat([columns, rows], dim=-1)
    for layer in theirs.decoder.decoder_layers:
        layer.register_forward_pre_hook(hide_class_token, with_kwargs=True)
    return theirs


def hide_class_token(layer, inputs, keywords):
    mask = torch.zeros(1, 1, 1, inputs[0].shape[1])
    mask[..., 0] = -torch.inf
    return inputs, keywords | {"attention_mask": mask}


def to_our_names(tensors):
    """Their weights, or gradients, under our names and in our order."""
    found = {}
    for theirs, ours in (("vit.", "context_encoder."), ("decoder.", "predictor.")):
        layers = "decoder_layers" if ours == "predictor." else "layers"
        for kind in ("weight", "bias"):
            for number in range(3 if theirs == "vit." else 2):
                source, goal = f"{theirs}{layers}.{number}.", f"{ours}blocks.{number}."
                for our_part, their_part in LAYER.items():
                    found[f"{goal}{our_part}.{kind}"] = tensors[f"{source}{their_part}.{kind}"]
                parts = [tensors[f"{source}attention.{part}_proj.{kind}"] for part in "qkv"]
                found[f"{goal}attn.qkv.{kind}"] = torch.cat(parts)
            found[f"context_encoder.patch_embed.proj.{kind}"] = tensors[f"vit.embeddings.patch_embeddings.projection.{kind}"]
            found[f"context_encoder.norm.{kind}"] = tensors[f"vit.layernorm.{kind}"]
            found[f"predictor.input_proj.{kind}"] = tensors[f"decoder.decoder_embed.{kind}"]
            found[f"predictor.norm.{kind}"] = tensors[f"decoder.decoder_norm.{kind}"]
            reordered = torch.empty_like(tensors[f"decoder.decoder_pred.{kind}"])
            reordered[OURS_ARE_ROWS] = tensors[f"decoder.decoder_pred.{kind}"]
            found[f"predictor.output_proj.{kind}"] = reordered
    return found | {"predictor.mask_token": tensors["decoder.mask_token"]}


def assert_close(ours, theirs, tolerance, name=""):
    assert ours.shape == theirs.shape, name
    assert float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max()), name


@pytest.mark.parametrize("targets", ["normalised_pixels", "pixels"])
def test_loss_reconstruction_and_every_gradient_agree(targets):
    theirs = make_theirs(norm_pix_loss=targets == "normalised_pixels")
    ours = models.small_method("mae", method__targets=targets, method__predict="joint", method__loss="mse", **SHAPE)
    weights = dict(theirs.named_parameters())
    assert_close(ours.context_encoder.pos_embed, weights["vit.embeddings.position_embeddings"][:, 1:], 1e-6)
    assert_close(ours.predictor.pos_embed, weights["decoder.decoder_pos_embed"][:, 1:], 1e-6)
    positions = {"context_encoder.pos_embed": ours.context_encoder.pos_embed, "predictor.pos_embed": ours.predictor.pos_embed}
    ours.load_state_dict(to_our_names(weights) | positions, strict=True)

    images = torch.randn(5, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    masks = sample_masks(load_recipe("mae_vit_base_16").mask, ours.grid, 5, seed=3, step=0)
    noise = torch.full((5, 36), 2.0).scatter(1, masks.context_idx, 1.0)  # theirs keeps the lowest
    noise = noise + torch.arange(36) / 100
    visible = torch.ones(5, 1 + masks.context_idx.shape[1])
    visible[:, 0] = 0  # the class token
    output = theirs(images, noise=noise, attention_mask=visible)
    output.loss.backward()
    hidden = torch.zeros(5, 36).scatter(1, masks.target_idx[:, 0], 1.0)
    assert torch.equal(output.mask, hidden)

    loss, _ = models.call(ours, images, masks)
    loss.backward()
    assert_close(loss.detach(), output.loss.detach(), FORWARD)
    with torch.no_grad():
        predictions = ours.predict(ours.encode_context(images, masks), masks)[:, 0]
    reconstruction = output.logits[hidden.bool()].reshape(5, -1, PATCH**2 * CHANNELS)
    assert_close(predictions[..., OURS_ARE_ROWS], reconstruction.detach(), FORWARD)

    gradients = to_our_names({name: weight.grad for name, weight in weights.items() if weight.grad is not None})
    trainable = {name: weight.grad for name, weight in ours.named_parameters() if weight.requires_grad}
    assert gradients.keys() == trainable.keys()
    for name, gradient in gradients.items():
        if name.endswith("qkv.bias"):  # a key's bias changes no attention: its gradient is rounding error
            width = len(gradient) // 3
            keep = torch.cat([torch.arange(width), torch.arange(2 * width, 3 * width)])
            assert_close(trainable[name][keep], gradient[keep], GRADIENT, name)
        else:
            assert_close(trainable[name], gradient, GRADIENT, name)


def test_the_recipes_shapes_are_those_of_their_default_settings():
    """Theirs default to ViT-B/16; only the class token is theirs alone."""
    recipe = load_recipe("mae_vit_base_16")
    defaults = transformers.ViTMAEConfig()
    assert defaults.mask_ratio == recipe.mask.target_scale[0] == 0.75
    with torch.device("meta"):
        ours = make_method(recipe)
        theirs = transformers.ViTMAEForPreTraining(defaults)
    for our_part, their_part, own in ((ours.context_encoder, theirs.vit, 768), (ours.predictor, theirs.decoder, 0)):
        counts = [sum(w.numel() for w in part.parameters() if w.requires_grad) for part in (our_part, their_part)]
        assert counts[0] + own == counts[1]
    heads = [part.blocks[0].attn.num_heads for part in (ours.context_encoder, ours.predictor)]
    assert heads == [defaults.num_attention_heads, defaults.decoder_num_attention_heads]
