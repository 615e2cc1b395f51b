"""A plain Vision Transformer that reads only the patches it is given. The one file that touches timm's insides.

Source: Dosovitskiy et al. 2021 (arXiv 2010.11929) as I-JEPA uses it (2301.08243, section 3): no class token, fixed
sine-cosine positions added before patches are selected, a final LayerNorm. Layers and weight names are timm's, so its
state dicts load as they are. Stochastic depth is off unless a method asks for it. Left out: dropout, LayerScale, registers.
Initial weights are the release's effective ones: truncated normal 0.02, biases 0; see `initialise`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from timm.layers.drop import DropPath
from timm.models import vision_transformer as timm_vit
from torch import Tensor, nn
from torch.nn import functional

from openjepa.engine.optim import WeightGroup
from openjepa.engine.world import current
from openjepa.nn.positions import resize_positions, sine_cosine_positions
from openjepa.nn.recompute import Checkpointing, call_layer
from openjepa.nn.unpadded import run_unpadded

# On a CPU, explicit products with softmax beat the fused kernel up to this many tokens (benchmarks/attention.py).
EXPLICIT_ATTENTION_TOKENS = 256
MAX_SHAPES = 64  # that layers are compiled for; PyTorch's 8 is fewer than masks have, and beyond them layers run as they are


def make_layers(width: int, depth: int, heads: int, mlp_ratio: float) -> nn.Sequential:
    """Pre-norm transformer layers with query, key and value biases and LayerNorm eps 1e-6."""
    norm: Any = partial(nn.LayerNorm, eps=1e-6)
    layers = (timm_vit.Block(width, heads, mlp_ratio, qkv_bias=True, norm_layer=norm) for _ in range(depth))
    return nn.Sequential(*layers)


def compile_layers(layers: nn.Sequential, backend: str = "inductor") -> None:
    """torch.compile each layer, activation checkpointing included, for the shapes that it meets.

    All layers of a kind share what is compiled, so that depth costs no compile time. Names of weights stay as they are.
    """
    torch._dynamo.config.recompile_limit = MAX_SHAPES
    layers.compiled_call = torch.compile(call_layer, dynamic=False, backend=backend)  # type: ignore[assignment]


def run_layers(
    layers: Iterable[Any],
    tokens: Float[Tensor, "batch tokens width"],
    token_mask: Bool[Tensor, "batch tokens"] | None,
    checkpointing: Checkpointing = "none",
    first: int = 0,
) -> Float[Tensor, "batch wanted width"]:
    """Apply the layers and give the tokens from place `first` on.

    token_mask is True at real tokens; nothing attends to the others. None: all are real. A CPU in reduced precision
    computes real tokens alone (unpadded.py), unless the layers are compiled, which wants few shapes, or skipped at random.
    """
    call = getattr(layers, "compiled_call", None)
    in_reduced = tokens.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if in_reduced and call is None and not _skips_layers(layers):
        return run_unpadded(layers, tokens, token_mask, first, checkpointing)
    score_bias = None if token_mask is None else exclude_padding(token_mask, tokens)
    fused = tokens.device.type != "cpu" or tokens.shape[1] > EXPLICIT_ATTENTION_TOKENS
    for layer in layers:
        layer.attn.fused_attn = fused
        tokens = (call or call_layer)(checkpointing, layer, tokens, score_bias)
    return tokens[:, first:]


def _skips_layers(layers: Iterable[Any]) -> bool:
    return any(layer.training and not isinstance(layer.drop_path1, nn.Identity) for layer in layers)


def exclude_padding(
    token_mask: Bool[Tensor, "batch tokens"], tokens: Float[Tensor, "batch tokens width"]
) -> Float[Tensor, "batch 1 1 tokens"]:
    """What is added to attention scores, in attention's precision: 0 for real tokens, -inf for padding.

    A boolean mask would not do: timm's explicit attention adds it up to 1.0.25, and padding takes part.
    """
    device = tokens.device.type
    is_reduced = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if is_reduced else tokens.dtype
    bias = torch.zeros(token_mask.shape, dtype=dtype, device=tokens.device)
    return bias.masked_fill_(~token_mask, -torch.inf)[:, None, None, :]


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Fill weights as the release effectively starts: linear and patch weights truncated normal 0.02, biases 0, norms 1 and 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def gather_tokens(
    tokens: Float[Tensor, "batch patches width"], token_idx: Int[Tensor, "batch kept"]
) -> Float[Tensor, "batch kept width"]:
    """Tokens of each image at its own indices."""
    return tokens.gather(1, token_idx.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def patchify(images: Float[Tensor, "batch channels height width"], patch_size: int) -> Float[Tensor, "batch patches pixels"]:
    """The pixels of every patch, patches row by row, within a patch in the order channel, row, column."""
    return functional.unfold(images, patch_size, stride=patch_size).transpose(1, 2)


class _SkipLayer(DropPath):
    """Stochastic depth in which the processes of a run draw for the global batch, each taking its rows of it."""

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        world, kept_frac = current(), 1 - self.drop_prob
        if world.size == 1 or not self.training or not self.drop_prob:
            skipped: Tensor = super().forward(tokens)  # type: ignore[no-untyped-call]
            return skipped
        kept = tokens.new_empty(world.size * len(tokens), 1, 1).bernoulli_(kept_frac)
        return tokens * (world.own(kept) / kept_frac)


class VisionTransformer(timm_vit.VisionTransformer):
    """timm's ViT without class token, with fixed positions and a forward pass over kept patches."""

    def __init__(
        self,
        size: tuple[int, int],
        patch_size: int,
        channels: int,
        shape: tuple[int, int, int, float],
        *,
        checkpointing: Checkpointing = "none",
        drop_path: float = 0.0,
    ) -> None:
        """size: height and width in pixels, multiples of patch_size; shape: width, depth, heads, MLP ratio.

        drop_path: how often an image skips the last layer in training; earlier ones less, in proportion (1603.09382).
        """
        width, depth, heads, mlp_ratio = shape
        super().__init__(
            img_size=size, patch_size=patch_size, in_chans=channels, num_classes=0, global_pool="avg", fc_norm=False,
            class_token=False, embed_dim=width, depth=depth, num_heads=heads, mlp_ratio=mlp_ratio,
            norm_layer=partial(nn.LayerNorm, eps=1e-6), weight_init="skip", drop_path_rate=drop_path,
        )  # fmt: skip
        for layer in self.blocks if drop_path else ():
            for name in ("drop_path1", "drop_path2"):
                if isinstance(part := getattr(layer, name), DropPath):
                    setattr(layer, name, _SkipLayer(part.drop_prob))
        self.size, self.patch_size, self.channels = size, patch_size, channels
        self.grid = (size[0] // patch_size, size[1] // patch_size)
        self.checkpointing = checkpointing
        self.pos_embed: nn.Parameter = nn.Parameter(sine_cosine_positions(self.grid, width)[None], requires_grad=False)
        initialise(self)

    def weight_groups(self) -> list[WeightGroup]:
        """The trained weights by layer: patch embedding, layers, and the final norm."""
        depth = len(self.blocks)
        parts = [
            (self.patch_embed, depth),
            *((layer, depth - 1 - place) for place, layer in enumerate(self.blocks)),
            (self.norm, 0),
        ]
        return [WeightGroup([weight for weight in part.parameters() if weight.requires_grad], above) for part, above in parts]

    def embed(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch patches dim"]:
        """Project every patch and add its position; at another size the positions are resized."""
        height, width = images.shape[-2:]
        grid = (height // self.patch_size, width // self.patch_size)
        if grid[0] * self.patch_size != height or grid[1] * self.patch_size != width:
            raise ValueError(f"an image of {height} x {width} px cannot be cut into patches of {self.patch_size} px")
        pixels = patchify(images, self.patch_size)
        projection = self.patch_embed.proj
        tokens = functional.linear(pixels, projection.weight.flatten(1), projection.bias)
        return tokens + resize_positions(self.pos_embed[0], self.grid, grid)

    def forward(  # type: ignore[override]  # timm's second argument is an attention mask; ours says which patches there are
        self,
        images: Float[Tensor, "batch channels height width"],
        kept_idx: Int[Tensor, "batch kept"] | None = None,
        kept_mask: Bool[Tensor, "batch kept"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Encode all patches of normalised images, or only those kept; kept_mask is False at padding."""
        tokens = self.embed(images)
        if kept_idx is not None:
            tokens = gather_tokens(tokens, kept_idx)
        return self.encode(tokens, kept_mask)

    def encode(
        self, tokens: Float[Tensor, "batch tokens dim"], token_mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """The layers and the final norm on tokens that have their positions; token_mask is True at real tokens."""
        encoded: Tensor = self.norm(run_layers(self.blocks, tokens, token_mask, self.checkpointing))
        return encoded

    def layer_outputs(
        self, images: Float[Tensor, "batch channels height width"], count: int
    ) -> list[Float[Tensor, "batch tokens dim"]]:
        """Outputs of the last `count` layers on all patches, first to last, as they are."""
        tokens = self.embed(images)
        layers, outputs = list(self.blocks), []
        for part in (layers[: len(layers) - count + 1], *([layer] for layer in layers[len(layers) - count + 1 :])):
            tokens = run_layers(part, tokens, None, self.checkpointing)
            outputs.append(tokens)
        return outputs

    def last_layers(
        self, images: Float[Tensor, "batch channels height width"], count: int
    ) -> list[Float[Tensor, "batch tokens dim"]]:
        """Outputs of the last `count` layers on all patches, first to last, each layer-normed without weights."""
        return [functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) for tokens in self.layer_outputs(images, count)]
