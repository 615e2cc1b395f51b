"""Detectors on an encoder: torchvision's FCOS and Mask R-CNN over the simple feature pyramid.

Sources: Tian et al. 2019, FCOS (arXiv 1904.01355), boxes alone and the cheap one: no map finer than half a patch. He et al. 2017,
Mask R-CNN (arXiv 1703.06870), boxes and masks, on the four maps of ViTDet (arXiv 2203.16527) and, for proposals, one coarser.
Heads, losses, matching and suppression are torchvision's, with its defaults; what is set here is what depends on the encoder:
channels, statistics, strides. Mask R-CNN's heads are as wide as the channels say: at 256, torchvision's own. An anchor's side is
its map's stride for FCOS, and eight times that for Mask R-CNN, as in FPN (Lin et al. 2017, arXiv 1612.03144).

Images of any sizes come as they are, are normalised with the encoder's own statistics, resized so that the shorter side is
`shorter_px` unless the longer would exceed `longer_px`, and padded with the mean colour to a common size. Padding takes part in
attention, so `predict` keeps images of different sizes apart. Labels count from 0 everywhere outside this file. torchvision is
the extra [detection]: nothing that a plain install needs imports this module.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from openjepa.engine.optim import WeightGroup
from openjepa.nn.encoder import Encoder
from openjepa.nn.pyramid import SCALES, PyramidBackbone

try:
    from torchvision.models.detection import FCOS, MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.ops import MultiScaleRoIAlign
    from torchvision.ops.poolers import LevelMapper
except ImportError:
    raise ValueError("detectors need torchvision: pip install 'openjepa[detection]'") from None

Kind = Literal["fcos", "mask_rcnn"]

FCOS_SCALES = (2.0, 1.0, 0.5)
ASPECTS = (0.5, 1.0, 2.0)
ANCHOR_STRIDES = 8  # of Mask R-CNN: an anchor's side
CANONICAL_PX, CANONICAL_LEVEL = 224, 4  # a box so large is pooled at stride 2**4 (arXiv 1612.03144, equation 1)
BOX_CELLS, MASK_CELLS = 7, 14  # a side, of what is pooled for a box and for its mask
LEAST_SCORE = 0.05
FCOS_GROUP = 32  # channels come in groups of so many, for FCOS's GroupNorm
MASK_THRESHOLD = 0.5


class Target(NamedTuple):
    """What is in an image: boxes (left, top, right, bottom) in its pixels, labels from 0, masks for Mask R-CNN. No crowds."""

    boxes: Float[Tensor, "objects 4"]
    labels: Int64[Tensor, " objects"]
    masks: Bool[Tensor, "objects height width"] | None = None


class Found(NamedTuple):
    """What a detector says of an image, the surest first: boxes in its pixels, labels from 0, scores in [0, 1], masks if any."""

    boxes: Float[Tensor, "objects 4"]
    labels: Int64[Tensor, " objects"]
    scores: Float[Tensor, " objects"]
    masks: Bool[Tensor, "objects height width"] | None = None


class Detector(nn.Module):
    """An encoder, its pyramid and a torchvision detector; `build_detector` makes one."""

    def __init__(self, model: nn.Module, backbone: PyramidBackbone, kind: Kind, num_classes: int) -> None:
        super().__init__()
        self.model: Any = model
        self.kind, self.num_classes, self.channels = kind, num_classes, backbone.vit.channels
        self.first_label = 1 if kind == "mask_rcnn" else 0  # Mask R-CNN's 0 is background

    @property
    def backbone(self) -> PyramidBackbone:
        """The ViT and its pyramid."""
        found: PyramidBackbone = self.model.backbone
        return found

    def weight_groups(self) -> list[WeightGroup]:
        """What is trained: the ViT by layer, unless it is frozen, and all else, for optimizers with layer-wise rates."""
        vit = self.backbone.vit
        of_vit = set(vit.parameters())
        rest = [weight for weight in self.parameters() if weight.requires_grad and weight not in of_vit]
        return ([] if self.backbone.frozen else vit.weight_groups()) + [WeightGroup(rest)]

    def forward(self, images: Sequence[Tensor], targets: Sequence[Target] | None = None) -> Any:
        """In train mode the losses by name, of images (C, H, W) with targets; in eval mode a Found for each image."""
        wrong = [image.shape[0] for image in images if image.shape[0] != self.channels]
        if wrong:
            raise ValueError(f"an image has {wrong[0]} channels, the detector takes {self.channels}")
        scaled = [image.float() / 255 if image.dtype == torch.uint8 else image for image in images]
        if self.training:
            assert targets is not None and len(targets) == len(images)
            return self.model(scaled, [self._to_torchvision(target) for target in targets])
        return [self._from_torchvision(found) for found in self.model(scaled)]

    def _to_torchvision(self, target: Target) -> dict[str, Tensor]:
        found = {"boxes": target.boxes, "labels": target.labels + self.first_label}
        if self.kind == "mask_rcnn":
            assert target.masks is not None
            found["masks"] = target.masks.to(torch.uint8)
        return found

    def _from_torchvision(self, found: Mapping[str, Tensor]) -> Found:
        boxes = found["boxes"]
        kept_mask = (boxes[:, :2] < boxes[:, 2:]).all(1)  # FCOS also gives boxes that the image's edge has cut to nothing
        masks = (found["masks"][:, 0] >= MASK_THRESHOLD)[kept_mask] if "masks" in found else None
        return Found(boxes[kept_mask], (found["labels"] - self.first_label)[kept_mask], found["scores"][kept_mask], masks)


def build_detector(
    encoder: Encoder,
    kind: Kind,
    num_classes: int,
    *,
    channels: int = 256,
    shorter_px: int | None = None,
    longer_px: int | None = None,
    boxes_per_image: int = 512,
    frozen: bool = False,
) -> Detector:
    """A detector of num_classes kinds of objects over an encoder, whose weights it shares; heads are new, from torch's generator.

    shorter_px: of images after resizing; the encoder's own shorter side if None. longer_px: twice that if None.
    boxes_per_image: that Mask R-CNN's heads learn from, a quarter of them with objects; they take most of the time of small
    encoders. frozen: the encoder is not trained. ValueError for patch sizes that the maps' strides cannot be made of.
    """
    vit = encoder.vit
    scales = SCALES if kind == "mask_rcnn" else FCOS_SCALES
    if vit.patch_size % max(scales):
        raise ValueError(
            f"{kind} needs a patch size that {max(scales):.0f} divides, the encoder's is {vit.patch_size} px"
            + ("; fcos takes even ones" if kind == "mask_rcnn" and vit.patch_size % 2 == 0 else "")
        )
    if kind == "fcos" and channels % FCOS_GROUP:
        raise ValueError(f"fcos takes a multiple of {FCOS_GROUP} channels, not {channels}")
    if frozen:
        vit.requires_grad_(False)
    backbone = PyramidBackbone(vit, channels, scales, frozen=frozen, with_coarser=kind == "mask_rcnn")
    shorter = shorter_px or min(encoder.size)
    options = {
        "min_size": shorter, "max_size": longer_px or 2 * shorter, "size_divisible": 2 * vit.patch_size,  # so that maps fit
        "image_mean": encoder.mean.flatten().tolist(), "image_std": encoder.std.flatten().tolist(),
    }  # fmt: skip
    if kind == "mask_rcnn":
        model = _make_mask_rcnn(backbone, num_classes, options | {"box_batch_size_per_image": boxes_per_image})
    else:
        model = _make_fcos(backbone, num_classes, options)
    return Detector(model, backbone, kind, num_classes)


def detector_loss(
    detector: Detector, images: Sequence[Tensor], targets: Sequence[Target]
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The sum of a detector's losses on images (C, H, W), and each by name, detached. The detector must be in train mode.

    Mask R-CNN draws the boxes that it learns from with torch's generator: seed it for a repeatable step.
    """
    assert detector.training
    losses: dict[str, Tensor] = detector(images, targets)
    return torch.stack(list(losses.values())).sum(), {name: loss.detach() for name, loss in losses.items()}


@torch.inference_mode()
def predict(detector: Detector, images: Sequence[Tensor], batch_size: int = 8) -> list[Found]:
    """What a detector finds in images (C, H, W), on the CPU; of any sizes, of which only equal ones share a batch."""
    device = next(detector.parameters()).device
    was_training = detector.training
    detector.eval()
    try:
        found: list[Found] = []
        for _, group in itertools.groupby(images, key=lambda image: image.shape):
            same = list(group)
            for first in range(0, len(same), batch_size):
                found += detector([image.to(device) for image in same[first : first + batch_size]])
    finally:
        detector.train(was_training)
    return [Found(*(None if part is None else part.cpu() for part in one)) for one in found]  # type: ignore[arg-type]


def _make_fcos(backbone: PyramidBackbone, num_classes: int, options: dict[str, Any]) -> nn.Module:
    sizes = tuple((int(stride),) for stride in backbone.stride_px)
    anchors = AnchorGenerator(sizes, ((1.0,),) * len(sizes))
    model: nn.Module = FCOS(backbone, num_classes, anchor_generator=anchors, score_thresh=LEAST_SCORE, **options)
    return model


def _make_mask_rcnn(backbone: PyramidBackbone, num_classes: int, options: dict[str, Any]) -> nn.Module:
    strides = [int(stride) for stride in backbone.stride_px]
    sizes = tuple((ANCHOR_STRIDES * stride,) for stride in [*strides, 2 * strides[-1]])
    channels, num_labels = backbone.out_channels, num_classes + 1
    model: nn.Module = MaskRCNN(
        backbone,
        box_head=TwoMLPHead(channels * BOX_CELLS**2, 4 * channels), box_predictor=FastRCNNPredictor(4 * channels, num_labels),
        mask_head=MaskRCNNHeads(channels, (channels,) * 4, 1), mask_predictor=MaskRCNNPredictor(channels, channels, num_labels),
        rpn_anchor_generator=AnchorGenerator(sizes, (ASPECTS,) * len(sizes)),
        box_roi_pool=_make_pooler(strides, BOX_CELLS), mask_roi_pool=_make_pooler(strides, MASK_CELLS), **options,
    )  # fmt: skip
    return model


def _make_pooler(strides: list[int], cells: int) -> MultiScaleRoIAlign:
    """Cuts boxes out of the maps. Its scales are said and not guessed: torchvision would round them to powers of two."""
    pooler = MultiScaleRoIAlign([str(number) for number in range(len(strides))], cells, sampling_ratio=2)
    pooler.scales = [1 / stride for stride in strides]
    pooler.map_levels = LevelMapper(0, len(strides) - 1, CANONICAL_PX, CANONICAL_LEVEL - math.log2(strides[0]))
    return pooler
