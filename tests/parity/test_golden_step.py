"""Our paper recipe computes the reference release's step: outputs, targets, predictions, loss, gradients, weights afterwards.

Tensors were recorded from the release in float32 (../shared/golden). Tolerances are relative to the largest entry of each
tensor: 1e-5 forward, 1e-4 gradients.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openjepa.config import Mask, Method, Model, Optim
from openjepa.engine.optim import make_optimizer
from openjepa.interop.official import our_name
from openjepa.masks import Masks
from openjepa.methods import IJEPA
from openjepa.nn.encoder import gather_tokens

FORWARD, GRADIENT = 1e-5, 1e-4


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float, name: str = "") -> None:
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    assert ours.shape == theirs.shape
    assert difference < tolerance, f"{name}: relative difference {difference:.2e}"


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, torch.Tensor]:
    return load_file(shared / "golden" / "official_step.safetensors")


@pytest.fixture(scope="module")
def facts(shared: Path) -> dict:
    return json.loads((shared / "golden" / "official_step.json").read_text())


@pytest.fixture(scope="module")
def masks(golden: dict[str, torch.Tensor]) -> Masks:
    context, targets = golden["context_idx"], golden["target_idx"]
    return Masks(
        context,
        torch.full((len(context),), context.shape[1]),
        targets,
        torch.full(targets.shape[:2], targets.shape[2]),
    )


@pytest.fixture
def method(golden: dict[str, torch.Tensor], facts: dict) -> IJEPA:
    shape = facts["config"]
    model = Model(
        width=shape["embed_dim"], depth=shape["depth"], heads=shape["heads"], patch_size=shape["patch"],
        predictor_width=shape["pred_dim"], predictor_depth=shape["pred_depth"], predictor_heads=shape["heads"],
    )  # fmt: skip
    ours = IJEPA((shape["img"], shape["img"]), 3, model, Mask(), Method())
    parts = ("encoder.", "predictor.", "target_encoder.")
    ours.load_state_dict({our_name(name): value for name, value in golden.items() if name.startswith(parts)}, strict=True)
    return ours


def test_fixed_positions_are_the_releases(golden, method):
    fresh = IJEPA((96, 96), 3, Model(width=48, depth=1, heads=4, predictor_width=24, predictor_depth=1, predictor_heads=4))
    assert_close(fresh.context_encoder.pos_embed, golden["encoder.pos_embed"], 1e-6)
    assert_close(fresh.predictor.pos_embed, golden["predictor.predictor_pos_embed"], 1e-6)


def test_forward_pass_agrees(golden, masks, method):
    images = golden["images"]
    with torch.no_grad():
        target_output = method.target_encoder(images)
        assert_close(target_output, golden["target_encoder_output"], FORWARD)
        assert_close(method.context_encoder(images), golden["context_encoder_full_output"], FORWARD)
        targets = method.encode_targets(images, masks)
        assert_close(targets, golden["targets"], FORWARD)
        context = method.encode_context(images, masks)
        assert_close(context, golden["context_encoder_output"], FORWARD)
        predictions = method.predict(context, masks)
        assert_close(predictions, golden["predictions"], FORWARD)
        assert_close(method(images, masks)[0], golden["loss"], FORWARD)
    assert float((gather_tokens(target_output, masks.target_idx[:, 0]) - targets[:, 0]).abs().max()) > 0.01  # the norm acts


def test_every_gradient_agrees(golden, masks, method):
    method(golden["images"], masks)[0].backward()
    weights = dict(method.named_parameters())
    gradients = {name.removeprefix("grad."): value for name, value in golden.items() if name.startswith("grad.")}
    compared = set()
    for name, gradient in gradients.items():
        assert_close(weights[our_name(name)].grad, gradient, GRADIENT, name)
        compared.add(our_name(name))
    assert compared == {name for name, weight in weights.items() if weight.requires_grad}


def test_weights_after_one_step_agree(golden, facts, masks, method):
    rates = facts["optimizer"]
    decay = (rates["step1_weight_decay"],) * 2
    optimizer = make_optimizer(method, 3, Optim(weight_decay=decay, predictor_weight_decay=decay))
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = rates["step1_lr"] * group["lr_scale"], group["decay"][0]
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method(golden["images"], masks)[0].backward()
    optimizer.step()
    method.update_target(rates["momentum"])
    after = method.state_dict()
    recorded = {our_name(name.removeprefix("after.")): value for name, value in golden.items() if name.startswith("after.")}
    assert set(recorded) == set(after)
    for name, theirs in recorded.items():
        assert_close(after[name], theirs, FORWARD, name)
        if not name.endswith("pos_embed"):
            # Weights hardly move in one step, so compare with the size of the step, too. AdamW's first step divides each
            # gradient by its own size plus 1e-8: where a gradient is about 1e-8 its rounding shows, up to 0.2 % of a step.
            step, difference = (theirs - before[name]).abs().max(), (after[name] - theirs).abs().max()
            assert float(step) > 0
            assert float(difference / step) < 5e-3, name
