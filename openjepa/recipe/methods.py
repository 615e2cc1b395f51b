"""One section a method: its own targets, predictor, momentum and regulariser, and the groups of views that it takes.

A key of another method is an unknown key. A new method is a section with a row in SECTIONS, and the file of its name in
openjepa/methods with a class of the section's name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union

from pydantic import Discriminator, Field, Tag, model_validator

from openjepa.recipe.base import NotNegative, Probability, Section, check_width
from openjepa.recipe.views import Mask, ViewGroup


class MethodSection(Section):
    """What every method's section has."""

    name: str
    VIEWS: ClassVar[dict[str, ViewGroup]]
    """The groups of views that the method takes, with their defaults."""
    NEEDS_LABELS: ClassVar[bool] = False
    """Whether the training images need class labels."""

    @property
    def of_whole_batch(self) -> str | None:
        """What the loss computes over all images of a batch, as `method.key value`; None: the loss adds up over its parts."""
        return None

    @property
    def compares_images(self) -> str | None:
        """What the loss computes between one row of each image, as `method.key value`, for which one image is too few."""
        return None

    def check_patch(self, num_values: int) -> None:
        """ValueError if the method cannot work on patches of num_values values (pixels times channels)."""


class Predictor(Section):
    width: int = Field(default=384, ge=4)
    """Token width of the predictor, MAE's decoder."""
    depth: int = Field(default=6, ge=1)
    """Layers."""
    heads: int = Field(default=12, ge=1)
    """Attention heads."""
    positions: Literal["own", "projected"] = "own"
    """own: a sine-cosine table of the predictor's width; projected: the encoder's table through the input projection."""

    @model_validator(mode="after")
    def _has_whole_heads(self) -> Predictor:
        check_width("width", self.width, self.heads)
        return self


class Momentum(Section):
    schedule: Literal["cosine", "linear", "fixed"] = "linear"
    """How the target encoder's momentum goes from start to end; fixed stays at start."""
    start: Probability = 0.996
    """Momentum at the first step."""
    end: Probability = 1.0
    """Momentum at the last step."""

    @model_validator(mode="after")
    def _rises(self) -> Momentum:
        if self.schedule != "fixed" and self.end < self.start:
            raise ValueError(f"end {self.end:g} is below start {self.start:g}: momentum rises, or stays with schedule fixed")
        return self


class Regularizer(Section):
    name: Literal["vicreg", "sigreg"]
    """Anti-collapse term: VICReg (2105.04906) or SIGReg (2511.08544)."""
    weight: float = Field(gt=0)
    """Its weight beside the prediction loss."""
    acts_on: Literal["pooled", "tokens"] = "tokens"
    """What it acts on: each image's mean context token, or its context tokens."""


class Masked(MethodSection):
    """What the methods share that predict hidden patches from visible ones."""

    VIEWS: ClassVar[dict[str, ViewGroup]] = {"main": ViewGroup(mask=Mask())}

    predictor: Predictor = Predictor()
    predict: Literal["joint", "per_block"] = "per_block"
    """Predict all target blocks in one pass, or each in a pass of its own."""
    loss: Literal["smooth_l1", "mse"] = "smooth_l1"
    """Distance between predictions and targets, averaged over real target tokens and width."""
    regularizer: Regularizer | None = None
    """The anti-collapse term; null is none."""

    @property
    def of_whole_batch(self) -> str | None:
        """The regulariser, whose statistics are a batch's."""
        return f"method.regularizer.name {self.regularizer.name}" if self.regularizer else None

    @property
    def compares_images(self) -> str | None:
        """The regulariser on pooled features, one row an image."""
        on_pooled = self.regularizer is not None and self.regularizer.acts_on == "pooled"
        return "method.regularizer.acts_on pooled (use tokens)" if on_pooled else None


class IJEPA(Masked):
    name: Literal["ijepa"] = "ijepa"
    """I-JEPA (2301.08243): predict a target encoder's features of hidden blocks."""
    target_input: Literal["image", "patches"] = "image"
    """What the target encoder sees: the whole image, or the target patches alone."""
    target_norm: Literal["none", "layer"] = "layer"
    """layer: each target token to mean 0 and variance 1."""
    pool_targets: bool = False
    """Predict the mean of a block's target tokens at each of them."""
    momentum: Momentum = Momentum()


class MAE(Masked):
    name: Literal["mae"] = "mae"
    """MAE (2111.06377): predict the pixels of hidden patches."""
    predictor: Predictor = Predictor(width=512, depth=8, heads=16)
    predict: Literal["joint", "per_block"] = "joint"
    """Predict all target blocks in one pass, or each in a pass of its own."""
    loss: Literal["smooth_l1", "mse"] = "mse"
    """Distance between predictions and targets, averaged over hidden pixels."""
    targets: Literal["normalised_pixels", "pixels", "pca"] = "normalised_pixels"
    """A patch's pixels to mean 0 and variance 1, its pixels, or their principal components over the first batch."""

    @property
    def of_whole_batch(self) -> str | None:
        """PCA targets, fitted on a batch, or the regulariser."""
        return "method.targets pca" if self.targets == "pca" else super().of_whole_batch

    def check_patch(self, num_values: int) -> None:
        """A single value has neither a variance nor components."""
        if num_values == 1 and self.targets != "pixels":
            raise ValueError(
                f"method.targets {self.targets} needs more than one value a patch; use pixels, or a larger model.patch_size"
            )


class SimCLR(MethodSection):
    VIEWS: ClassVar[dict[str, ViewGroup]] = {
        "main": ViewGroup(count=2, crop_scale=(0.08, 1.0), colour=0.8, jitter=(0.8, 0.8, 0.8, 0.2), grey=0.2, blur=0.5)
    }

    name: Literal["simclr"] = "simclr"
    """SimCLR (2002.05709): two views of an image are alike, views of different images are not."""
    projector_width: int = Field(default=128, ge=2)
    """Width of the vectors that are compared."""
    projector_hidden: int = Field(default=2048, ge=1)
    """Width of the projector's hidden layer."""
    temperature: float = Field(default=0.1, gt=0)
    """What similarities are divided by before the softmax."""

    @property
    def of_whole_batch(self) -> str | None:
        """Every image is compared with all others."""
        return "method.name simclr"

    @property
    def compares_images(self) -> str | None:
        """One image has nothing to be told from."""
        return "method.name simclr"


class Supervised(MethodSection):
    VIEWS: ClassVar[dict[str, ViewGroup]] = {"main": ViewGroup(crop_scale=(0.08, 1.0))}
    NEEDS_LABELS: ClassVar[bool] = True

    name: Literal["supervised"] = "supervised"
    """A classifier on the mean patch token (ViT, 2010.11929): what the labels alone give."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of the target that all classes have in equal parts."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """How often a layer is skipped for an image: rises linearly to this at the last layer (1603.09382)."""
    mixup: NotNegative = 0.0
    """Blend pairs of images, by shares from Beta(mixup, mixup) (1710.09412); 0 is off."""
    cutmix: NotNegative = 0.0
    """Paste a box of one image into another, its area from Beta(cutmix, cutmix) (1905.04899); 0 is off. Half the batches each
    where both are on."""

    @property
    def of_whole_batch(self) -> str | None:
        """Mixing, whose partners are images of the batch."""
        return next((f"method.{key} {value:g}" for key in ("mixup", "cutmix") if (value := getattr(self, key))), None)


def _read_name(method: Any) -> Any:
    return method.get("name") if isinstance(method, dict) else getattr(method, "name", None)


SECTIONS: dict[str, type[MethodSection]] = {"ijepa": IJEPA, "mae": MAE, "simclr": SimCLR, "supervised": Supervised}

if TYPE_CHECKING:
    AnyMethod = MethodSection
else:
    tagged = tuple(Annotated[section, Tag(name)] for name, section in SECTIONS.items())
    AnyMethod = Annotated[Union[tagged], Discriminator(_read_name)]  # noqa: UP007 (made from the table)
