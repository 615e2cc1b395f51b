"""One section a method: its own targets, predictor, momentum and regulariser, and the groups of views that it takes.

A key of another method is an unknown key. A new method is a section with a row in SECTIONS, and the file of its name in
openjepa/methods with a class of the section's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union

from pydantic import Discriminator, Field, Tag, model_validator

from openjepa.recipe.base import DecayRate, NotNegative, Probability, Range, Section, check_range, check_width
from openjepa.recipe.views import Mask, ViewGroup


class MethodSection(Section):
    """What every method's section has."""

    name: str
    VIEWS: ClassVar[dict[str, ViewGroup]]
    """The groups of views that the method takes, with their defaults."""
    ANY_COUNT: ClassVar[frozenset[str]] = frozenset()
    """The groups of which a recipe may ask for any number of views."""
    COUNTS_TOKENS: ClassVar[bool] = True
    """Whether the loss is a mean over target tokens where patches are hidden, and not over images."""
    NEEDS_LABELS: ClassVar[bool] = False
    """Whether the training images need class labels."""
    NEEDS_OBJECTS: ClassVar[bool] = False
    """Whether they need annotated objects, with boxes and perhaps masks."""
    AGAINST_COLLAPSE: ClassVar[dict[str, Literal["raise", "lower"]]] = {}
    """Keys by which the method itself is kept from collapse, each with what to do: the verdict's advice (health/verdict.py)."""

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

    def check_shapes(self, views: Mapping[str, ViewGroup], patch_size: int) -> None:
        """ValueError if the method cannot take a group of views with such settings, or patches of patch_size px."""


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
    AGAINST_COLLAPSE: ClassVar[dict[str, Literal["raise", "lower"]]] = {"method.momentum.start": "raise"}

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

    AGAINST_COLLAPSE: ClassVar[dict[str, Literal["raise", "lower"]]] = {"method.temperature": "lower", "data.batch_size": "raise"}

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


# BYOL's two kinds of views (2006.07733, appendix B, table 6), which MoCo v3, DINO and iBOT take over.
FIRST = ViewGroup(crop_scale=(0.08, 1.0), colour=0.8, jitter=(0.4, 0.4, 0.2, 0.1), grey=0.2, blur=1.0)
SECOND = FIRST.model_copy(update={"blur": 0.1, "solarize": 0.2})


class Followed(MethodSection):
    """What the methods share that have no predictor of tokens, and a target encoder that follows the trained one."""

    AGAINST_COLLAPSE: ClassVar[dict[str, Literal["raise", "lower"]]] = {"method.momentum.start": "raise"}

    momentum: Momentum = Momentum(schedule="cosine")


class BYOL(Followed):
    VIEWS: ClassVar[dict[str, ViewGroup]] = {"first": FIRST, "second": SECOND}

    name: Literal["byol"] = "byol"
    """BYOL (2006.07733): predict what a target network makes of the other view."""
    projector_width: int = Field(default=256, ge=2)
    """Width of the vectors that are compared."""
    projector_hidden: int = Field(default=4096, ge=1)
    """Width of the hidden layers of projector and predictor."""

    @property
    def of_whole_batch(self) -> str | None:
        """Batch norm."""
        return "method.name byol"

    @property
    def compares_images(self) -> str | None:
        """Batch norm of one image is zero."""
        return "method.name byol"


class MoCoV3(Followed):
    VIEWS: ClassVar[dict[str, ViewGroup]] = {"first": FIRST, "second": SECOND}

    AGAINST_COLLAPSE: ClassVar[dict[str, Literal["raise", "lower"]]] = {
        "method.temperature": "lower", "data.batch_size": "raise", "method.momentum.start": "raise"
    }  # fmt: skip

    name: Literal["mocov3"] = "mocov3"
    """MoCo v3 (2104.02057): tell the other view, seen by a target network, from other images."""
    projector_width: int = Field(default=256, ge=2)
    """Width of the vectors that are compared."""
    projector_hidden: int = Field(default=4096, ge=1)
    """Width of the hidden layers of projector and predictor."""
    temperature: float = Field(default=0.2, gt=0)
    """What similarities are divided by before the softmax."""
    freeze_patches: bool = True
    """Leave the patch projection as it was drawn."""
    momentum: Momentum = Momentum(schedule="cosine", start=0.99)

    @property
    def of_whole_batch(self) -> str | None:
        """Batch norm, and every image is compared with all others."""
        return "method.name mocov3"

    @property
    def compares_images(self) -> str | None:
        """One image has nothing to be told from."""
        return "method.name mocov3"


class Head(Section):
    hidden: int = Field(default=2048, ge=1)
    """Width of the hidden layers of the head."""
    bottleneck: int = Field(default=256, ge=2)
    """Width of the vectors that are compared with the prototypes."""
    prototypes: int = Field(default=65536, ge=2)
    """How many prototypes views are assigned to."""


class TeacherTemperature(Section):
    start: float = Field(default=0.04, gt=0)
    """Temperature of the target's assignments at the first step."""
    end: float = Field(default=0.07, gt=0)
    """Temperature after the warm-up."""
    warmup_frac: Probability = 0.1
    """Share of the run over which it goes from start to end."""


class DINO(Followed):
    VIEWS: ClassVar[dict[str, ViewGroup]] = {
        "first": FIRST.model_copy(update={"crop_scale": (0.25, 1.0)}),
        "second": SECOND.model_copy(update={"crop_scale": (0.25, 1.0)}),
        "local": FIRST.model_copy(update={"count": 8, "size": 96, "crop_scale": (0.05, 0.25), "blur": 0.5}),
    }
    ANY_COUNT: ClassVar[frozenset[str]] = frozenset({"local"})

    AGAINST_COLLAPSE: ClassVar[dict[str, Literal["raise", "lower"]]] = {
        "method.teacher_temperature.end": "lower", "method.centre_momentum": "lower", "method.momentum.start": "raise"
    }  # fmt: skip

    name: Literal["dino"] = "dino"
    """DINO (2104.14294): agree with a target network on prototypes, across large and small crops."""
    projector: Head = Head()
    temperature: float = Field(default=0.1, gt=0)
    """What the trained network's cosines are divided by before the softmax."""
    teacher_temperature: TeacherTemperature = TeacherTemperature()
    centre_momentum: DecayRate = 0.9
    """How much of the centre of the target's outputs stays in a step."""
    frozen_frac: Probability = 0.01
    """Share of the run over which the prototypes do not move."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """How often a layer is skipped for a view: rises linearly to this at the last layer (1603.09382)."""


HIDDEN = Mask(sampler="random", context_scale=(0.5, 0.9), target_scale=(0.1, 0.5))


class IBOT(DINO):
    VIEWS: ClassVar[dict[str, ViewGroup]] = {
        "first": FIRST.model_copy(update={"crop_scale": (0.25, 1.0), "mask": HIDDEN}),
        "second": SECOND.model_copy(update={"crop_scale": (0.25, 1.0), "mask": HIDDEN}),
        "local": DINO.VIEWS["local"].model_copy(update={"count": 10}),
    }
    COUNTS_TOKENS: ClassVar[bool] = False

    name: Literal["ibot"] = "ibot"  # type: ignore[assignment]
    """iBOT (2111.07832): DINO, and the same agreement on hidden patches."""
    projector: Head = Head(prototypes=8192)
    masked_frac: Probability = 0.5
    """How often a large view has its patches hidden."""
    patch_weight: float = Field(default=1.0, ge=0)
    """Weight of the loss on hidden patches beside the one between views."""

    @property
    def of_whole_batch(self) -> str | None:
        """Each view's hidden patches count as one, however many they are."""
        return "method.name ibot"


class ConvDecoder(Section):
    width: int = Field(default=768, ge=1)
    """Channels of the convolutions."""
    depth: int = Field(default=6, ge=1)
    """Convolutions."""
    kernel: int = Field(default=3, ge=1)
    """Side of a kernel in patches, an odd number."""
    groups: int = Field(default=16, ge=1)
    """Groups of channels; must divide the encoder's width and the decoder's."""


class Data2Vec(Followed):
    VIEWS: ClassVar[dict[str, ViewGroup]] = {
        "main": ViewGroup(
            crop_scale=(0.2, 1.0),
            mask=Mask(
                sampler="inverse_block", per_view=16, num_contexts=6, context_scale=(9 / 196, 9 / 196), target_scale=(0.8, 0.8)
            ),
        )
    }

    name: Literal["data2vec"] = "data2vec"
    """data2vec 2.0 (2212.07525): predict a target network's layers at hidden patches, from several contexts."""
    decoder: ConvDecoder = ConvDecoder()
    averaged_layers: int = Field(default=10, ge=1)
    """How many last layers of the target encoder targets are the mean of."""
    noise: float = Field(default=0.01, ge=0)
    """Standard deviation of what the decoder finds at hidden patches."""
    momentum: Momentum = Momentum(schedule="linear", start=0.9998, end=0.99999)


class LeJEPA(MethodSection):
    VIEWS: ClassVar[dict[str, ViewGroup]] = {
        "global": FIRST.model_copy(update={"count": 2, "crop_scale": (0.3, 1.0), "blur": 0.5, "solarize": 0.2}),
        "local": FIRST.model_copy(update={"count": 8, "size": 96, "crop_scale": (0.05, 0.3), "blur": 0.5, "solarize": 0.2}),
    }
    ANY_COUNT: ClassVar[frozenset[str]] = frozenset({"global", "local"})

    AGAINST_COLLAPSE: ClassVar[dict[str, Literal["raise", "lower"]]] = {"method.trade_off": "raise", "method.directions": "raise"}

    name: Literal["lejepa"] = "lejepa"
    """LeJEPA (2511.08544): views of an image agree, and images are spread as a Gaussian is; no target network."""
    projector_width: int = Field(default=512, ge=2)
    """Width of the vectors that are compared."""
    projector_hidden: int = Field(default=2048, ge=1)
    """Width of the projector's hidden layers."""
    trade_off: float = Field(default=0.05, gt=0, lt=1)
    """SIGReg's share of the loss, the paper's lambda; the agreement of views has the rest."""
    directions: int = Field(default=1024, ge=1)
    """Random directions a step along which vectors are compared with a Gaussian."""

    @property
    def of_whole_batch(self) -> str | None:
        """Batch norm, and a distribution over images."""
        return "method.name lejepa"

    @property
    def compares_images(self) -> str | None:
        """One image has no distribution."""
        return "method.name lejepa"


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


class Detection(MethodSection):
    VIEWS: ClassVar[dict[str, ViewGroup]] = {"main": ViewGroup(crop_scale=None)}
    NEEDS_OBJECTS: ClassVar[bool] = True

    name: Literal["detection"] = "detection"
    """A detector on the encoder's patches (ViTDet, 2203.16527): what annotated objects give."""
    detector: Literal["fcos", "mask_rcnn"] = "fcos"
    """fcos: boxes alone, and the cheap one (1904.01355); mask_rcnn: boxes and masks (1703.06870)."""
    channels: int = Field(default=256, ge=1)
    """Channels of the pyramid's maps, and what the heads are as wide as; of fcos a multiple of 32."""
    boxes_per_image: int = Field(default=512, ge=4)
    """Boxes of an image that Mask R-CNN's heads learn from, a quarter of them with objects."""
    frozen: bool = False
    """The encoder stays as it is: pyramid and heads alone are trained."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """How often a layer is skipped for an image: rises linearly to this at the last layer (1603.09382)."""
    scale_jitter: Range = (0.1, 2.0)
    """An image's size as a multiple of what fits data.image_size, smallest and largest; what is larger is cropped."""

    @property
    def of_whole_batch(self) -> str | None:
        """The losses, which are divided by the objects of a batch."""
        return "method.name detection"

    def check_shapes(self, views: Mapping[str, ViewGroup], patch_size: int) -> None:
        """Objects have to follow what is done to their image: scale, crop and mirror, which scale_jitter and flip say.

        The finest map has two cells a patch's side for fcos, four for mask_rcnn.
        """
        detector, cells = self.detector, {"fcos": 2, "mask_rcnn": 4}[self.detector]
        if patch_size % cells:
            raise ValueError(
                f"model.patch_size {patch_size} does not go with method.detector {detector}: it takes multiples of {cells}"
            )
        for key, wanted in (("crop_scale", None), ("rand_augment", 0), ("size", None)):
            if (value := getattr(views["main"], key)) != wanted:
                how = "null" if wanted is None else wanted
                raise ValueError(f"views.main.{key} {value} does not go with method.name detection, which takes {how}")

    @model_validator(mode="after")
    def _fits(self) -> Detection:
        check_range("scale_jitter", self.scale_jitter)
        if self.detector == "fcos" and self.channels % 32:
            raise ValueError(
                f"channels {self.channels} is not a multiple of 32, as fcos needs; try {self.channels // 32 * 32 or 32}"
            )
        return self


DETECTION_TASKS = {"detection": "fcos", "instances": "mask_rcnn"}  # what a user asks for: the detector that gives it


def _read_name(method: Any) -> Any:
    return method.get("name") if isinstance(method, dict) else getattr(method, "name", None)


SECTIONS: dict[str, type[MethodSection]] = {
    "ijepa": IJEPA, "mae": MAE, "simclr": SimCLR, "byol": BYOL, "mocov3": MoCoV3, "dino": DINO, "ibot": IBOT,
    "data2vec": Data2Vec, "lejepa": LeJEPA,
    "supervised": Supervised, "detection": Detection,
}  # fmt: skip

if TYPE_CHECKING:
    AnyMethod = MethodSection
else:
    tagged = tuple(Annotated[section, Tag(name)] for name, section in SECTIONS.items())
    AnyMethod = Annotated[Union[tagged], Discriminator(_read_name)]  # noqa: UP007 (made from the table)
