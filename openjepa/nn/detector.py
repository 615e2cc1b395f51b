"""Detectors on an encoder: torchvision's FCOS and Mask R-CNN over the simple feature pyramid.

Sources: Tian et al. 2019, FCOS (arXiv 1904.01355), boxes alone and the cheap one: no map finer than half a patch. He et al. 2017,
Mask R-CNN (arXiv 1703.06870), boxes and masks, on the four maps of ViTDet (arXiv 2203.16527) and, for proposals, one coarser.
Heads, losses, matching and suppression are torchvision's, with its defaults; what is set here is what depends on the encoder:
channels, statistics, strides. Mask R-CNN's heads are as wide as the channels say: at 256, torchvision's own. An anchor's side is
its map's stride for FCOS, and eight times that for Mask R-CNN, as in FPN (Lin et al. 2017, arXiv 1612.03144).

Images of any sizes come as they are, are normalised with the encoder's own statistics, fitted into a canvas of one size with
antialiasing, and padded below and to the right with the mean colour. So a position of the encoder always means the same place of
the canvas, in training and after. Padding takes part in attention. Labels count from 0 everywhere outside this file. Under
autocast the ViT alone computes in reduced precision: boxes, losses and suppression are float32. torchvision is the extra
[detection]: nothing that a plain install needs imports this module.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import interpolate

from openjepa.engine.optim import WeightGroup
from openjepa.engine.precision import full_precision
from openjepa.nn.encoder import Encoder
from openjepa.nn.objects import Target as Target
from openjepa.nn.objects import fit_size
from openjepa.nn.pyramid import SCALES, PyramidBackbone
from openjepa.nn.vit import VisionTransformer

try:
    from torchvision.models.detection import FCOS, MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
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


class Found(NamedTuple):
    """What a detector says of an image, the surest first: boxes in its pixels, labels from 0, scores in [0, 1], masks if any."""

    boxes: Float[Tensor, "objects 4"]
    labels: Int64[Tensor, " objects"]
    scores: Float[Tensor, " objects"]
    masks: Bool[Tensor, "objects height width"] | None = None

    def take(self, chosen: Tensor) -> Found:
        """Some of them, by a mask or by number."""
        masks = None if self.masks is None else self.masks[chosen]
        return Found(self.boxes[chosen], self.labels[chosen], self.scores[chosen], masks)

    def to_numpy(self) -> tuple[Any, Any, Any, Any]:
        """Boxes, labels, scores, and masks or None, as arrays."""
        masks = None if self.masks is None else self.masks.numpy()
        return self.boxes.numpy(), self.labels.numpy(), self.scores.numpy(), masks


class Canvas(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision has no types
    """How images reach a detector: normalised, fitted into a canvas of a height and width, padded to its size.

    has_sized_images: those to train on have their size already, at most the canvas's, and are only padded.
    """

    def __init__(
        self, size: tuple[int, int], multiple: int, mean: list[float], std: list[float], *, has_sized_images: bool
    ) -> None:
        super().__init__(min(size), max(size), mean, std)
        self.size, self.has_sized_images = size, has_sized_images
        self.padded = tuple(-(-side // multiple) * multiple for side in size)  # so that maps of all strides fit

    def resize(
        self, image: Float[Tensor, "channels _ _"], target: dict[str, Tensor] | None = None
    ) -> tuple[Float[Tensor, "channels _ _"], dict[str, Tensor] | None]:
        """The image as large as fits the canvas, and what is in it."""
        height, width = image.shape[-2:]
        size = fit_size((height, width), self.size)
        if size == (height, width) or (self.training and self.has_sized_images):
            return image, target
        image = interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        if target is not None:
            target = target | {"boxes": resize_boxes(target["boxes"], (height, width), size)}
            if "masks" in target:
                target["masks"] = interpolate(target["masks"][:, None].float(), size)[:, 0].byte()
        return image, target

    def batch_images(
        self, images: list[Float[Tensor, "channels _ _"]], size_divisible: int = 1
    ) -> Float[Tensor, "batch channels height width"]:
        """All images in the upper left of a canvas of 0, the mean colour."""
        batch = images[0].new_zeros(len(images), images[0].shape[0], *self.padded)
        for place, image in zip(batch, images, strict=True):
            place[:, : image.shape[1], : image.shape[2]] = image
        return batch


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

    def normalise_with(self, mean: list[float], std: list[float]) -> None:
        """Take images in [0, 1] with other statistics, one value a channel."""
        self.model.transform.image_mean, self.model.transform.image_std = mean, std

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
        device = images[0].device
        is_reduced = torch.is_autocast_enabled(device.type)
        self.backbone.vit_dtype = torch.get_autocast_dtype(device.type) if is_reduced else None
        with full_precision(device):
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
    size: tuple[int, int] | None = None,
    boxes_per_image: int = 512,
    frozen: bool = False,
) -> Detector:
    """A detector of num_classes kinds of objects over an encoder, whose weights it shares; heads are new, from torch's generator.

    size: of the canvas that images are fitted into, height and width in pixels; the encoder's own if None. boxes_per_image: that
    Mask R-CNN's heads learn from, a quarter of them with objects; they take most of the time of small encoders. frozen: the
    encoder is not trained. ValueError for patch sizes that the maps' strides cannot be made of.
    """
    detector = build_on_vit(
        encoder.vit, kind, num_classes, channels=channels, size=size, boxes_per_image=boxes_per_image, frozen=frozen
    )
    detector.normalise_with(encoder.mean.flatten().tolist(), encoder.std.flatten().tolist())
    return detector


def build_on_vit(
    vit: VisionTransformer,
    kind: Kind,
    num_classes: int,
    *,
    channels: int,
    size: tuple[int, int] | None = None,
    boxes_per_image: int,
    frozen: bool,
    has_sized_images: bool = False,
) -> Detector:
    """As build_detector, for images that are normalised already. has_sized_images: see Canvas."""
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
    model = _make_fcos(backbone, num_classes) if kind == "fcos" else _make_mask_rcnn(backbone, num_classes, boxes_per_image)
    mean, std = [0.0] * vit.channels, [1.0] * vit.channels
    model.transform = Canvas(size or vit.size, 2 * vit.patch_size, mean, std, has_sized_images=has_sized_images)
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


def _make_fcos(backbone: PyramidBackbone, num_classes: int) -> nn.Module:
    sizes = tuple((int(stride),) for stride in backbone.stride_px)
    anchors = _make_anchors(sizes, (1.0,))
    model: nn.Module = FCOS(backbone, num_classes, anchor_generator=anchors, score_thresh=LEAST_SCORE)
    return model


def _make_anchors(sizes: tuple[tuple[int], ...], aspects: tuple[float, ...]) -> AnchorGenerator:
    """On the CPU, whatever the rest is made on: anchors are no weights, which a checkpoint would fill in."""
    with torch.device("cpu"):
        return AnchorGenerator(sizes, (aspects,) * len(sizes))


def _make_mask_rcnn(backbone: PyramidBackbone, num_classes: int, boxes_per_image: int) -> nn.Module:
    strides = [int(stride) for stride in backbone.stride_px]
    sizes = tuple((ANCHOR_STRIDES * stride,) for stride in [*strides, 2 * strides[-1]])
    channels, num_labels = backbone.out_channels, num_classes + 1
    model: nn.Module = MaskRCNN(
        backbone,
        box_head=TwoMLPHead(channels * BOX_CELLS**2, 4 * channels), box_predictor=FastRCNNPredictor(4 * channels, num_labels),
        mask_head=MaskRCNNHeads(channels, (channels,) * 4, 1), mask_predictor=MaskRCNNPredictor(channels, channels, num_labels),
        rpn_anchor_generator=_make_anchors(sizes, ASPECTS), box_batch_size_per_image=boxes_per_image,
        box_roi_pool=_make_pooler(strides, BOX_CELLS), mask_roi_pool=_make_pooler(strides, MASK_CELLS),
    )  # fmt: skip
    return model


def _make_pooler(strides: list[int], cells: int) -> MultiScaleRoIAlign:
    """Cuts boxes out of the maps. Its scales are said and not guessed: torchvision would round them to powers of two."""
    pooler = MultiScaleRoIAlign([str(number) for number in range(len(strides))], cells, sampling_ratio=2)
    pooler.scales = [1 / stride for stride in strides]
    pooler.map_levels = LevelMapper(0, len(strides) - 1, CANONICAL_PX, CANONICAL_LEVEL - math.log2(strides[0]))
    return pooler
