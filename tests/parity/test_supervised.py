"""A classifier's loss in float64, from the pixels on, one image at a time."""

import math

import pytest
import torch

from openjepa.data.batch import Batch, Views
from tests.parity.networks import draw, make_double, part, see, softmax

CLASSES, SMOOTHING = 5, 0.2  # of small_method


def test_the_loss_is_cross_entropy_with_smoothed_labels():
    """Szegedy et al. 2016, section 7: a share of the target goes to all classes in equal parts."""
    method = make_double("supervised", method__label_smoothing=SMOOTHING)
    images, labels, total = draw(4, 1, 16, 16, seed=1), [3, 0, 3, 1], 0.0
    weights = part(method, "classifier")
    for image, label in zip(images, labels, strict=True):
        scores = weights["weight"] @ see(image, part(method, "context_encoder")).mean(0) + weights["bias"]
        for place, share in enumerate(softmax(scores.tolist())):
            total -= (SMOOTHING / CLASSES + (1 - SMOOTHING) * (place == label)) * math.log(share) / len(images)
    batch = Batch(0, {"main": Views(images[:, None])}, torch.arange(4), torch.tensor(labels))
    assert float(method(batch, {})[0].detach()) == pytest.approx(total, rel=1e-9)
