"""A trained classifier on test images: the last step of fine-tuning, and what `openjepa predict` asks.

It is called like an encoder whose pooled feature is a score for each class, so that images reach it by the code that all
evaluations share. Classes are matched by name, as everywhere (evals/labels.py).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from openjepa.data.sources import ImageSource
from openjepa.engine.precision import pick_device
from openjepa.evals.features import Features, extract_features
from openjepa.evals.labels import match_names
from openjepa.evals.outcome import Outcome, score_share
from openjepa.methods.supervised import Supervised
from openjepa.nn.encoder import Encoder, EncoderOutput
from openjepa.weights.load import find_checkpoint, load_method

TOP = 5


class Classifier(nn.Module):
    """Encoder and classifier: images as Encoder takes them -> class scores (logits) in place of pooled features."""

    def __init__(self, encoder: Encoder, head: nn.Module, classes: list[str]) -> None:
        super().__init__()
        self.encoder, self.head, self.classes = encoder, head, classes
        self.size, self.channels = encoder.size, encoder.channels

    def forward(self, images: Tensor) -> EncoderOutput:
        """Scores (B, classes) before the softmax, and the encoder's patch features."""
        pooled, patches = self.encoder(images)
        return EncoderOutput(self.head(pooled), patches)


def load_classifier(run: str | Path, device: str = "auto") -> Classifier:
    """The classifier of a run folder or checkpoint file. ValueError if it holds none."""
    checkpoint = find_checkpoint(run)
    method, _, mean, std, classes = load_method(checkpoint)
    if not isinstance(method, Supervised) or classes is None:
        raise ValueError(
            f"{run} holds no classifier; train one: openjepa finetune {run} --train DATA --test DATA --out runs/tuned"
        )
    return Classifier(Encoder(method.context_encoder, mean, std), method.classifier, classes).to(pick_device(device)).eval()


def score_classifier(
    classifier: Classifier, test: ImageSource, num_train: int, seed: int, device: str | torch.device = "cpu"
) -> tuple[Outcome, list[tuple[str, str]]]:
    """Accuracy on labelled test images, on the TOP best classes where there are more, and the mean over classes.

    Beside it (path, reason) of the images that could not be read. ValueError if the test images have no labels, or a class that
    the classifier does not know.
    """
    found = extract_features(classifier, test, device=device, label=f"classification: {test.spec}")
    return _score(found, classifier.classes, num_train, seed), found.skipped


def _score(found: Features, classes: list[str], num_train: int, seed: int) -> Outcome:
    labels = torch.from_numpy(match_names(found, classes))
    logits = torch.from_numpy(found.rows)
    predictions = logits.argmax(1)
    right = predictions == labels
    scores = {"accuracy": score_share(int(right.sum()), len(labels))}
    per_class = [right[labels == number].float().mean() for number in labels.unique()]
    scores["balanced_accuracy"] = scores["accuracy"]._replace(value=float(torch.stack(per_class).mean()), interval=None)
    if len(classes) > TOP:
        best = logits.topk(TOP, dim=1).indices
        scores[f"top_{TOP}_accuracy"] = score_share(int((best == labels[:, None]).any(1).sum()), len(labels))
    warnings = [f"{len(found.skipped)} images of {found.spec} could not be read"] if found.skipped else []
    return Outcome(
        task="classification", scores=scores, main="accuracy", num_train=num_train, num_test=len(labels),
        num_classes=len(classes), seed=seed, hyper_parameters={}, warnings=warnings,
        predictions=predictions.numpy(), classes=classes,
    )  # fmt: skip
