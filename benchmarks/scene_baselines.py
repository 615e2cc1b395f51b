"""How hard are the scenes? Accuracy of raw pixels, of untrained encoders, and of two small networks trained with labels.

    python benchmarks/scene_baselines.py SCENES [--epochs 8] [--encoder-epochs 25] [--seeds 3]

prints one JSON line; SCENES is what `openjepa make-scenes` wrote. Pixels and encoders are measured by the evaluations that users
run, the linear probe of pixels at half the size, where it takes seconds. Four convolutions trained with labels and flips show
that the class can be learned from so many images. The encoder of `--recipe auto` trained with labels, the mean over its patches
in front of one linear layer, shows how much of that a small ViT gets in so short a time when it is told what to look for.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from openjepa.data.sources import ImageSource, open_source
from openjepa.evals.features import ImageEncoder, RawPixels, extract_features
from openjepa.evals.knn import score_knn
from openjepa.evals.linear import score_linear
from openjepa.nn.encoder import Encoder
from openjepa.nn.vit import VisionTransformer

PATCH_SIZE, WIDTH, DEPTH, HEADS = 8, 192, 4, 3  # as --recipe auto has them
PROBES = {"knn": score_knn, "linear": score_linear}
BATCH = 64


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--encoder-epochs", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    train, test = (open_source(str(options.scenes / split), channels=3) for split in ("train", "test"))
    size = train.load(0).shape[:2]
    result: dict[str, object] = {
        "benchmark": "scene_baselines",
        "num_train": len(train),
        "num_test": len(test),
        "chance": 1 / len(train.classes),
        "pixels": probe(RawPixels(size, channels=3), train, test, ["knn"]),
        "pixels_half_size": probe(RawPixels((size[0] // 2, size[1] // 2), channels=3), train, test, ["knn", "linear"]),
    }
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        vit = VisionTransformer(size, PATCH_SIZE, 3, (WIDTH, DEPTH, HEADS, 4.0))
        result[f"random_encoder_seed_{seed}"] = probe(Encoder(vit, [0.5] * 3, [0.25] * 3), train, test, ["knn", "linear"])
    torch.manual_seed(0)
    convolutions = nn.Sequential(
        *_convolution(3, 32, stride=2),
        *_convolution(32, 64), nn.MaxPool2d(2),
        *_convolution(64, 128), nn.MaxPool2d(2),
        *_convolution(128, 128), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.3), nn.LazyLinear(len(train.classes)),
    )  # fmt: skip
    vit = VisionTransformer(size, PATCH_SIZE, 3, (WIDTH, DEPTH, HEADS, 4.0))
    encoder = nn.Sequential(vit, MeanOverPatches(), nn.Linear(WIDTH, len(train.classes)))
    for name, network, epochs, max_lr in (
        ("supervised", convolutions, options.epochs, 3e-3),
        ("supervised_encoder", encoder, options.encoder_epochs, 1e-3),
    ):
        began = time.perf_counter()
        result[name] = supervise(network, train, test, epochs, max_lr)
        result[f"{name}_s"] = round(time.perf_counter() - began, 1)
    print(json.dumps(result))


class MeanOverPatches(nn.Module):
    """(B, N, D) to (B, D)."""

    def forward(self, tokens: Tensor) -> Tensor:
        """The mean over patches."""
        return tokens.mean(1)


def probe(encoder: ImageEncoder, train: ImageSource, test: ImageSource, protocols: list[str]) -> dict[str, float]:
    """Accuracy by each protocol."""
    features = [extract_features(encoder, source) for source in (train, test)]
    return {name: round(PROBES[name](*features, 0).score, 4) for name in protocols}


def supervise(network: nn.Module, train: ImageSource, test: ImageSource, epochs: int, max_lr: float) -> float:
    """Test accuracy of a network after so many passes over the labelled training images."""
    torch.manual_seed(0)
    images, labels = load_all(train)
    network(images[:2])  # gives the last layer its width
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=max_lr, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(BATCH):
            if len(chosen) < BATCH:
                continue
            batch = images[chosen]
            batch = batch.flip(3) if torch.rand(()) < 0.5 else batch
            loss = functional.cross_entropy(network(batch), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    images, labels = load_all(test)
    with torch.inference_mode():
        predicted = torch.cat([network(batch).argmax(1) for batch in images.split(256)])
    return round(float((predicted == labels).double().mean()), 4)


def _convolution(before: int, after: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]


def load_all(source: ImageSource) -> tuple[Tensor, Tensor]:
    """All images (N, 3, H, W), about -1 to 1, and labels."""
    assert source.labels is not None
    images = torch.stack([torch.from_numpy(source.load(index)) for index in range(len(source))])
    return images.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous(), torch.from_numpy(source.labels)


if __name__ == "__main__":
    main()
