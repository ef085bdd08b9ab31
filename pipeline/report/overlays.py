"""Pictures of what a network sees, pixel by pixel: numpy arrays in and out. No torch, no files."""

from collections.abc import Iterable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.voc import voc_palette

Picture = NDArray[np.uint8]  # (H, W, 3) RGB
HEAT_MAP = "inferno"  # black to yellow: its lightness alone tells the value, on grey paper too
OUTLINE = (0, 229, 255)  # of the true mask; no colour of HEAT_MAP comes near it


def attention_overlay(image: Picture, attention: NDArray[np.floating]) -> Picture:
    """Attention (H, W) in [0, 1] over the image: dark where it is low, bright where it is high."""
    opacity = 0.3 + 0.4 * attention.clip(0, 1)[..., None]
    mixed: Picture = (image * (1 - opacity) + heat(attention) * opacity).round().astype(np.uint8)
    return mixed


def heat(values: NDArray[np.floating]) -> Picture:
    """Values (H, W) in [0, 1] in the colours of HEAT_MAP."""
    return _colour_map()[(values.clip(0, 1) * 255).astype(np.uint8)]


def outlined(picture: Picture, mask: NDArray[np.bool_], width: int = 1) -> Picture:
    """The picture with the inner border of a mask (H, W) drawn over it in OUTLINE, `width` pixels wide."""
    inside = np.pad(mask, 1, constant_values=False)
    for _ in range(width):
        beside = (inside[:-2, 1:-1], inside[2:, 1:-1], inside[1:-1, :-2], inside[1:-1, 2:])
        inside = np.pad(np.logical_and.reduce((inside[1:-1, 1:-1], *beside)), 1, constant_values=False)
    drawn = picture.copy()
    drawn[mask & ~inside[1:-1, 1:-1]] = OUTLINE
    return drawn


def segmentation_overlay(image: Picture, classes: NDArray[np.integer], opacity: float = 0.65) -> Picture:
    """Class values (H, W), 0 background and 255 void, in VOC's colours over the image."""
    cover = np.where(classes == 0, opacity * 0.5, opacity)[..., None]
    mixed: Picture = (image * (1 - cover) + class_colours()[classes] * cover).round().astype(np.uint8)
    return mixed


def feature_maps(features: NDArray[np.floating], size: tuple[int, int], columns: int = 4) -> Picture:
    """The strongest channels of (K, h, w) features as grey tiles, each scaled to its own maximum; (*size, 3)."""
    strongest = np.argsort(-features.mean(axis=(1, 2)), kind="stable")[: columns**2]
    canvas = Image.new("RGB", (size[1], size[0]), "white")
    height, width = (side // columns for side in size)
    for position, channel in enumerate(strongest):
        scaled = features[channel] / max(float(features[channel].max()), 1e-12)
        tile = Image.fromarray((scaled.clip(0, 1) * 255).astype(np.uint8))
        tile = tile.resize((max(width - 1, 1), max(height - 1, 1)), Image.Resampling.BILINEAR)
        canvas.paste(tile.convert("RGB"), ((position % columns) * width, (position // columns) * height))
    return np.asarray(canvas)


@cache
def class_colours() -> Picture:
    """(256, 3): the colour of each class value."""
    return np.array(voc_palette(), dtype=np.uint8).reshape(-1, 3)


def hex_colour(colour: Iterable[int]) -> str:
    """Red, green and blue of 0 to 255 as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*map(int, colour))


@cache
def _colour_map() -> Picture:
    import matplotlib

    colours: Picture = (matplotlib.colormaps[HEAT_MAP](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)
    return colours
