"""Recipes: what a run computes, as strict typed values with one default in one place.

A recipe is a YAML file of differences from the defaults below (`extends: NAME` starts from another recipe).
An unknown key is an error that names the nearest right one; nothing is ignored. Imports no torch, so that
`openjepa --help` stays fast. Learning rates, decays and scales come from the brief and from the
I-JEPA paper (Assran et al. 2023, arXiv 2301.08243, section A.1); each recipe file says which.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# Width, depth, heads, MLP ratio: ViT table 1 (arXiv 2010.11929), DeiT's T and S (2012.12877), I-JEPA's g/16 (MLP 6144 wide).
ENCODERS: dict[str, tuple[int, int, int, float]] = {
    "tiny": (192, 12, 3, 4.0),
    "small": (384, 12, 6, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "huge": (1280, 32, 16, 4.0),
    "giant": (1408, 40, 16, 48 / 11),
}


# What each method can predict, the first one where a recipe does not say.
TARGETS: dict[str, tuple[str, ...]] = {"ijepa": ("features", "pooled"), "mae": ("pixels", "pca")}

# What a method computes over all images of a batch: of parts of it something else would come out.
OF_WHOLE_BATCH = (("target_norm", "batch"), ("targets", "pca"), ("regularizer", "vicreg"), ("regularizer", "sigreg"))

NotNegative = Annotated[float, Field(ge=0)]
DecayRate = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A group of recipe keys. Frozen; unknown keys, infinities and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_yes_for_a_number(cls, value: Any, info: Any) -> Any:
        """YAML reads yes and on as true, which would otherwise pass for the number 1."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true and false (YAML: also yes, no, on, off) do not fit here")
        return value


class Data(Section):
    image_size: int | tuple[int, int] = 224
    """Side of the training view in pixels, or height and width."""
    channels: int = Field(default=3, ge=1)
    """Image channels: 3 for colour, 1 for grey; images are converted."""
    batch_size: int = Field(default=256, ge=1)
    """Images per optimizer step, over all processes and accumulated parts."""
    workers: int = Field(default=2, ge=0)
    """Processes that decode images; 0 decodes in the training process."""
    augmentation: Literal["none", "minimal", "moderate", "strong"] = "minimal"
    """none: resize and centre crop; minimal: random crop and flip; moderate: + colour jitter; strong: + blur, solarize."""
    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Share of the image area that a random crop keeps, smallest and largest."""
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    """How often a training view is mirrored left to right."""
    normalization: Literal["imagenet", "measured"] = "imagenet"
    """Channel mean and standard deviation: ImageNet's, or measured on the training images."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size


class Model(Section):
    encoder: Literal["tiny", "small", "base", "large", "huge", "giant"] = "base"
    """Encoder preset; width, depth and heads below replace its values one by one."""
    width: int | None = Field(default=None, ge=4)
    """Encoder token width; None takes the preset's."""
    depth: int | None = Field(default=None, ge=1)
    """Encoder layers; None takes the preset's."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads; None takes the preset's."""
    patch_size: int = Field(default=16, ge=1)
    """Side of a patch in pixels."""
    predictor_width: int = Field(default=384, ge=4)
    """Predictor token width; the predictor is MAE's decoder."""
    predictor_depth: int = Field(default=6, ge=1)
    """Predictor layers."""
    predictor_heads: int = Field(default=12, ge=1)
    """Predictor attention heads."""
    predictor_positions: Literal["own", "projected"] = "own"
    """own: a sine-cosine table of the predictor's width; projected: the encoder's table through the input projection."""
    residual_rescale: bool = False
    """Divide residual output weights by sqrt(2 x layer) at the start, as the release writes and then overwrites."""

    @property
    def encoder_shape(self) -> tuple[int, int, int, float]:
        """Width, depth, heads and MLP ratio with the preset filled in."""
        width, depth, heads, mlp_ratio = ENCODERS[self.encoder]
        return self.width or width, self.depth or depth, self.heads or heads, mlp_ratio


class Mask(Section):
    sampler: str = "multiblock"
    """multiblock (the paper's), union (the brief's), random, or block."""
    num_contexts: int = Field(default=1, ge=1)
    """Context rectangles per image (multiblock always draws one)."""
    context_scale: tuple[float, float] = (0.85, 1.0)
    """Area of a context rectangle as a share of the patches, smallest and largest."""
    context_aspect: tuple[float, float] = (1.0, 1.0)
    """Width / height of a context rectangle, smallest and largest."""
    num_targets: int = Field(default=4, ge=1)
    """Target rectangles per image."""
    target_scale: tuple[float, float] = (0.15, 0.2)
    """Area of a target rectangle as a share of the patches, smallest and largest."""
    target_aspect: tuple[float, float] = (0.75, 1.5)
    """Width / height of a target rectangle, smallest and largest."""
    fidelity: Literal["unbiased", "released"] = "unbiased"
    """released repeats the reference release's biased multiblock draws, to test parity."""


class Method(Section):
    name: Literal["ijepa", "mae"] = "ijepa"
    """The method, a file of openjepa/methods."""
    targets: Literal["features", "pooled", "pixels", "pca"] | None = None
    """I-JEPA: features of patches, or pooled, their mean over a block; MAE: pixels, or pca of them. None: the first."""
    target_input: Literal["image", "patches"] = "image"
    """What the target encoder sees: the whole image, or the target patches alone. MAE cuts its targets from the image."""
    target_norm: Literal["none", "layer", "batch"] = "layer"
    """layer: each target token (MAE: each patch's pixels) to mean 0, variance 1; batch: each position over the batch."""
    target_layers: int = Field(default=1, ge=1)
    """Targets are the mean of so many last layers, each layer-normed (data2vec, 2202.03555); 1 is the encoder's output."""
    predict: Literal["joint", "per_block"] = "per_block"
    """Predict all target blocks in one pass, or each in a pass of its own."""
    loss: Literal["smooth_l1", "mse"] = "smooth_l1"
    """Distance between predictions and targets, averaged over real target tokens and width."""
    regularizer: Literal["none", "vicreg", "sigreg"] = "none"
    """Anti-collapse term; VICReg 2105.04906, SIGReg 2511.08544."""
    regularizer_on: Literal["pooled", "tokens", "predictions"] = "pooled"
    """What the term acts on: each image's mean context token, its context tokens, or the predictions."""
    regularizer_weight: float = Field(default=0.0, ge=0)
    """Weight of the anti-collapse term."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_targets(cls, values: Any) -> Any:
        """Recorded is what is predicted, not None."""
        if not isinstance(values, dict) or values.get("targets") is not None:
            return values
        name = values.get("name", "ijepa")
        return values | {"targets": TARGETS[name][0]} if name in TARGETS else values

    @property
    def of_whole_batch(self) -> str | None:
        """A setting, as `method.key value`, by which a batch's loss is not the sum of its parts'; None: it adds up."""
        found = (f"method.{key} {value}" for key, value in OF_WHOLE_BATCH if getattr(self, key) == value)
        return next(found, None)


class Optim(Section):
    lr: float = Field(default=1e-3, ge=0)
    """Peak learning rate at batch lr_batch_size."""
    lr_batch_size: int | None = Field(default=None, ge=1)
    """Learning rates scale by batch_size / lr_batch_size; None takes them as they are."""
    start_lr: float = Field(default=0.0, ge=0)
    """Learning rate at the start of warm-up."""
    final_lr: float = Field(default=0.0, ge=0)
    """Learning rate at the end."""
    warmup_epochs: float = Field(default=40, ge=0)
    """Linear warm-up; a run shortened by max_steps or max_minutes shortens it in proportion."""
    weight_decay: tuple[NotNegative, NotNegative] = (0.05, 0.05)
    """Encoder weight decay at start and end, cosine between; none on biases and norms."""
    predictor_weight_decay: tuple[NotNegative, NotNegative] = (0.04, 0.04)
    """Predictor weight decay at start and end."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Each encoder layer's learning rate as a multiple of the next one's; 1 is off."""
    clip_grad_norm: float | None = Field(default=None, gt=0)
    """Largest gradient norm; None does not clip."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """AdamW's decay rates."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""


class Momentum(Section):
    schedule: Literal["cosine", "linear", "fixed"] = "linear"
    """How the target encoder's momentum goes from start to end; fixed stays at start. MAE has none and takes no other value."""
    start: float = Field(default=0.996, ge=0, le=1)
    """Momentum at the first step."""
    end: float = Field(default=1.0, ge=0, le=1)
    """Momentum at the last step."""


class Train(Section):
    epochs: float = Field(default=300, gt=0)
    """Passes over the data."""
    max_steps: int | None = Field(default=None, ge=1)
    """Run this many optimizer steps instead; schedules shrink with it."""
    max_minutes: float | None = Field(default=None, gt=0)
    """As many steps as fit: planned from the first ones, anew when the pace changes, and recorded, so that a resume is exact."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Arithmetic of the forward and backward passes; weights stay float32. A CPU that emulates bf16 or fp16 takes fp32."""
    accumulation_steps: int = Field(default=1, ge=1)
    """Parts in which a batch goes through the model, to save memory; 1 where a loss needs the whole batch: OF_WHOLE_BATCH."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again to save memory: selective, all but matrix products; full, whole layers."""
    compile: bool = False
    """torch.compile of the transformer layers, for GPUs; masks are padded to few shapes."""
    fp8: bool = False
    """Linear maps of the transformer layers in fp8, for wide encoders on GPUs that have it; `pip install openjepa[fp8]`."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Everything random is a function of (seed, step, rank)."""
    log_every_steps: int = Field(default=10, ge=1)
    """A line in metrics.jsonl every so many steps."""

    @field_validator("activation_checkpointing", mode="before")
    @classmethod
    def _read_yes_and_no(cls, value: Any) -> Any:
        """The key was a switch: recipes and runs of that time say true or false."""
        return {True: "full", False: "none"}[value] if isinstance(value, bool) else value


class Checkpoint(Section):
    every_steps: int | None = Field(default=None, ge=1)
    """Save the latest state every so many steps; None: once an epoch."""
    every_epochs: int = Field(default=10, ge=1)
    """Checkpoints at these epochs are kept for good."""
    keep: int = Field(default=2, ge=1)
    """How many of the other checkpoints are kept, newest first."""


class Health(Section):
    every_steps: int = Field(default=100, ge=1)
    """Measure rank, variance, drift and explained variance every so many steps; at least ten times a run."""
    num_images: int = Field(default=256, ge=2)
    """Training images that health is measured on, the same ones throughout."""
    probe_every_steps: int = Field(default=1000, ge=1)
    """With --probe-train and --probe-test: measure 20-NN accuracy every so many steps."""


class Recipe(Section):
    name: str = "custom"
    """The recipe file's name."""
    description: str = ""
    """One line on what the recipe is and where its values come from."""
    version: Literal[2] = 2
    """The version of these keys, which whole recipes record; OpenJEPA 0.1 recorded none (see migrate)."""
    data: Data = Data()
    model: Model = Model()
    mask: Mask = Mask()
    method: Method = Method()
    optim: Optim = Optim()
    momentum: Momentum = Momentum()
    train: Train = Train()
    checkpoint: Checkpoint = Checkpoint()
    health: Health = Health()

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        height, width = self.data.size
        return height // self.model.patch_size, width // self.model.patch_size

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        patch = self.model.patch_size
        for side in self.data.size:
            if side < 1 or side % patch:
                below = max(side // patch, 1) * patch
                raise ValueError(
                    f"data.image_size {side} is not a multiple of model.patch_size {patch}; try {below} or {below + patch}"
                )
        width, _, heads, _ = self.model.encoder_shape
        for key, value, by in (
            ("model.width", width, heads),
            ("model.predictor_width", self.model.predictor_width, self.model.predictor_heads),
        ):
            if value % by:
                raise ValueError(f"{key} {value} is not a multiple of its {by} heads; try {max(value // by, 1) * by}")
            if value % 4:
                raise ValueError(f"{key} {value} is not a multiple of 4, which its positions need; try {value // 4 * 4 or 4}")
        self._fits_in_parts()
        self._fits_rates()
        if (self.method.regularizer == "none") != (self.method.regularizer_weight == 0):
            raise ValueError(
                f"method.regularizer {self.method.regularizer} does not go with method.regularizer_weight "
                f"{self.method.regularizer_weight:g}; set both or neither"
            )
        self._fits_targets()
        if self.method.name == "mae":
            self._fits_mae()
        for section, key in (("data", "crop_scale"), ("mask", "context_scale"), ("mask", "target_scale"),
                             ("mask", "context_aspect"), ("mask", "target_aspect")):  # fmt: skip
            low, high = getattr(getattr(self, section), key)
            if not 0 < low <= high or ("scale" in key and high > 1):
                limit = " <= 1" if "scale" in key else ""
                raise ValueError(f"{section}.{key} ({low:g}, {high:g}) must satisfy 0 < smallest <= largest{limit}")
        return self

    def _fits_in_parts(self) -> None:
        """A batch goes through the model in equal parts, of which nothing is measured that is a batch's."""
        images, parts, method = self.data.batch_size, self.train.accumulation_steps, self.method
        if images % parts:
            raise ValueError(f"data.batch_size {images} is not a multiple of train.accumulation_steps {parts}")
        if parts > 1 and method.of_whole_batch:
            raise ValueError(
                f"train.accumulation_steps {parts} does not go with {method.of_whole_batch}, which needs the whole batch: use "
                "train.accumulation_steps 1; train.activation_checkpointing selective or full saves memory as well"
            )
        if images == 1 and method.target_norm == "batch":
            raise ValueError("data.batch_size 1 does not go with method.target_norm batch, which compares images; use 2 or more")
        if images == 1 and method.regularizer != "none" and method.regularizer_on == "pooled":
            raise ValueError(
                f"data.batch_size 1 does not go with method.regularizer {method.regularizer} on pooled features, one row an "
                "image; use 2 or more, or method.regularizer_on tokens"
            )

    def _fits_rates(self) -> None:
        """Learning rates rise to optim.lr and fall from it; momentum does not fall."""
        for key in ("start_lr", "final_lr"):
            if (rate := getattr(self.optim, key)) > self.optim.lr:
                raise ValueError(f"optim.{key} {rate:g} is above optim.lr {self.optim.lr:g}, the largest rate of a run; lower it")
        schedule, start, end = self.momentum.schedule, self.momentum.start, self.momentum.end
        if schedule != "fixed" and end < start:
            raise ValueError(
                f"momentum.end {end:g} is below momentum.start {start:g}: momentum rises, or stays with momentum.schedule fixed"
            )

    def _fits_targets(self) -> None:
        """A method predicts its own targets, from layers that there are, of values that its norm can use."""
        method, depth = self.method, self.model.encoder_shape[1]
        if method.targets not in TARGETS[method.name]:
            other = next(name for name, kinds in TARGETS.items() if method.targets in kinds)
            raise ValueError(
                f"method.targets {method.targets} belongs to --method.name {other}; with method.name {method.name} use "
                f"{' or '.join(TARGETS[method.name])}"
            )
        if method.target_layers > depth:
            raise ValueError(f"method.target_layers {method.target_layers} is more than the encoder's {depth} layers")
        if method.target_norm == "batch" and method.target_input != "image":
            raise ValueError("method.target_norm batch standardises each position over the batch: it needs target_input image")

    def _fits_mae(self) -> None:
        """MAE has no target encoder: what would steer one is refused, not ignored."""
        method = self.method
        for key, value, allowed in (
            ("target_input", method.target_input, ("image",)),
            ("target_norm", method.target_norm, ("none",) if method.targets == "pca" else ("none", "layer")),
            ("target_layers", method.target_layers, (1,)),
        ):
            if value not in allowed:
                listed = " or ".join(str(choice) for choice in allowed)
                raise ValueError(
                    f"method.{key} {value} does not go with method.name mae, which predicts {method.targets}; use {listed}"
                )
        for key, default in Momentum().model_dump().items():
            if (value := getattr(self.momentum, key)) != default:
                raise ValueError(f"momentum.{key} {value} has no target encoder to act on with method.name mae; use {default}")
        if self.model.patch_size**2 * self.data.channels == 1 and (method.target_norm == "layer" or method.targets == "pca"):
            setting = "method.targets pca" if method.targets == "pca" else "method.target_norm layer"
            raise ValueError(
                f"{setting} needs more than one value a patch; use method.targets pixels with method.target_norm none, or a "
                "larger model.patch_size"
            )


def leave_targets_open(method: Method) -> Method:
    """The section with None for its method's own targets: as defaults of flags, so that --method.name brings its own."""
    return method.model_copy(update={"targets": None}) if method.targets == TARGETS[method.name][0] else method
