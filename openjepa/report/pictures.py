"""Pictures as pixels: masks, patch-PCA maps and nearest neighbours, as uint8 arrays and PNG bytes.

Patch-PCA maps show the first three principal components of patch features as red, green and blue, as in DINOv2 (Oquab et al.
2023, arXiv 2304.07193, figure 1), without its foreground threshold. Mask colours are Okabe and Ito's, which people with the
common kinds of colour blindness tell apart: blue for the context, warm colours for targets, grey for hidden patches.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from openjepa.masks import Masks

Pixels = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating]
Flags = npt.NDArray[np.bool_]

CONTEXT = (0, 114, 178)
UNSEEN = (205, 208, 212)
TARGETS = ((230, 159, 0), (213, 94, 0), (204, 121, 167), (240, 228, 66), (0, 158, 115))
MAX_THUMBNAIL_PX = 192
TINY_PX = 96  # below this a browser's smoothing would blur the pixels
PERCENTILES = (1.0, 99.0)  # a few odd patches do not wash out the others' colours


@dataclass(frozen=True)
class Neighbours:
    """Query images (q, H, W, C) and for each its k nearest training images (q, k, H, W, C), nearest first, all uint8.

    match_mask (q, k) is True where a neighbour has its query's class, None where classes are not known; cosines (q, k).
    is_held_out: the queries are not among the training images. num_searched: training images among which neighbours were sought.
    """

    query_images: Pixels
    neighbour_images: Pixels
    match_mask: Flags | None = None
    cosines: Floats | None = None
    is_held_out: bool = False
    num_searched: int | None = None


@dataclass(frozen=True)
class Beliefs:
    """Images (n, H, W, C) and the same with their hidden blocks as a predictor believes them to be, uint8.

    context_mask (n, h, w) is True where a patch is context, target_mask where it is in a hidden block. is_drawn: the predictor
    drew those pixels itself; else they are the real patches nearest to its predictions.
    """

    images: Pixels
    filled: Pixels
    context_mask: Flags
    target_mask: Flags
    is_drawn: bool


@dataclass(frozen=True)
class Pictures:
    """What the report shows of the trained encoder; None where a picture could not be made.

    pca_images (n, H, W, C) uint8 and pca_patches (n, h, w, D), of the same images; encoder says whose features they are.
    """

    pca_images: Pixels | None = None
    pca_patches: Floats | None = None
    neighbours: Neighbours | None = None
    encoder: str = "context"
    beliefs: Beliefs | None = None
    beliefs_problem: str = ""
    contact_sheet: bytes | None = None  # PNG


def colour_masks(masks: Masks, grid: tuple[int, int], num_images: int) -> list[Pixels]:
    """A picture of each of the first masks of a batch, as `draw_mask` makes it."""
    pictures = []
    for image in range(min(num_images, len(masks.context_idx))):
        context = masks.context_idx[image, : int(masks.context_lengths[image])].numpy()
        blocks = [
            row[: int(length)].numpy() for row, length in zip(masks.target_idx[image], masks.target_lengths[image], strict=True)
        ]
        pictures.append(draw_mask(context, blocks, grid))
    return pictures


def draw_mask(context_idx: Integers, blocks: Sequence[Integers], grid: tuple[int, int], cell_px: int | None = None) -> Pixels:
    """One mask as (h * cell_px, w * cell_px, 4) RGBA: context blue, unseen grey, each target block a colour and an outline of its
    own, later blocks over earlier ones; a see-through line between patches lets any page shine through.
    """
    height, width = grid
    cell = cell_px or max(8, 336 // max(grid))
    colours = np.full((height * width, 3), UNSEEN)
    colours[context_idx] = CONTEXT
    for number, block in enumerate(blocks):
        colours[block] = TARGETS[number % len(TARGETS)]
    rgba = np.concatenate([colours, np.full((height * width, 1), 255)], axis=1).astype(np.uint8)
    picture = rgba.reshape(height, width, 4).repeat(cell, axis=0).repeat(cell, axis=1)
    picture[::cell, :, 3] = 0
    picture[:, ::cell, 3] = 0
    for number, block in enumerate(blocks):
        inside = np.zeros(height * width, dtype=bool)
        inside[block] = True
        _outline(picture, inside.reshape(grid), TARGETS[number % len(TARGETS)], cell)
    return picture


def _outline(picture: Pixels, inside: Flags, colour: tuple[int, int, int], cell: int) -> None:
    """Paint the edges of a set of patches, an eighth of a patch wide, in a darker shade of its colour."""
    dark = np.array([*(0.62 * np.array(colour)), 255]).astype(np.uint8)
    wide = max(cell // 8, 1)
    padded = np.pad(inside, 1)
    for row, column in np.argwhere(inside):
        top, left = row * cell, column * cell
        square = picture[top : top + cell, left : left + cell]
        for is_inside, edge in (
            (padded[row, column + 1], square[:wide]),
            (padded[row + 2, column + 1], square[-wide:]),
            (padded[row + 1, column], square[:, :wide]),
            (padded[row + 1, column + 2], square[:, -wide:]),
        ):
            if not is_inside:
                edge[...] = dark


def mark_patches(idx: Int64[Tensor, "batch entries"], grid: tuple[int, int]) -> Flags:
    """(B, h, w), True at each image's indices; padding repeats a real one and changes nothing."""
    marked: Flags = torch.zeros(len(idx), grid[0] * grid[1], dtype=torch.bool).scatter_(1, idx, True).numpy()
    return marked.reshape(-1, *grid)


def draw_patches(image: Pixels, shown_mask: Flags, outlined_mask: Flags) -> Pixels:
    """An image (H, W, C) as RGBA; patches (h, w) that are not shown are grey as unseen ones, and a line goes around some."""
    picture = as_rgb(image)
    picture = enlarge(picture, MAX_THUMBNAIL_PX) if max(picture.shape[:2]) < MAX_THUMBNAIL_PX else picture.copy()
    cell = len(picture) // len(shown_mask)
    hidden = np.kron(~shown_mask, np.ones((cell, cell), dtype=bool))
    picture[hidden] = UNSEEN
    rgba = np.concatenate([picture, np.full((*picture.shape[:2], 1), 255, np.uint8)], axis=2)
    _outline(rgba, outlined_mask, TARGETS[0], cell)
    return rgba


def colour_patches(patches: Floats) -> Pixels:
    """First three principal components of all patches together, (n, h, w, D) to RGB (n, h, w, 3).

    Each component runs from its 1st to its 99th percentile. Its sign is the one that makes its largest loading positive, so that
    the same features give the same colours; a component without variance is mid-grey. Raises ValueError if a value is not finite.
    """
    if not np.isfinite(patches).all():
        raise ValueError("the patch features are not finite, so they have no principal components")
    flat = patches.reshape(-1, patches.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    variances, directions = np.linalg.eigh(flat.T @ flat)
    colours = np.full((len(flat), 3), 0.5)
    for number in range(min(3, flat.shape[1])):
        direction = directions[:, -1 - number]
        if variances[-1 - number] <= 1e-9 * max(variances[-1], 1e-9):
            continue
        projected = flat @ (direction * np.sign(direction[np.abs(direction).argmax()]))
        low, high = np.percentile(projected, PERCENTILES)
        if high - low <= 1e-9 * np.ptp(projected):
            low, high = projected.min(), projected.max()
        colours[:, number] = np.clip((projected - low) / (high - low), 0, 1)
    return (255 * colours).round().astype(np.uint8).reshape(*patches.shape[:-1], 3)


def enlarge(picture: Pixels, height: int) -> Pixels:
    """Every pixel as a square, so that the picture is about `height` high and no viewer blurs it."""
    times = max(round(height / len(picture)), 1)
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def as_rgb(image: Pixels) -> Pixels:
    """Grey, RGB or many-channelled (H, W), (H, W, C) as (H, W, 3): the first three channels, or the first one thrice."""
    image = image[..., None] if image.ndim == 2 else image
    return image[..., :3] if image.shape[-1] >= 3 else image[..., :1].repeat(3, axis=-1)


def thumbnail(image: Pixels) -> Pixels:
    """The image as RGB: a photo shrunk so that its longer side is at most 192 pixels, a tiny one enlarged pixel by pixel."""
    if max(image.shape[:2]) < TINY_PX:
        return enlarge(as_rgb(image), MAX_THUMBNAIL_PX)
    picture = Image.fromarray(np.ascontiguousarray(as_rgb(image)))
    picture.thumbnail((MAX_THUMBNAIL_PX, MAX_THUMBNAIL_PX), Image.Resampling.BOX)
    return np.asarray(picture)


def encode_png(picture: Pixels) -> bytes:
    """PNG bytes of (H, W, 3) RGB or (H, W, 4) RGBA."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def to_data_uri(picture: Pixels) -> str:
    """The picture as a data: address, so that a page needs no other file."""
    return to_data_address(encode_png(picture))


def to_data_address(png: bytes) -> str:
    """A PNG as a data: address."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
