"""Pictures in a grid, with titles, labels and a key of what the colours say. PIL images out; no torch, no files."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.data.voc import IGNORE_INDEX
from pipeline.report.overlays import OUTLINE, Picture, class_colours, heat

MARGIN = 4  # pixels between the pictures of a panel
LEAST_LETTERS, LETTER_SHARE = 11, 0.055  # pixels; share of a picture's longer side, so that letters grow with it
INK = "#222222"


class Entry(NamedTuple):
    """One colour of the key and what it says; a colour bar of attention where there is none."""

    text: str
    colour: tuple[int, int, int] | None


TRUTH = Entry("outline of the true mask", OUTLINE)


def attention_entry(layer: str) -> Entry:
    """What the colours of attention at a layer say."""
    return Entry(f"attention at {layer}, as a share of the map's maximum", None)


def class_entries(masks: Iterable[NDArray[np.integer]], class_names: Sequence[str]) -> list[Entry]:
    """What the colours in some segmentations say: the classes that occur, and void if it does."""
    found = sorted({int(value) for mask in masks for value in np.unique(mask)} - {0})
    names = {IGNORE_INDEX: "void, not scored", **dict(enumerate(class_names, start=1))}
    colours = {value: class_colours()[value].tolist() for value in found}
    return [Entry(names[value], (red, green, blue)) for value, (red, green, blue) in colours.items()]


def panel(
    rows: Sequence[Sequence[Picture]],
    titles: Sequence[str],
    labels: Sequence[str],
    scale: int = 1,
    key: Sequence[Entry] = (),
) -> Image.Image:
    """Pictures in a grid with a title over each column, a label left of each row and a key below.

    Args:
        rows: pictures, each at the top left of a cell with room for the largest.
        titles: broken between words where they are wider than a picture.
        scale: screen pixels per picture pixel.
    """
    height, width = (scale * max(picture.shape[axis] for row in rows for picture in row) for axis in (0, 1))
    letters = letter_size(max(height, width))
    heads = [_broken(title, width, letters) for title in titles]
    sides = [_broken(label, 0, letters) for label in labels]
    left = _size("\n".join(sides), letters)[0] + 2 * MARGIN
    top = max(_size(head, letters)[1] for head in heads) + 3 * MARGIN
    across = left + len(titles) * (width + MARGIN)
    places, below = _key_places(key, across, letters)
    canvas = Image.new("RGB", (across, top + len(rows) * (height + MARGIN) + below), "white")
    draw = ImageDraw.Draw(canvas)
    for column, head in enumerate(heads):
        y = top - 2 * MARGIN - _size(head, letters)[1]
        draw.multiline_text((left + column * (width + MARGIN), y), head, fill=INK, font=_font(letters))
    for number, (row, side) in enumerate(zip(rows, sides, strict=True)):
        y = top + number * (height + MARGIN)
        draw.multiline_text((MARGIN, y), side, fill=INK, font=_font(letters))
        for column, picture in enumerate(row):
            size = (scale * picture.shape[1], scale * picture.shape[0])
            resized = Image.fromarray(picture).resize(size, Image.Resampling.NEAREST)
            canvas.paste(resized, (left + column * (width + MARGIN), y))
    for entry, (x, y) in zip(key, places, strict=True):
        _draw_entry(canvas, entry, (x, canvas.height - below + y), letters)
    return canvas


def tiles(
    pictures: Sequence[Picture], captions: Sequence[str], columns: int, scale: int = 1, key: Sequence[Entry] = ()
) -> Image.Image:
    """Pictures in rows of `columns`, each below its caption; otherwise as `panel`."""
    each = [np.asarray(panel([[p]], [text], [""], scale)) for p, text in zip(pictures, captions, strict=True)]
    height = max(tile.shape[0] for tile in each)
    # Pictures stand on one line where one caption takes more lines than another.
    raised = [np.pad(tile, ((height - tile.shape[0], 0), (0, 0), (0, 0)), constant_values=255) for tile in each]
    rows = [raised[start : start + columns] for start in range(0, len(raised), columns)]
    return panel(rows, [""] * min(columns, len(raised)), [""] * len(rows), key=key)


def letter_size(side: int) -> int:
    """Pixels, for pictures whose longer side has `side` of them."""
    return max(LEAST_LETTERS, round(LETTER_SHARE * side))


def _key_places(key: Sequence[Entry], across: int, letters: int) -> tuple[list[tuple[int, int]], int]:
    """Where each entry goes, in lines that fit the width, and the height of all."""
    places, x, y = [], MARGIN, 2 * MARGIN
    for entry in key:
        width = _swatch(entry, letters) + _size(entry.text, letters)[0] + 6 * MARGIN
        if x > MARGIN and x + width > across:
            x, y = MARGIN, y + letters + 3 * MARGIN
        places.append((x, y))
        x += width
    return places, y + letters + 3 * MARGIN if key else 0


def _draw_entry(canvas: Image.Image, entry: Entry, place: tuple[int, int], letters: int) -> None:
    draw, (x, y), width = ImageDraw.Draw(canvas), place, _swatch(entry, letters)
    if entry.colour is None:
        ramp = np.tile(np.linspace(0, 1, 4 * letters), (letters, 1))
        digit = _size("0", letters)[0]
        draw.text((x, y), "0", fill=INK, font=_font(letters))
        canvas.paste(Image.fromarray(heat(ramp)), (x + digit + MARGIN, y))
        draw.text((x + digit + 2 * MARGIN + 4 * letters, y), "1", fill=INK, font=_font(letters))
    else:
        draw.rectangle((x, y, x + letters, y + letters), fill=entry.colour)
    draw.text((x + width + MARGIN, y), entry.text, fill=INK, font=_font(letters))


def _swatch(entry: Entry, letters: int) -> int:
    return letters if entry.colour is not None else 4 * letters + 2 * (_size("0", letters)[0] + MARGIN)


def _broken(text: str, width: int, letters: int) -> str:
    """The text in lines of at most `width` pixels, where its words allow that."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _size(longer, letters)[0] <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def _size(text: str, letters: int) -> tuple[int, int]:
    """Width and height in pixels; (0, 0) of no text."""
    if not text:
        return 0, 0
    _, _, right, bottom = _measure().multiline_textbbox((0, 0), text, font=_font(letters))
    return round(right), round(bottom)


@cache
def _measure() -> ImageDraw.ImageDraw:
    return ImageDraw.Draw(Image.new("RGB", (1, 1)))


@cache
def _font(letters: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(letters)
