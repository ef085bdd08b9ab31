"""Pictures of what a network sees: numpy arrays in, PIL images out. No torch, no files."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.data.voc import voc_palette

Picture = NDArray[np.uint8]  # (H, W, 3) RGB
MARGIN = 4  # pixels between the pictures of a panel
LABEL_SIZE = 11  # pixels


def attention_overlay(image: Picture, attention: NDArray[np.floating]) -> Picture:
    """Attention (H, W) in [0, 1] over the image: cold where it is low, warm where it is high."""
    heat = _colour_map()[(attention.clip(0, 1) * 255).astype(np.uint8)]
    opacity = 0.25 + 0.5 * attention.clip(0, 1)[..., None]
    mixed: Picture = (image * (1 - opacity) + heat * opacity).round().astype(np.uint8)
    return mixed


def segmentation_overlay(image: Picture, classes: NDArray[np.integer], opacity: float = 0.65) -> Picture:
    """Class values (H, W), 0 background and 255 void, in VOC's colours over the image."""
    colours = np.array(list(voc_palette()), dtype=np.uint8).reshape(-1, 3)[classes]
    cover = np.where(classes == 0, opacity * 0.5, opacity)[..., None]
    mixed: Picture = (image * (1 - cover) + colours * cover).round().astype(np.uint8)
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


def panel(
    rows: Sequence[Sequence[Picture]], titles: Sequence[str], labels: Sequence[str], scale: int = 1
) -> Image.Image:
    """Pictures in a grid with a title over each column and a label left of each row.

    Args:
        rows: pictures, each at the top left of a cell with room for the largest.
        scale: screen pixels per picture pixel.
    """
    height, width = (scale * max(picture.shape[axis] for row in rows for picture in row) for axis in (0, 1))
    left, top = _text_width(labels) + 2 * MARGIN, LABEL_SIZE + 2 * MARGIN
    size = (left + len(titles) * (width + MARGIN), top + len(rows) * (height + MARGIN))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        draw.text((left + column * (width + MARGIN), MARGIN), title, fill="black", font=_font())
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = top + number * (height + MARGIN)
        draw.multiline_text((MARGIN, y), label.replace(" ", "\n"), fill="black", font=_font())
        for column, picture in enumerate(row):
            size = (scale * picture.shape[1], scale * picture.shape[0])
            resized = Image.fromarray(picture).resize(size, Image.Resampling.NEAREST)
            canvas.paste(resized, (left + column * (width + MARGIN), y))
    return canvas


@cache
def _colour_map() -> Picture:
    import matplotlib

    colours: Picture = (matplotlib.colormaps["turbo"](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)
    return colours


@cache
def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(LABEL_SIZE)


def _text_width(labels: Sequence[str]) -> int:
    return max((int(_font().getlength(word)) for label in labels for word in label.split()), default=0)
