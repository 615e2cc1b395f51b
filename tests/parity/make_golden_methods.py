"""Record losses, gradients and centres of libraries that are not ours, for tests/parity/golden. Run by hand.

    python -m venv scratch && scratch/bin/pip install lightly==1.6.0 safetensors
    scratch/bin/pip download --no-deps stable-pretraining==0.1.8 && unzip -d spt stable_pretraining-0.1.8-py3-none-any.whl
    scratch/bin/python tests/parity/make_golden_methods.py spt

Needs lightly (MIT) and the unpacked wheel of stable-pretraining (MIT), of which a few functions are run without the rest of the
package and what that would need. Nothing of either is stored here but numbers.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any, Optional

import torch
from lightly.loss import DINOLoss, IBOTPatchLoss, NegativeCosineSimilarity
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

FOLDER = Path(__file__).with_name("golden")


def draw(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def take_out(file: Path, name: str) -> Any:
    """A function or class of a file by itself, with torch around it, for one process."""
    (node,) = (part for part in ast.parse(file.read_text()).body if getattr(part, "name", None) == name)
    space: dict[str, Any] = {"torch": torch, "F": functional, "nn": nn, "Module": nn.Module, "Optional": Optional}
    space |= {"all_gather": lambda tensor: (tensor,), "all_reduce": None}
    exec(compile(ast.Module([node], []), str(file), "exec"), space)
    return space[name]


def differentiate(loss: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


def save(name: str, **tensors: torch.Tensor) -> None:
    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, FOLDER / f"{name}.safetensors")


def record_byol(spt: Path) -> None:
    predictions, targets = draw(6, 12, seed=1).requires_grad_(), draw(6, 12, seed=2)
    negative = NegativeCosineSimilarity()(predictions, targets)
    loss = take_out(spt / "losses/joint_embedding.py", "BYOLLoss")()(predictions, targets)
    save(
        "byol", predictions=predictions, targets=targets, loss=loss, gradient=differentiate(loss, predictions)[0],
        negative_cosine=negative, negative_cosine_gradient=differentiate(negative, predictions)[0],
    )  # fmt: skip


def record_mocov3(spt: Path) -> None:
    queries, keys, temperature = draw(6, 12, seed=3).requires_grad_(), draw(6, 12, seed=4), 0.2
    loss = take_out(spt / "methods/mocov3.py", "_info_nce")(queries, keys, temperature)
    save(
        "mocov3", queries=queries, keys=keys, temperature=torch.tensor(temperature), info_nce=loss,
        info_nce_gradient=differentiate(loss, queries)[0],
    )  # fmt: skip


def record_dino() -> None:
    """Two steps, so that the second has a centre that is not 0; two global and three local views."""
    loss_of = DINOLoss(output_dim=16, teacher_temp=0.05, student_temp=0.1, center_momentum=0.9)
    tensors = {}
    for step in range(2):
        target = draw(2, 4, 16, seed=5 + step, scale=0.3)
        context = draw(5, 4, 16, seed=7 + step, scale=0.3).requires_grad_()
        tensors |= {f"{step}.target": target, f"{step}.context": context, f"{step}.centre_before": loss_of.center.flatten()}
        loss = loss_of(list(target), list(context), teacher_temp=0.05)
        tensors |= {f"{step}.loss": loss, f"{step}.gradient": differentiate(loss, context)[0]}
        tensors[f"{step}.centre_after"] = loss_of.center.flatten()
    save("dino", **{name: value.clone() for name, value in tensors.items()})


def record_ibot() -> None:
    """Two steps of the loss on hidden patches, of which images have different numbers, and one has none."""
    loss_of = IBOTPatchLoss(output_dim=16, teacher_temp=0.05, student_temp=0.1, center_momentum=0.9)
    hidden = torch.rand(4, 3, 3, generator=torch.Generator().manual_seed(9)) < 0.4
    hidden[2] = False
    tensors: dict[str, torch.Tensor] = {"hidden": hidden}
    for step in range(2):
        target = draw(4, 9, 16, seed=10 + step, scale=0.3)
        context = draw(4, 9, 16, seed=12 + step, scale=0.3).requires_grad_()
        flat = hidden.flatten(1)
        tensors |= {f"{step}.target": target, f"{step}.context": context}
        tensors[f"{step}.centre_before"] = loss_of.center.value.flatten()
        loss = loss_of(target[flat], context[flat], hidden, teacher_temp=0.05)
        tensors |= {f"{step}.loss": loss, f"{step}.gradient": differentiate(loss, context)[0]}
        tensors[f"{step}.centre_after_of_hidden"] = loss_of.center.value.flatten()
    save("ibot", **{name: value.clone() for name, value in tensors.items()})


def record_lejepa(spt: Path) -> None:
    """Both terms, each with its gradient; four views of which the first two are large, as one set of vectors for SIGReg."""
    file = spt / "methods/lejepa.py"
    vectors = draw(4, 6, 12, seed=14).requires_grad_()
    directions = functional.normalize(draw(12, 5, seed=15), dim=0)
    statistic = take_out(file, "EppsPulley")()
    _, disagreement, spread = take_out(file, "LeJEPA")._compute_loss(vectors, 2, lambda x: statistic(x @ directions).mean(), 1.0)
    save(
        "lejepa", vectors=vectors, directions=directions, disagreement=disagreement, spread=spread,
        disagreement_gradient=differentiate(disagreement, vectors)[0], spread_gradient=differentiate(spread, vectors)[0],
    )  # fmt: skip


if __name__ == "__main__":
    package = Path(sys.argv[1]) / "stable_pretraining"
    FOLDER.mkdir(exist_ok=True)
    record_byol(package)
    record_mocov3(package)
    record_dino()
    record_ibot()
    record_lejepa(package)
