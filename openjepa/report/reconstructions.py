"""What a predictor believes to be in hidden blocks, as pixels: for the report.

I-JEPA predicts tokens, which no one can see. So each prediction is shown as the real patch whose target token is nearest to it by
cosine, among the patches of other images, encoded and normalised as targets are in training; the place in the image may differ.
The paper draws predictions with a generative decoder instead (arXiv 2301.08243, section 8 and figure 6); real patches need no
training and add no detail of their own; so are MAE's principal components. Its pixels are shown as they are, with the mean and
spread of the true patch where it predicts normalised ones, as its authors show them (arXiv 2111.06377, figure 2).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from openjepa.data.loader import evaluation_batches
from openjepa.data.sources import ImageSource, spread
from openjepa.engine.neighbours import find_neighbours
from openjepa.masks import Masks, every_patch, sample_masks
from openjepa.methods.ijepa import IJEPA
from openjepa.methods.mae import MAE
from openjepa.methods.masked import MaskedMethod
from openjepa.nn.encoder import normalise
from openjepa.nn.vit import gather_tokens, patchify
from openjepa.report.pictures import Beliefs, Pixels, mark_patches
from openjepa.weights.load import TrainedMethod

MAX_POOL_IMAGES = 2000
MAX_POOL_PATCHES = 100_000  # 0.3 GB of tokens 768 wide
POOL_BATCH = 64


def show_beliefs(
    trained: TrainedMethod,
    images: UInt8[Tensor, "batch channels height width"],
    pool: ImageSource,
    pool_idx: Int64[np.ndarray, " candidates"],
) -> Beliefs:
    """Images, a mask of the recipe's for each, and the same images with the hidden blocks as the predictor believes them to be.

    pool and pool_idx: the images whose patches stand for predictions, or as many of them as MAX_POOL_PATCHES allows.
    """
    method, recipe = trained.method, trained.recipe
    assert isinstance(method, MaskedMethod)
    assert recipe.mask is not None
    masks = sample_masks(recipe.mask, recipe.grid, len(images), seed=recipe.train.seed, step=0)
    with torch.inference_mode():
        pixels = _normalise(trained, images)
        predictions = method.predict(method.encode_context(pixels, masks), masks)[masks.target_mask].float()
        is_drawn = isinstance(method, MAE) and method.settings.targets != "pca"
        if is_drawn:
            believed = _paint(predictions, pixels, masks, trained)
        else:
            tokens, patches = encode_pool(trained, pool, pool_idx)
            believed = patches[find_neighbours(predictions, tokens, 1).idx.squeeze(1)]
    filled = fill_patches(images, masks, believed, recipe.model.patch_size)
    return Beliefs(
        images=_channels_last(images),
        filled=_channels_last(filled),
        context_mask=mark_patches(masks.context_idx, recipe.grid),
        target_mask=mark_patches(masks.target_idx.flatten(1), recipe.grid),
        is_drawn=is_drawn,
    )


def encode_pool(
    trained: TrainedMethod, pool: ImageSource, pool_idx: Int64[np.ndarray, " candidates"]
) -> tuple[Float[Tensor, "patches dim"], UInt8[Tensor, "patches pixels"]]:
    """Targets of patches of images spread evenly over the candidates, and the patches' pixels, which are patchify's.

    Where a target encoder sees the whole image, every patch is taken; where it sees target patches alone, those of masks.
    """
    recipe, method = trained.recipe, trained.method
    assert isinstance(method, MaskedMethod)
    assert recipe.mask is not None
    sees_targets_alone = isinstance(method, IJEPA) and method.settings.target_input == "patches"
    num_patches = recipe.grid[0] * recipe.grid[1]
    num_images = max(min(MAX_POOL_IMAGES, MAX_POOL_PATCHES // num_patches), 1)
    chosen_idx = pool_idx[spread(len(pool_idx), num_images)]
    tokens, patches = [], []
    for step, (images, _, _) in enumerate(evaluation_batches(pool, recipe.data.size, batch_size=POOL_BATCH, indices=chosen_idx)):
        if not sees_targets_alone:
            masks = every_patch(len(images), num_patches)
        else:
            masks = sample_masks(recipe.mask, recipe.grid, len(images), seed=recipe.train.seed, step=step + 1)
        with torch.inference_mode():
            tokens.append(method.make_targets(_normalise(trained, images), masks)[masks.target_mask])
        pixels = patchify(images.float(), recipe.model.patch_size)
        cut = gather_tokens(pixels, masks.target_idx.flatten(1)).unflatten(1, masks.target_idx.shape[1:])
        patches.append(cut[masks.target_mask].to(torch.uint8))
    return torch.cat(tokens), torch.cat(patches)


def fill_patches(
    images: UInt8[Tensor, "batch channels height width"],
    masks: Masks,
    patches: UInt8[Tensor, "targets pixels"],
    patch_size: int,
) -> UInt8[Tensor, "batch channels height width"]:
    """The images with the real entries of target_idx, in order, replaced by patches; where blocks overlap the later one stays."""
    pixels = patchify(images.float(), patch_size)
    image_idx = torch.arange(len(images))[:, None, None].expand_as(masks.target_idx)[masks.target_mask]
    for image, patch, values in zip(image_idx, masks.target_idx[masks.target_mask], patches.float(), strict=True):
        pixels[image, patch] = values
    size = (images.shape[-2], images.shape[-1])
    return functional.fold(pixels.transpose(1, 2), size, patch_size, stride=patch_size).to(torch.uint8)


def _paint(
    predictions: Float[Tensor, "targets pixels"],
    pixels: Float[Tensor, "batch channels height width"],
    masks: Masks,
    trained: TrainedMethod,
) -> UInt8[Tensor, "targets pixels"]:
    """Predicted patches in grey levels, in patchify's order."""
    if getattr(trained.recipe.method, "targets", None) == "normalised_pixels":
        true = gather_tokens(patchify(pixels, trained.recipe.model.patch_size), masks.target_idx.flatten(1))
        true = true.unflatten(1, masks.target_idx.shape[1:])[masks.target_mask]
        variance, mean = torch.var_mean(true, dim=-1, keepdim=True)
        predictions = predictions * (variance + 1e-6).sqrt() + mean  # methods.targets.cut_pixels backwards
    area = trained.recipe.model.patch_size**2
    mean_row, std_row = (torch.tensor(values).repeat_interleave(area) for values in (trained.mean, trained.std))
    return (255 * (predictions * std_row + mean_row)).round().clamp(0, 255).to(torch.uint8)


def _normalise(
    trained: TrainedMethod, images: UInt8[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch channels height width"]:
    return normalise(images, torch.tensor(trained.mean).view(-1, 1, 1), torch.tensor(trained.std).view(-1, 1, 1))


def _channels_last(images: UInt8[Tensor, "batch channels height width"]) -> Pixels:
    pixels: Pixels = images.permute(0, 2, 3, 1).numpy()
    return pixels
