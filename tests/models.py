"""Small methods, and batches of one view, for tests that ask a method something."""

from __future__ import annotations

import torch

from openjepa.data.batch import BatchObjects, one_view
from openjepa.masks import Masks, sample_masks
from openjepa.methods.make import make_method
from openjepa.nn.objects import Target
from openjepa.recipe.check import build_recipe
from openjepa.recipe.edit import nest
from openjepa.recipe.sections import Recipe

SMALL = {
    "data.image_size": 32, "data.channels": 1, "data.batch_size": 8, "data.workers": 0, "data.normalization": "measured",
    "model.width": 32, "model.depth": 2, "model.heads": 2, "model.patch_size": 4,
}  # fmt: skip
SMALL_PREDICTOR = {"method.predictor.width": 16, "method.predictor.depth": 2, "method.predictor.heads": 2}
SMALL_SECTIONS = {  # of a method, beside the small encoder
    "ijepa": SMALL_PREDICTOR,
    "mae": SMALL_PREDICTOR,
    "byol": {"method.projector_hidden": 16, "method.projector_width": 8},
    "mocov3": {"method.projector_hidden": 16, "method.projector_width": 8},
}
SMALL_SECTIONS["dino"] = {
    "method.projector.hidden": 16, "method.projector.bottleneck": 8, "method.projector.prototypes": 24, "views.local.size": 16,
    "views.local.count": 2,
}  # fmt: skip
SMALL_SECTIONS["ibot"] = SMALL_SECTIONS["dino"]
SMALL_SECTIONS["lejepa"] = {
    "method.projector_hidden": 16, "method.projector_width": 8, "method.directions": 8, "views.local.size": 16,
    "views.local.count": 2,
}  # fmt: skip
SMALL_SECTIONS["data2vec"] = {
    "method.decoder.width": 8, "method.decoder.depth": 1, "method.decoder.groups": 4, "method.averaged_layers": 1,
    "views.main.mask.per_view": 3,
}  # fmt: skip
SMALL_SECTIONS["detection"] = {"method.channels": 32}
RATES = {"momentum": 0.99, "teacher_temperature": 0.05, "last_layer": 1.0}


def small_recipe(method: str = "ijepa", **changes: object) -> Recipe:
    """A recipe of a method with a small encoder; changes by dotted key, written with __ for a dot: optim__lr=1e-3."""
    values = SMALL | {"method.name": method} | SMALL_SECTIONS.get(method, {})
    return build_recipe(nest(values | {key.replace("__", "."): value for key, value in changes.items()}))


def small_method(method: str = "ijepa", seed: int | None = None, **changes: object):
    """The small recipe's method with fresh weights, from torch's generator, or from a seed."""
    if seed is not None:
        torch.manual_seed(seed)
    return make_method(small_recipe(method, **changes), num_classes=5)


def draw_objects(num_images: int, size: tuple[int, int], num_classes: int = 5, masks: bool = False) -> BatchObjects:
    """One to three objects an image, in boxes of an eighth to a half of its sides; the images fill their views."""
    height, width = size
    targets = []
    for number in range(num_images):
        count = 1 + number % 3  # no two parts of a batch hold as many
        corner = torch.rand(count, 2, generator=torch.Generator().manual_seed(number)) * torch.tensor([width / 2, height / 2])
        extent = torch.tensor([width / (2 + 3 * (number % 2)), height / 3]).expand(count, 2)
        boxes = torch.cat([corner, corner + extent], 1)
        labels = (torch.arange(count) + number) % num_classes
        shapes = torch.zeros(count, height, width, dtype=torch.bool)
        for shape, (left, top, right, bottom) in zip(shapes, boxes.long().tolist(), strict=True):
            shape[top:bottom, left:right] = True
        targets.append(Target(boxes, labels, shapes if masks else None))
    return BatchObjects.gather(targets, [size] * num_images, size)


def draw_masks(method, num_images: int, seed: int = 0, step: int = 0, mask=None) -> Masks:
    """Masks for a method's grid, by the settings given, or the paper's."""
    settings = mask or small_recipe().views["main"].mask
    return sample_masks(settings, method.context_encoder.grid, num_images, seed=seed, step=step)


def call(method, images: torch.Tensor, masks: Masks | None = None, labels: torch.Tensor | None = None):
    """(loss, metrics) of normalised images with one view each."""
    return method(one_view(images, masks, labels), RATES)
