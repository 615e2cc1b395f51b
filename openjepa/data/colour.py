"""Colour changes of views, on uint8 (H, W, C).

Brightness, contrast, saturation and hue as in SimCLR (Chen et al. 2020, arXiv 2002.05709, appendix A), in random order;
blur and solarize as in BYOL (Grill et al. 2020, arXiv 2006.07733, appendix B). Images without three channels have no
saturation and no hue. Hue turns in steps of 1/256.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageFilter

from openjepa.data.decode import Pixels

BLUR_SIGMA_PX = (0.1, 2.0)
SOLARIZE_FROM = 128
Grey = Float32[np.ndarray, "height width 1"]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow and torchvision turn colour to grey


def jitter_colour(view: Pixels, strengths: tuple[float, float, float, float], generator: np.random.Generator) -> Pixels:
    """Brightness, contrast, saturation and hue, each changed by a random factor, in random order.

    strengths: factors lie in 1 - strength (at least 0) to 1 + strength; hue turns by up to its strength, a share of a full turn.
    """
    changes: list[Callable[[Pixels, float], Pixels]] = [adjust_brightness, adjust_contrast]
    if view.shape[2] == 3:
        changes += [adjust_saturation, adjust_hue]
    for position in generator.permutation(len(changes)):
        change, strength = changes[position], strengths[position]
        if change is adjust_hue:
            view = change(view, generator.uniform(-strength, strength))
        else:
            view = change(view, generator.uniform(max(1 - strength, 0), 1 + strength))
    return view


def remove_colour(view: Pixels) -> Pixels:
    """The view in grey, with as many channels."""
    return np.broadcast_to(_grey(view).astype(np.uint8), view.shape)


def adjust_brightness(view: Pixels, factor: float) -> Pixels:
    """0 is black, 1 the view itself, 2 twice as bright."""
    return _mix(view, np.float32(0), factor)


def adjust_contrast(view: Pixels, factor: float) -> Pixels:
    """0 is the view's mean grey, 1 the view itself."""
    return _mix(view, np.rint(_grey(view).mean()), factor)


def adjust_saturation(view: Pixels, factor: float) -> Pixels:
    """0 is a grey picture, 1 the view itself. Three channels."""
    return _mix(view, _grey(view), factor)


def adjust_hue(view: Pixels, turn: float) -> Pixels:
    """Turn the colour circle by a share of a full turn, -0.5 to 0.5. Three channels."""
    hue, saturation, value = Image.fromarray(view).convert("HSV").split()
    turned = np.asarray(hue) + np.uint8(round(turn * 255) % 256)  # uint8 wraps as the circle does
    return np.asarray(Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB"))


def blur(view: Pixels, generator: np.random.Generator) -> Pixels:
    """Gaussian blur with a random sigma in pixels."""
    gaussian = ImageFilter.GaussianBlur(generator.uniform(*BLUR_SIGMA_PX))
    bands = [Image.fromarray(view[:, :, channel]).filter(gaussian) for channel in range(view.shape[2])]
    return np.stack([np.asarray(band) for band in bands], axis=2)


def solarize(view: Pixels) -> Pixels:
    """Invert the bright half of the grey levels."""
    return np.where(view >= SOLARIZE_FROM, 255 - view, view)


def _grey(view: Pixels) -> Grey:
    """Brightness (H, W, 1) as the eye weighs three channels, or the mean of any other number."""
    weights = LUMA if view.shape[2] == 3 else np.full(view.shape[2], 1 / view.shape[2], np.float32)
    grey: Grey = np.rint(view @ weights)[:, :, None]
    return grey


def _mix(view: Pixels, other: Grey | np.float32, factor: float) -> Pixels:
    """The view times the factor plus the other times the rest, kept within 0 to 255."""
    mixed: Grey = np.float32(factor) * view + np.float32(1 - factor) * other
    levels: Pixels = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    return levels
