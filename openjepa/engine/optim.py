"""AdamW with the groups that the recipes describe: encoder and predictor decay apart, none on biases and norms.

Source: Loshchilov and Hutter 2019 (arXiv 1711.05101); groups of the brief and of the release (biases and 1-d weights undecayed).
Layer-wise rates after Clark et al. 2020 (arXiv 2003.10555): layer l of L runs at decay ** (L - 1 - l), the patch embedding at
decay ** L, the final norm and the predictor at the full rate. Deviation: the brief's code leaves the patch embedding at
the full rate, against its own words; pinned by tests/unit/test_ijepa.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor, nn
from torch.optim import AdamW

from openjepa.engine.schedule import cosine_weight_decay
from openjepa.recipe.sections import Optim


class WeightGroup(NamedTuple):
    """Weights that are treated alike.

    layers_above: of a layer of the encoder, how many layers lie above it, by which its rate falls; else None.
    """

    weights: list[nn.Parameter]
    layers_above: int | None = None


def make_optimizer(groups: Iterable[WeightGroup], settings: Optim, fused: bool = False) -> AdamW:
    """AdamW over a method's weight groups.

    fused: one pass over memory where there are a dozen; the same formula, of which the last bit may differ.
    """
    members: dict[tuple[float, tuple[float, float]], list[nn.Parameter]] = defaultdict(list)
    for group in groups:
        for weight in group.weights:
            members[_group_key(weight, group.layers_above, settings)].append(weight)
    merged = [{"params": weights, "lr_scale": scale, "decay": decay} for (scale, decay), weights in members.items()]
    return AdamW(merged, betas=settings.betas, eps=settings.eps, foreach=not fused, fused=fused)


def _group_key(weight: nn.Parameter, layers_above: int | None, settings: Optim) -> tuple[float, tuple[float, float]]:
    """Learning-rate scale, and weight decay at start and end."""
    decay = settings.predictor_weight_decay if layers_above is None else settings.weight_decay
    return settings.layer_decay ** (layers_above or 0), (0.0, 0.0) if weight.ndim == 1 else decay


def set_rates(optimizer: AdamW, lr: float, step: int | float, total_steps: int) -> None:
    """Give every group the step's learning rate and weight decay."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        group["weight_decay"] = cosine_weight_decay(step, total_steps, *group["decay"])


def clip_gradients(weights: list[nn.Parameter], max_norm: float | None) -> torch.Tensor:
    """The gradients' norm before clipping; scales them down to max_norm in place if they are longer."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(weights, max_norm, norm, foreach=True)
    return norm


def step_where(finite: Bool[Tensor, ""], optimizer: AdamW) -> None:
    """One step of the optimizer if `finite`, none if not; a fused one decides on its device, without blocking the host.

    Its `found_inf` is PyTorch's own way, as GradScaler.step takes it; here a loss that is not finite counts as well.
    """
    if not optimizer.defaults["fused"]:
        if finite:
            optimizer.step()
        return
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    optimizer.step()
    del optimizer.found_inf  # type: ignore[attr-defined]


def momentum_where(finite: Bool[Tensor, ""], momentum: float) -> Float64[Tensor, ""]:
    """The momentum if `finite`, else 1, which leaves the target unchanged; on the device of `finite`."""
    return torch.where(finite, torch.full((), momentum, dtype=torch.float64, device=finite.device), 1.0)


def state_tensors(method: nn.Module, optimizer: AdamW) -> dict[str, torch.Tensor]:
    """The optimizer's state by weight name, as `exp_avg.NAME` and so on."""
    weights = method.named_parameters()
    return {f"{key}.{name}": value for name, weight in weights for key, value in optimizer.state.get(weight, {}).items()}


def load_state_tensors(method: nn.Module, optimizer: AdamW, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what state_tensors gave; ValueError if a tensor belongs to no weight."""
    weights = dict(method.named_parameters())
    for key, value in tensors.items():
        kind, _, name = key.partition(".")
        if name not in weights or (weights[name].shape != value.shape and kind != "step"):
            raise ValueError(f"the checkpoint's optimizer state {key} fits no weight of this model")
        stays = kind == "step" and not optimizer.defaults["fused"]  # which counts where the weights are, the others on the CPU
        moved = value if stays else value.to(weights[name].device)
        optimizer.state[weights[name]][kind] = moved
