"""Flat illustrations: colours, polygons and their parts, and how parts become pixels.

A drawing is a list of coloured polygons in units of its own, y pointing down; `place` moves it to image coordinates
(fractions of the image side) and `paint` draws it on a canvas of SUPERSAMPLE times the resolution of the final image.
"""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SUPERSAMPLE = 3  # polygons are drawn without anti-aliasing at this multiple of the image size, then shrunk

Colour = tuple[int, int, int]
Array = NDArray[np.floating]
T = TypeVar("T")


class Part(NamedTuple):
    """One filled polygon: points (N, 2) as (x, y), colour as RGB in 0..255."""

    points: Array
    colour: Colour


Parts = list[Part]

_SHADOW_STRENGTH = [round(0.42 * value) for value in range(256)]


# ---- colours ---------------------------------------------------------------------------------------------------------


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """RGB in 0..255 of a colour given in 0..1; the hue wraps around."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return round(255 * red), round(255 * green), round(255 * blue)


def shade(colour: Colour, factor: float) -> Colour:
    """Darker (factor below 1) or lighter (factor above 1, towards white)."""
    if factor <= 1:
        red, green, blue = (round(channel * factor) for channel in colour)
    else:
        red, green, blue = (round(255 - (255 - channel) * (2 - factor)) for channel in colour)
    return red, green, blue


def muted(rng: Generator) -> Colour:
    """A random body colour: any hue, never garish."""
    return hsv(rng.random(), rng.uniform(0.28, 0.6), rng.uniform(0.55, 0.9))


def near(rng: Generator, hue: float, saturation: float, value: float, hue_spread: float = 0.025) -> Colour:
    """A colour close to the given one; hue, saturation and value in 0..1, the hue within `hue_spread`."""
    jitter = rng.uniform(-1, 1, 3)
    return hsv(hue + hue_spread * jitter[0], saturation * (1 + 0.2 * jitter[1]), value * (1 + 0.07 * jitter[2]))


def pick(rng: Generator, options: Sequence[T]) -> T:
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


# ---- shapes ----------------------------------------------------------------------------------------------------------


def polygon(points: Sequence[tuple[float, float]], colour: Colour, rounding: int = 0) -> Part:
    """A part from its corners (x, y), each `rounding` cutting them once more."""
    corners = np.array(points, np.float32)
    for _ in range(rounding):  # Chaikin's corner cutting
        following = np.roll(corners, -1, axis=0)
        corners = np.stack((0.75 * corners + 0.25 * following, 0.25 * corners + 0.75 * following), 1).reshape(-1, 2)
    return Part(corners, colour)


def box(left: float, top: float, right: float, bottom: float, colour: Colour) -> Part:
    """An upright rectangle."""
    return polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)


def ellipse(x: float, y: float, x_radius: float, y_radius: float, colour: Colour) -> Part:
    """An upright ellipse from its centre and radii."""
    turn = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    return Part(np.stack((x + x_radius * np.cos(turn), y + y_radius * np.sin(turn)), 1).astype(np.float32), colour)


def stroke(start: tuple[float, float], end: tuple[float, float], width: float, colour: Colour) -> Part:
    """A thick line with round ends."""
    heading = np.arctan2(end[1] - start[1], end[0] - start[0])
    turn = np.linspace(-np.pi / 2, np.pi / 2, 9) + heading
    caps = [np.stack((np.cos(a), np.sin(a)), 1) * width / 2 for a in (turn, turn + np.pi)]
    return Part(np.concatenate((np.array(end) + caps[0], np.array(start) + caps[1])).astype(np.float32), colour)


def rock(rng: Generator) -> Parts:
    """Large, it stands before objects; small, it is a pebble on the ground."""
    colour = hsv(rng.random(), rng.uniform(0.02, 0.12), rng.uniform(0.4, 0.62))
    turns = np.linspace(0, 2 * np.pi, 9, endpoint=False)
    rim = [(np.cos(t) * (r := rng.uniform(0.42, 0.55)), 0.8 * r * np.sin(t)) for t in turns]
    lit = [(0.66 * x - 0.08, 0.6 * y - 0.12) for x, y in rim]
    return [polygon(rim, shade(colour, 0.8), 1), polygon(lit, shade(colour, 1.15), 1)]


# ---- from parts to pixels --------------------------------------------------------------------------------------------


def rotation(angle: float) -> Array:
    """Matrix (2, 2) that turns row vectors by `angle` degrees."""
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return np.array([[cos, sin], [-sin, cos]], np.float32)


def fill(image: Image.Image, parts: Parts) -> None:
    """Draw the parts in order; their points are fractions of the image side."""
    draw = ImageDraw.Draw(image)
    for part in parts:
        draw.polygon((part.points * image.width).ravel().tolist(), fill=part.colour)


def extent(parts: Parts) -> tuple[Array, Array]:
    """Upper left and lower right corner (2,) of the box around all parts."""
    points = np.concatenate([part.points for part in parts])
    low: Array = points.min(0)
    high: Array = points.max(0)
    return low, high


def place(parts: Parts, x: float, y: float, *, longest: float, angle: float, mirrored: bool) -> Parts:
    """Mirror, turn by `angle` degrees, and scale so that the box around the result is centred on (x, y) and its
    longest side is `longest`; all in fractions of the image side."""
    turn = rotation(angle)
    if mirrored:
        turn = np.array([[-1, 0], [0, 1]], np.float32) @ turn
    turned = [Part(part.points @ turn, part.colour) for part in parts]
    low, high = extent(turned)
    scale = longest / float((high - low).max())
    centre = np.array((x, y), np.float32)
    return [Part((part.points - (low + high) / 2) * scale + centre, part.colour) for part in turned]


def silhouette(parts: Parts, size: int) -> Image.Image:
    """Mask "L" (size, size), 255 where any part lies; parts in fractions of the image side."""
    mask = Image.new("L", (size, size))
    draw = ImageDraw.Draw(mask)
    for part in parts:
        draw.polygon((part.points * size).ravel().tolist(), fill=255)
    return mask


def outline(mask: Image.Image, width: int) -> NDArray[np.bool_]:
    """True (H, W) along the edge of what is not 0 in a mask "L": `width` pixels, an odd one on the outside."""
    outer = mask.filter(ImageFilter.MaxFilter(2 * ((width + 1) // 2) + 1))
    inner = mask.filter(ImageFilter.MinFilter(2 * (width // 2) + 1))
    return np.asarray(outer) > np.asarray(inner)


def paint(image: Image.Image, parts: Parts, *, tilt: float) -> None:
    """Draw the parts on the image in place, with a soft shadow, lit from above and, by `tilt` in -1..1, from a side."""
    low, high = extent(parts)
    side, margin = image.width, 0.03
    left, top = (int(v) for v in (low - margin) * side)
    width, height = (int(v) for v in (high - low + 2 * margin) * side)
    tile, mask = Image.new("RGB", (width, height)), Image.new("L", (width, height))
    on_tile, on_mask = ImageDraw.Draw(tile), ImageDraw.Draw(mask)
    for part in parts:
        points = (part.points * side - (left, top)).ravel().tolist()
        on_tile.polygon(points, fill=part.colour)
        on_mask.polygon(points, fill=255)
    cast_shadow(image, mask, (left - int(0.012 * side * tilt), top + int(0.014 * side)))
    image.paste(_lit(tile, tilt), (left, top), mask)


def cast_shadow(image: Image.Image, mask: Image.Image, corner: tuple[int, int]) -> None:
    """Darken the image in place below the mask "L", whose upper left corner is at `corner`, with soft edges."""
    shadow = mask.filter(ImageFilter.BoxBlur(0.011 * image.width)).point(_SHADOW_STRENGTH)
    image.paste((30, 32, 58), corner, shadow)


def _lit(tile: Image.Image, tilt: float) -> Image.Image:
    x, y = np.linspace(-1, 1, tile.width), np.linspace(-1, 1, tile.height)
    light = (1 - 0.12 * y[:, None] + 0.1 * tilt * x[None, :]).astype(np.float32)
    pixels = np.asarray(tile, np.float32) * light[..., None]
    return Image.fromarray(np.minimum(pixels, 255).astype(np.uint8))


def daylight(rng: Generator, image: Image.Image) -> Image.Image:
    """The brightness and warmth of the day, slightly uneven across the picture; the same for all classes."""
    slope, warmth = rng.uniform(-0.1, 0.1, 2), rng.uniform(-0.04, 0.04)
    axis = np.linspace(-0.5, 0.5, image.width, dtype=np.float32)
    light = rng.uniform(0.84, 1.06) + slope[0] * axis[None, :, None] + slope[1] * axis[:, None, None]
    pixels = np.asarray(image, np.float32) * light * np.array((1 + warmth, 1, 1 - warmth), np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
