"""A detector: what annotated objects give, to a fresh encoder or, with --init, to a pretrained one, trained or frozen.

Source: ViTDet (Li et al. 2022, arXiv 2203.16527): FCOS (arXiv 1904.01355) or Mask R-CNN (arXiv 1703.06870) on a simple feature
pyramid over a plain ViT, positions resized to the detection size. The pyramid is nn/pyramid, heads and losses are torchvision's
(nn/detector), image and objects are drawn by data/object_views. The loss is the plain sum of torchvision's. Mask R-CNN draws the
boxes that it learns from with torch's generator, which the trainer seeds by the step. Deviations from the paper: nn/pyramid's;
FCOS beside Mask R-CNN. Left out: cascades. tests/cli/test_detection.py resumes it bit by bit.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from openjepa.data.batch import MAIN, Batch
from openjepa.methods.contract import Method, Metrics, Rates
from openjepa.nn.detector import build_on_vit, detector_loss
from openjepa.nn.vit import VisionTransformer
from openjepa.recipe import methods


class Detection(Method):
    """Encoder and a detector on its patches. The detector takes images as the method does: normalised already."""

    def __init__(self, encoder: VisionTransformer, settings: methods.Detection, num_classes: int | None) -> None:
        assert num_classes is not None, "a detector is made for a number of classes"
        super().__init__(encoder, settings)
        self.settings, self.num_classes = settings, num_classes
        self.detector = build_on_vit(
            encoder, settings.detector, num_classes, channels=settings.channels, boxes_per_image=settings.boxes_per_image,
            frozen=settings.frozen, has_sized_images=True,
        )  # fmt: skip
        self.detector.backbone.release_vit()  # it is this method's context encoder

    def forward(self, batch: Batch, rates: Rates) -> tuple[Float[Tensor, ""], Metrics]:
        """Loss and detached metrics of a batch with objects: torchvision's losses by name."""
        assert batch.objects is not None, "a detector is given objects"
        images = [
            image[:, :height, :width] for image, (height, width) in zip(batch.views[MAIN].flat, batch.objects.sizes, strict=True)
        ]
        loss, parts = detector_loss(self.detector, images, batch.objects.split())
        return loss, {"loss": loss.detach(), **parts}
