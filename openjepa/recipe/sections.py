"""Recipes: what a run computes, as strict typed values with one default in one place.

A recipe is a YAML file of differences from the defaults below (`extends: NAME` starts from another recipe). An unknown key
is an error that names the nearest right one; nothing is ignored. Groups of views are in views.py, methods in methods.py.
Learning rates, decays and scales come from the brief and from the I-JEPA paper (Assran et al. 2023, arXiv 2301.08243, section
A.1); each recipe file says which.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from openjepa.recipe.base import DecayRate, NotNegative, Section, check_width
from openjepa.recipe.length import Length, parse_length
from openjepa.recipe.methods import IJEPA, SECTIONS, AnyMethod
from openjepa.recipe.views import Mask, ViewGroup, to_pair

# Width, depth, heads, MLP ratio: ViT table 1 (arXiv 2010.11929), DeiT's T and S (2012.12877), I-JEPA's g/16 (MLP 6144 wide).
ENCODERS: dict[str, tuple[int, int, int, float]] = {
    "tiny": (192, 12, 3, 4.0),
    "small": (384, 12, 6, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "huge": (1280, 32, 16, 4.0),
    "giant": (1408, 40, 16, 48 / 11),
}


class Data(Section):
    image_size: int | tuple[int, int] = 224
    """Side in pixels, or height and width, of what the encoder is built for; a group of views may have another size."""
    channels: int = Field(default=3, ge=1)
    """Image channels: 3 for colour, 1 for grey; images are converted."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 256
    """Images per optimizer step, over all processes and micro-batches; auto takes the largest batch that fits into memory."""
    workers: int = Field(default=2, ge=0)
    """Processes that decode images; 0 decodes in the training process."""
    normalization: Literal["imagenet", "measured", "init"] = "imagenet"
    """Channel mean and standard deviation: ImageNet's, measured on the training images, or those of the weights of --init."""
    white_level: float | Literal["auto"] | None = "auto"
    """Value shown white in images of more than 8 bits, one for all; auto measures it, null takes each file's own scale."""
    black_level: float = 0.0
    """Value shown black in images of more than 8 bits; a white_level that is measured brings its own."""
    nodata: float | None = None
    """Value of missing pixels in images of more than 8 bits that name none; they become the darkest level, as NaN does."""
    layout: Literal["channels_last", "channels_first"] = "channels_last"
    """Order of .npy arrays of three dimensions: (height, width, channels), or channels first."""
    pages: Literal["first", "all"] = "first"
    """Of TIFF and DICOM files: the first page or frame alone, or every one as an image of its own."""
    window: Literal["file", "ignore"] = "file"
    """Of DICOM files: shown by the window that each states, or all by white_level and black_level, in units of the scanner."""

    @model_validator(mode="after")
    def _check_levels(self) -> Data:
        if isinstance(self.white_level, float) and self.white_level <= self.black_level:
            raise ValueError(f"white_level {self.white_level:g} must be above black_level {self.black_level:g}")
        return self

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return to_pair(self.image_size)


class Model(Section):
    encoder: Literal["tiny", "small", "base", "large", "huge", "giant"] = "base"
    """Encoder preset; width, depth and heads below replace its values one by one."""
    width: int | None = Field(default=None, ge=4)
    """Encoder token width; null takes the preset's."""
    depth: int | None = Field(default=None, ge=1)
    """Encoder layers; null takes the preset's."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads; null takes the preset's."""
    patch_size: int = Field(default=16, ge=1)
    """Side of a patch in pixels."""

    @property
    def encoder_shape(self) -> tuple[int, int, int, float]:
        """Width, depth, heads and MLP ratio with the preset filled in."""
        width, depth, heads, mlp_ratio = ENCODERS[self.encoder]
        return self.width or width, self.depth or depth, self.heads or heads, mlp_ratio


class Optim(Section):
    lr: float = Field(default=1e-3, ge=0)
    """Peak learning rate at batch lr_batch_size."""
    lr_batch_size: int | None = Field(default=None, ge=1)
    """Learning rates scale by batch_size / lr_batch_size; null takes them as they are."""
    start_lr: float = Field(default=0.0, ge=0)
    """Learning rate at the start of warm-up."""
    final_lr: float = Field(default=0.0, ge=0)
    """Learning rate at the end."""
    warmup_frac: float = Field(default=40 / 300, ge=0, le=1)
    """Share of the run over which the learning rate rises from start_lr to lr."""
    weight_decay: tuple[NotNegative, NotNegative] = (0.05, 0.05)
    """Encoder weight decay at start and end, cosine between; none on biases and norms."""
    predictor_weight_decay: tuple[NotNegative, NotNegative] = (0.04, 0.04)
    """Weight decay of everything else that is trained, at start and end: predictor, projector, classifier."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Each encoder layer's learning rate as a multiple of the next one's; 1 is off."""
    clip_grad_norm: float | None = Field(default=None, gt=0)
    """Largest gradient norm; null does not clip."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """AdamW's decay rates."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""

    @model_validator(mode="after")
    def _rises_to_lr(self) -> Optim:
        for key in ("start_lr", "final_lr"):
            if (rate := getattr(self, key)) > self.lr:
                raise ValueError(f"{key} {rate:g} is above lr {self.lr:g}, the largest rate of a run; lower it")
        return self


class Train(Section):
    length: str = "300epochs"
    """300epochs, 5000steps or 30minutes. The steps of some minutes are estimated, corrected as the run goes, and recorded."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Arithmetic of the forward and backward passes; weights stay float32. A CPU that emulates bf16 or fp16 takes fp32."""
    accumulation_steps: int = Field(default=1, ge=1)
    """Micro-batches in which a batch goes through the model, to save memory; 1 where the loss needs the whole batch."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again to save memory: selective, all but matrix products; full, whole layers."""
    compile: bool = False
    """torch.compile of the transformer layers, for GPUs; masks are padded to few shapes."""
    fp8: bool = False
    """Linear maps of the transformer layers in fp8, for wide encoders on GPUs that have it; `pip install openjepa[fp8]`."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Everything random is a function of the seed and the position in the stream of images."""
    log_every_steps: int = Field(default=10, ge=1)
    """Steps between lines in metrics.jsonl."""

    @field_validator("length", mode="before")
    @classmethod
    def _is_a_length(cls, value: Any) -> str:
        return str(parse_length(str(value)))

    @property
    def run_length(self) -> Length:
        """The length as a number and a unit."""
        return parse_length(self.length)

    @field_validator("activation_checkpointing", mode="before")
    @classmethod
    def _read_yes_and_no(cls, value: Any) -> Any:
        """The key was a switch: recipes and runs of that time say true or false."""
        return {True: "full", False: "none"}[value] if isinstance(value, bool) else value


class Checkpoint(Section):
    every_steps: int | None = Field(default=None, ge=1)
    """Steps between saves of the latest state; null: one save an epoch."""
    every_epochs: int = Field(default=10, ge=1)
    """Checkpoints at these epochs are kept for good."""
    keep: int = Field(default=2, ge=1)
    """How many of the other checkpoints are kept, newest first."""


class Probe(Section):
    train: str
    """Labelled images to fit on, as DATA names them."""
    test: str
    """Labelled images to test on."""


class Health(Section):
    every_steps: int = Field(default=100, ge=1)
    """Measure rank, variance, drift and explained variance at this interval in steps; at least ten times a run."""
    num_images: int = Field(default=256, ge=2)
    """Training images that health is measured on, the same ones throughout."""
    probe: Probe | None = None
    """Labelled data on which to measure 20-NN accuracy while training; null is none."""
    probe_every_steps: int = Field(default=1000, ge=1)
    """Steps between measurements."""


class Recipe(Section):
    name: str = "custom"
    """The recipe file's name."""
    description: str = ""
    """One line on what the recipe is and where its values come from."""
    version: Literal[3] = 3
    """The version of these keys, which whole recipes record (recipe/migrate.py)."""
    data: Data = Data()
    views: dict[str, ViewGroup] = Field(default_factory=dict)
    """The method's groups of views, by name."""
    model: Model = Model()
    method: AnyMethod = IJEPA()
    optim: Optim = Optim()
    train: Train = Train()
    checkpoint: Checkpoint = Checkpoint()
    health: Health = Health()

    @property
    def batch_size(self) -> int:
        """Images per optimizer step, where data.batch_size is not auto any more (training/memory.py: settle_batch_size)."""
        assert self.data.batch_size != "auto", "the batch size is settled before anything is built"
        return self.data.batch_size

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across of an image."""
        return self.grid_of(ViewGroup())

    @property
    def mask(self) -> Mask | None:
        """The masks of the first group that has any; None for a method that hides nothing."""
        return next((group.mask for group in self.views.values() if group.mask is not None), None)

    def size_of(self, group: ViewGroup) -> tuple[int, int]:
        """Height and width in pixels of a group's views."""
        return self.data.size if group.size is None else to_pair(group.size)

    def grid_of(self, group: ViewGroup) -> tuple[int, int]:
        """Patches down and across of a group's views."""
        height, width = self.size_of(group)
        return height // self.model.patch_size, width // self.model.patch_size

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """The method's name, and the values of its groups of views that the recipe leaves open."""
        if not isinstance(values, dict):
            return values
        method = values.get("method", {})
        name = method.get("name", "ijepa") if isinstance(method, dict) else getattr(method, "name", None)
        views = values.get("views", {})
        if not isinstance(name, str) or name not in SECTIONS or not isinstance(views, dict):
            return values  # refused where it is checked
        groups = SECTIONS[name].VIEWS
        if unknown := next((group for group in views if group not in groups), None):
            near = difflib.get_close_matches(str(unknown), groups, n=1, cutoff=0.0)[0]
            raise ValueError(f"unknown key views.{unknown}; did you mean views.{near}?")
        filled = {group: _over(default, views.get(group, {})) for group, default in groups.items()}
        return values | {"method": method | {"name": name} if isinstance(method, dict) else method, "views": filled}

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        patch = self.model.patch_size
        sizes = [("data.image_size", side) for side in self.data.size]
        sizes += [(f"views.{name}.size", side) for name, group in self.views.items() for side in self.size_of(group)]
        for key, side in sizes:
            if side < 1 or side % patch:
                below = max(side // patch, 1) * patch
                raise ValueError(f"{key} {side} is not a multiple of model.patch_size {patch}; try {below} or {below + patch}")
        width, _, heads, _ = self.model.encoder_shape
        check_width("model.width", width, heads)
        for name, group in self.views.items():
            default = self.method.VIEWS[name]
            if (default.mask is None) != (group.mask is None):
                words = "needs one" if group.mask is None else "hides no patches: use null"
                raise ValueError(f"views.{name}.mask does not go with method.name {self.method.name}, which {words}")
            if group.mask is not None and self.size_of(group) != self.data.size:
                raise ValueError(
                    f"views.{name}.size {group.size} is not data.image_size {self.data.image_size}, for which a masked method's "
                    "predictor has positions; change data.image_size"
                )
            if group.rand_augment and self.data.channels not in (1, 3):
                raise ValueError(f"views.{name}.rand_augment {group.rand_augment} needs data.channels 1 or 3; use 0")
            if group.mask is not None and default.mask is not None and group.mask.per_view > 1 and default.mask.per_view == 1:
                raise ValueError(f"views.{name}.mask.per_view {group.mask.per_view}: method.name {self.method.name} takes 1")
            if group.count != default.count and name not in self.method.ANY_COUNT:
                raise ValueError(f"views.{name}.count {group.count}: method.name {self.method.name} takes {default.count}")
        self.method.check_patch(patch**2 * self.data.channels)
        self.method.check_shapes(self.views, patch)
        if self.data.batch_size != "auto":
            self._fits_in_parts(self.data.batch_size)
        return self

    def _fits_in_parts(self, images: int) -> None:
        """A batch goes through the model in equal micro-batches, of which nothing is measured that is a batch's."""
        parts, method = self.train.accumulation_steps, self.method
        if images % parts:
            raise ValueError(f"data.batch_size {images} is not a multiple of train.accumulation_steps {parts}")
        if parts > 1 and method.of_whole_batch:
            raise ValueError(
                f"train.accumulation_steps {parts} does not go with {method.of_whole_batch}, which needs the whole batch: use "
                "train.accumulation_steps 1; train.activation_checkpointing selective or full saves memory as well"
            )
        if images == 1 and method.compares_images:
            raise ValueError(f"data.batch_size 1 does not go with {method.compares_images}, which compares images; use 2 or more")


def _over(default: ViewGroup, given: Any) -> Any:
    """A group's values over the defaults; its mask's over the default mask's. Anything but a mapping is left to validation."""
    if not isinstance(given, dict):
        return given
    mask = given.get("mask", {})
    if isinstance(mask, dict) and (mask or default.mask):
        mask = (default.mask or Mask()).model_dump() | mask
    return default.model_dump() | given | {"mask": mask or None}
