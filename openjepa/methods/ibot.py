"""iBOT: DINO's agreement between views, and the same for the hidden patches of a view.

Source: Zhou et al. 2021 (arXiv 2111.07832). In reading order: which views are masked (half of them; section 4.1 and
appendix), mask tokens in the encoder (section 3.1), the loss between views (section 3.2; dino.py) and on hidden patches, of
which each image's mean is taken first (section 3.1, equation 2), one head for both (section 3.2, "shared head") and two
centres. Pinned by tests/parity/test_ibot.py. Deviations: the mean of a view's patch tokens, hidden ones included, where the
paper has a class token; hidden patches are drawn one by one, not as blocks; prototypes have norm 1. Views that are not
masked count as zeros in the mean, as in the authors' code.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from openjepa.data.batch import Batch
from openjepa.engine.precision import full_precision
from openjepa.engine.world import current
from openjepa.methods.contract import Metrics, Rates
from openjepa.methods.dino import DINO, Centre, distil, measure_assignments, sharpen
from openjepa.nn.vit import VisionTransformer
from openjepa.recipe import methods

VIEWS = ("first", "second")
PatchCosines = Float[Tensor, "views patches prototypes"]


class IBOT(DINO):
    """DINO with mask tokens and a centre of its own for patches."""

    settings: methods.IBOT

    def __init__(self, encoder: VisionTransformer, settings: methods.IBOT) -> None:
        super().__init__(encoder, settings)
        self.mask_token = nn.Parameter(torch.empty(1, 1, encoder.embed_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.patch_centre = Centre(settings.projector.prototypes, settings.centre_momentum)

    def forward(self, batch: Batch, rates: Rates) -> tuple[Float[Tensor, ""], Metrics]:
        """Loss and detached metrics of a batch with two large views, in part hidden, and some small ones of each image."""
        images = torch.cat([batch.views[name].flat for name in VIEWS])
        frozen, temperature = rates["last_layer"] == 0, rates["teacher_temperature"]
        hidden = torch.cat([find_hidden(batch, name, self.context_encoder.grid) for name in VIEWS])
        drawn = torch.rand(len(VIEWS), current().size * len(hidden) // len(VIEWS), device=hidden.device)  # of all processes
        hidden = hidden & (current().own(drawn, 1).flatten() < self.settings.masked_frac)[:, None]
        with torch.no_grad():
            target, target_patches = self.assign(self.target_head(self._with_mean(self.target_encoder(images))))
        tokens = self._with_mean(self.encode_hidden(images, hidden))
        context, context_patches = self.assign(self.head(tokens, frozen))
        context = torch.cat([context, self.assign_small(batch, frozen)])
        with full_precision(images.device):
            wanted = sharpen(target, self.centre.mean, temperature)
            wanted_patches = sharpen(target_patches, self.patch_centre.mean, temperature)
            between_views = distil(wanted, context, self.settings.temperature)
            on_patches = distil_hidden(wanted_patches, context_patches, hidden, self.settings.temperature)
            loss = between_views + self.settings.patch_weight * on_patches
        self.centre.see(target)
        self.patch_centre.see(target_patches)
        metrics = {"loss": loss.detach(), "view_loss": between_views.detach(), "patch_loss": on_patches.detach()}
        norms = {"centre_norm": self.centre.mean.norm(), "patch_centre_norm": self.patch_centre.mean.norm()}
        return loss, metrics | measure_assignments(wanted, between_views) | measure_patches(wanted_patches) | norms

    def encode_hidden(
        self, images: Float[Tensor, "views channels height width"], hidden: Bool[Tensor, "views patches"]
    ) -> Float[Tensor, "views patches dim"]:
        """The context encoder's tokens of all patches; of a hidden one it sees the mask token and the position."""
        encoder = self.context_encoder
        encoded: Tensor = encoder.encode(
            torch.where(hidden[..., None], self.mask_token + encoder.pos_embed, encoder.embed(images))
        )
        return encoded

    def after_step(self, rates: Rates, finite: Bool[Tensor, ""]) -> None:
        """What follows the weights, and both centres."""
        super().after_step(rates, finite)
        self.patch_centre.move(finite)

    @staticmethod
    def assign(cosines: Float[Tensor, "views tokens prototypes"]) -> tuple[Float[Tensor, "2 images prototypes"], PatchCosines]:
        """The head's cosines of the views as wholes, (2, images, prototypes), and of their patches."""
        return cosines[:, 0].unflatten(0, (len(VIEWS), -1)), cosines[:, 1:]

    @staticmethod
    def _with_mean(tokens: Float[Tensor, "views patches dim"]) -> Float[Tensor, "views tokens dim"]:
        return torch.cat([tokens.mean(1, keepdim=True), tokens], 1)


def measure_patches(wanted: PatchCosines) -> Metrics:
    """The entropies of patches' assignments, as dino.py has them of views."""
    measured = measure_assignments(wanted, wanted.new_zeros(()))
    return {f"patch_{name}": measured[name] for name in ("teacher_entropy", "usage_entropy")}


def find_hidden(batch: Batch, name: str, grid: tuple[int, int]) -> Bool[Tensor, "views patches"]:
    """True at the target patches of the masks of a group of views."""
    masks = batch.views[name].masks
    assert masks is not None, "iBOT is given masks"
    places = masks.target_idx.flatten(1)
    hidden = torch.zeros(len(places), grid[0] * grid[1], dtype=torch.bool, device=places.device)
    return hidden.scatter_(1, places, True)  # padding repeats a real one


def distil_hidden(
    wanted: PatchCosines, context: PatchCosines, hidden: Bool[Tensor, "views patches"], temperature: float
) -> Float[Tensor, ""]:
    """Cross-entropy of hidden patches: the mean over those of a view first, then over views; a view without any counts 0."""
    per_patch = -(wanted * (context / temperature).log_softmax(-1)).sum(-1) * hidden
    return (per_patch.sum(1) / hidden.sum(1).clamp_min(1)).mean()
