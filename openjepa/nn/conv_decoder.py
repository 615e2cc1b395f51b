"""data2vec 2.0's decoder: convolutions over the grid of patches, in which hidden ones are noise.

Source: Baevski et al. 2022 (arXiv 2212.07525, section 3.2) and the authors' code for details: grouped convolutions, layer
norm without weights and GELU, each added to its input where widths agree, and a last linear map. Pinned by
tests/parity/test_data2vec.py.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from openjepa.engine.world import current
from openjepa.nn.vit import initialise

NORM_EPS = 1e-5


class ConvDecoder(nn.Module):
    """From the visible patches' tokens to a prediction for every patch of the grid."""

    def __init__(self, grid: tuple[int, int], width: int, hidden: int, depth: int, kernel: int, groups: int) -> None:
        """width: of tokens and predictions. ValueError if groups divide not both widths, or the kernel has no middle."""
        super().__init__()
        if width % groups or hidden % groups:
            raise ValueError(
                f"method.decoder.groups {groups} must divide the encoder's width {width} and method.decoder.width {hidden}"
            )
        if kernel % 2 == 0:
            raise ValueError(f"method.decoder.kernel {kernel} must be odd")
        self.grid = grid
        widths = [width, *[hidden] * depth]
        self.layers = nn.ModuleList(
            nn.Conv2d(before, hidden, kernel, padding=kernel // 2, groups=groups) for before in widths[:-1]
        )
        self.output_proj = nn.Linear(hidden, width)
        initialise(self)

    def forward(
        self, tokens: Float[Tensor, "batch patches width"], visible_idx: Int[Tensor, "batch visible"], noise: float
    ) -> Float[Tensor, "batch all_patches width"]:
        """Predictions for all patches, row by row. tokens: those at visible_idx; noise: standard deviation of all others."""
        shape = (len(tokens), self.grid[0] * self.grid[1], tokens.shape[-1])
        filled = noise * current().draw(lambda: torch.randn(shape, device=tokens.device))
        filled = filled.to(tokens.dtype).scatter(1, visible_idx[..., None].expand_as(tokens), tokens)
        hidden = filled.transpose(1, 2).unflatten(2, self.grid)
        for layer in self.layers:
            after = layer(hidden).movedim(1, -1)
            after = functional.gelu(functional.layer_norm(after, after.shape[-1:], eps=NORM_EPS)).movedim(-1, 1)
            hidden = hidden + after if hidden.shape == after.shape else after
        predictions: Tensor = self.output_proj(hidden.flatten(2).transpose(1, 2))
        return predictions
