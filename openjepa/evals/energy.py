"""The energy of images: how badly a run predicts their hidden patches from the visible ones, averaged over many masks.

Source: the brief's E(x, y) = ||f(x) - g(y)||^2 between what is predicted from the visible patches x and the representation of the
hidden ones y (docs/brief.md); I-JEPA as an energy-based model is Assran et al. 2023 (arXiv 2301.08243, section 2). Here it is the
squared error of a target token divided by its width, so that encoders of different widths can be compared, whatever distance the
run was trained with. An I-JEPA run predicts features, an MAE run pixels.

One draw is one of the recipe's masks; its error is the mean over the target tokens of all its blocks. The energy of an image is
the mean over draws, its standard error the standard deviation of the draws over the root of their number. The energy of a patch
is the mean over the blocks that hid it; NaN where none did.

Draw number d has the same mask for every image, a function of (seed, d): positions that are hard to predict weigh on all images
alike, and an image's energy does not depend on the images around it. Draws stop, ROUND at a time, when the standard error is at
most a stated share of the energy, or there are as many as allowed. Stopping where the error looks small makes it look a little
smaller than it is. Deviation: features of whole images are computed once, not in every draw (tests/unit/test_energy.py).
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from openjepa.data.loader import evaluation_batches
from openjepa.data.sources import ImageSource
from openjepa.evals.features import progress_bar
from openjepa.masks import Masks, every_patch, sample_masks
from openjepa.methods.ijepa import IJEPA
from openjepa.methods.masked import MaskedMethod
from openjepa.nn.encoder import normalise
from openjepa.nn.vit import gather_tokens
from openjepa.recipe.views import Mask
from openjepa.weights.load import TrainedMethod

ROUND = 8  # draws between two looks at the standard error
BATCH = 64  # images
SHARE, MOST_DRAWS = 0.05, 64
GROUP = 2**16  # of views: training has fewer, so no draw repeats a mask of the run


@dataclass(frozen=True)
class Drawing:
    """How long masks are drawn: until the standard error is `share` of the energy, or `most` draws are made; and their seed.

    ValueError for a share that is not above 0 or fewer than two draws, of which there is no standard error.
    """

    share: float = SHARE
    most: int = MOST_DRAWS
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.share > 0:
            raise ValueError(f"--share must be above 0, not {self.share:g}")
        if self.most < 2:
            raise ValueError(f"--most-draws must be at least 2, not {self.most}: one draw has no standard error")


@dataclass(frozen=True)
class Energies:
    """Of the images that could be read, in their source's order."""

    energy: Float64[np.ndarray, " images"] = field(repr=False)
    standard_error: Float64[np.ndarray, " images"] = field(repr=False)
    draws: Int64[np.ndarray, " images"] = field(repr=False)
    patches: Float32[np.ndarray, "images down across"] = field(repr=False)  # NaN where no draw hid the patch
    image_idx: Int64[np.ndarray, " images"] = field(repr=False)  # numbers in the source
    drawing: Drawing
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (path, reason) of images that could not be read

    @property
    def reached(self) -> Bool[np.ndarray, " images"]:
        """Whether an image's standard error is the share that was asked for, or less."""
        return is_precise(self.energy, self.standard_error, self.drawing.share)


def measure_energy(
    trained: TrainedMethod,
    source: ImageSource,
    drawing: Drawing,
    *,
    device: str | torch.device = "cpu",
    label: str | None = None,
    batch_size: int = BATCH,
) -> Energies:
    """Energies of every readable image, seen through the evaluation view.

    label: what the progress bar on a terminal says; None shows none. ValueError if the method predicts nothing under a mask, or
    an energy is not finite.
    """
    method, mask = require_masked(trained), trained.recipe.mask
    assert mask is not None, "a masked method has masks"
    draws = Draws(method.to(device).eval(), mask, drawing)
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (trained.mean, trained.std))
    parts, numbers, skipped = [], [], []
    batches = evaluation_batches(source, method.context_encoder.size, batch_size=batch_size)
    with closing(batches), progress_bar(label) as progress:
        task = progress.add_task(label or "", total=len(source))
        for images, image_idx, failed in batches:
            part = draws.measure(normalise(images.to(device), mean, std))
            if not np.isfinite(part[0]).all():
                bad = source.path(int(image_idx[~np.isfinite(part[0])][0]))
                raise ValueError(f"the energy of {bad} is not finite: the run's weights are damaged; use an earlier checkpoint")
            parts.append(part)
            numbers.append(image_idx.numpy())
            skipped += failed
            progress.advance(task, len(image_idx) + len(failed))
    energy, error, count, patches = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Energies(energy, error, count, patches, np.concatenate(numbers), drawing, skipped)


def require_masked(trained: TrainedMethod) -> MaskedMethod:
    """The method, if it predicts hidden patches from visible ones; ValueError if it does not."""
    if not isinstance(trained.method, MaskedMethod):
        name = trained.recipe.method.name
        raise ValueError(f"a run of {name} does not predict hidden patches from visible ones; energies take one of ijepa or mae")
    return trained.method


def is_precise(
    energy: Float64[np.ndarray, " images"], standard_error: Float64[np.ndarray, " images"], share: float
) -> Bool[np.ndarray, " images"]:
    """Whether standard errors are at most a share of the energies."""
    precise: Bool[np.ndarray, " images"] = standard_error <= share * energy
    return precise


class Draws:
    """The masks of a measurement, and images under them."""

    def __init__(self, method: MaskedMethod, mask: Mask, drawing: Drawing) -> None:
        self.method, self.mask, self.drawing = method, mask, drawing
        self.known: list[Masks] = []

    def masks(self, draw: int) -> Masks:
        """The mask of a draw, of one image."""
        while len(self.known) <= draw:
            drawn = sample_masks(self.mask, self.method.grid, 1, seed=self.drawing.seed, step=len(self.known), group=GROUP)
            self.known.append(drawn)
        return self.known[draw]

    @torch.inference_mode()
    def measure(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> tuple[
        Float64[np.ndarray, " batch"],
        Float64[np.ndarray, " batch"],
        Int64[np.ndarray, " batch"],
        Float32[np.ndarray, "batch down across"],
    ]:
        """Energy, its standard error, the number of draws and the energies of patches of normalised images."""
        num_patches, device = self.method.grid[0] * self.method.grid[1], images.device
        values = torch.zeros(len(images), self.drawing.most, dtype=torch.float64, device=device)
        sums = torch.zeros(len(images), num_patches, dtype=torch.float64, device=device)
        times = torch.zeros(self.drawing.most + 1, num_patches, dtype=torch.float64)  # by the first n draws: hidden how often
        counts = np.zeros(len(images), np.int64)
        energy, error = np.zeros(len(images)), np.zeros(len(images))
        active = torch.arange(len(images), device=device)
        targets, done = self.encode_targets(images), 0
        while len(active) and done < self.drawing.most:
            last = min(done + ROUND, self.drawing.most)
            seen, wanted = images[active], None if targets is None else targets[active]
            for draw in range(done, last):
                hidden, errors = self.find_errors(seen, wanted, draw)
                values[active, draw] = errors.mean(1)
                sums[active] = sums[active].index_add(1, hidden, errors)
                times[draw + 1] = times[draw] + torch.bincount(hidden.cpu(), minlength=num_patches)
            done = last
            part, place = values[active, :done], active.cpu().numpy()
            counts[place] = done
            energy[place] = part.mean(1).cpu().numpy()
            error[place] = (part.std(1) / done**0.5).cpu().numpy() if done > 1 else np.inf
            go_on = ~is_precise(energy[place], error[place], self.drawing.share)
            active = active[torch.from_numpy(go_on).to(device)]
        patches = sums.cpu() / times[torch.from_numpy(counts)]
        return energy, error, counts, patches.float().view(-1, *self.method.grid).numpy()

    def encode_targets(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch patches dim"] | None:
        """The target of every patch, where it does not depend on which patches are hidden; else None."""
        method = self.method
        if isinstance(method, IJEPA) and (method.settings.target_input == "patches" or method.settings.pool_targets):
            return None
        every = every_patch(len(images), method.grid[0] * method.grid[1])
        return method.make_targets(images, every.to(images.device)).squeeze(1)

    def find_errors(
        self,
        images: Float[Tensor, "batch channels height width"],
        targets: Float[Tensor, "batch patches dim"] | None,
        draw: int,
    ) -> tuple[Int64[Tensor, " hidden"], Float64[Tensor, "batch hidden"]]:
        """The patches that a draw hides, those of a block after those of another, and the squared error at each."""
        masks = self.masks(draw).repeat(len(images)).to(images.device)
        if targets is None:
            wanted = self.method.make_targets(images, masks)
        else:
            wanted = gather_tokens(targets, masks.target_idx.flatten(1)).unflatten(1, masks.target_idx.shape[1:])
        predictions = self.method.predict(self.method.encode_context(images, masks), masks).float()
        squares = (predictions - wanted).double().square().mean(-1)
        is_real = masks.target_mask[0]
        return masks.target_idx[0][is_real], squares[:, is_real]
