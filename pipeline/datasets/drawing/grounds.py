"""The seven grounds, each an RGB image that fills the picture, the pebbles on them, and where two of them meet.

A ground is a smooth texture computed by numpy at the final resolution, with crisp details drawn over it at SUPERSAMPLE
times that resolution.
"""

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from pipeline.datasets.drawing.painting import (
    SUPERSAMPLE,
    Array,
    Colour,
    Part,
    Parts,
    box,
    cast_shadow,
    fill,
    hsv,
    near,
    paint,
    pick,
    place,
    rock,
    rotation,
    shade,
)

_SKIES = (  # hue, saturation and value at the top and at the bottom
    ((0.58, 0.55, 0.85), (0.54, 0.22, 0.97)),
    ((0.54, 0.42, 0.88), (0.5, 0.12, 0.96)),
    ((0.61, 0.6, 0.72), (0.58, 0.35, 0.92)),
    ((0.6, 0.42, 0.75), (0.07, 0.2, 0.97)),
)


# ---- textures --------------------------------------------------------------------------------------------------------


def _noise(rng: Generator, size: int, cells: int) -> Array:
    """Smooth noise (size, size) of mean about 0 and peak about 1; `cells` bumps fit along each side."""
    values = Image.fromarray(rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32))
    return np.asarray(values.resize((size, size), Image.Resampling.BICUBIC))


def _mix(first: Colour, second: Colour, weight: Array) -> Array:
    """Blend (H, W, 3) in 0..255: `first` where weight (H, W) is 0, `second` where it is 1."""
    start, end = np.array(first, np.float32), np.array(second, np.float32)
    return start + np.clip(weight, 0, 1)[..., None] * (end - start)


def _grid(size: int) -> tuple[Array, Array]:
    """Row of x (1, W) and column of y (H, 1), both 0..1."""
    axis: Array = (np.arange(size, dtype=np.float32) + 0.5) / np.float32(size)
    return axis[None, :], axis[:, None]


def _canvas(texture: Array) -> Image.Image:
    """The texture (H, W, 3), enlarged to where details are drawn."""
    image = Image.fromarray(np.clip(texture, 0, 255).astype(np.uint8))
    side = SUPERSAMPLE * texture.shape[0]
    return image.resize((side, side), Image.Resampling.BILINEAR)


def _ridges(rng: Generator, size: int, depth: float) -> Array:
    """Shadow (H, W) in 0..1 behind three or four wavy crests, darkest just below each and fading over `depth`."""
    x, y = _grid(size)
    shadow: Array = np.zeros((size, size), np.float32)
    count = int(rng.integers(3, 5))
    for start in (np.arange(count) + rng.uniform(-0.3, 0.3, count)) / count:
        crest = start + rng.uniform(-0.2, 0.2) * (x - 0.5)
        crest = crest + rng.uniform(0.03, 0.08) * np.sin(2 * np.pi * (rng.uniform(0.6, 1.5) * x + rng.random()))
        below = y - crest
        cover = np.clip(size * below + 0.5, 0, 1)  # a crest one pixel soft
        fading = np.exp(-np.maximum(below, 0) / (depth * rng.uniform(0.7, 1.3)))
        shadow = (cover * fading + (1 - cover) * 0.75 * shadow).astype(np.float32)
    return shadow


# ---- grounds ---------------------------------------------------------------------------------------------------------


def neutral(rng: Generator, size: int) -> Image.Image:
    """Plain paper: the ground of no class."""
    x, y = _grid(size)
    slope = rng.uniform(-0.5, 0.5, 2)
    weight = 0.5 + slope[0] * (x - 0.5) + slope[1] * (y - 0.5) + 0.12 * _noise(rng, size, 5)
    paper = _mix(near(rng, 0.1, 0.12, 0.82), near(rng, 0.1, 0.07, 0.68), weight)
    return _canvas(paper + rng.normal(0, 3.5, (size, size, 1)).astype(np.float32))


def sky(rng: Generator, size: int) -> Image.Image:
    """Clear or towards evening, with clouds flat at their feet."""
    top, bottom = pick(rng, _SKIES)
    _, y = _grid(size)
    image = _canvas(_mix(near(rng, *top), near(rng, *bottom), y + 0.12 * _noise(rng, size, 3)))
    side = image.width
    clouds = Image.new("L", image.size)
    draw = ImageDraw.Draw(clouds)
    for _ in range(int(rng.integers(3, 7))):
        x, foot, width = rng.uniform(0, side), rng.uniform(0.1, 1) * side, rng.uniform(0.12, 0.26) * side
        for offset in np.linspace(-1, 1, 6):
            puff, middle = width * rng.uniform(0.25, 0.42) * (1.25 - abs(offset)), x + offset * width
            box = (middle - puff, foot - 1.5 * puff, middle + puff, foot + 0.75 * puff)
            draw.chord(box, 150, 30, fill=225)
        box = (x - 1.15 * width, foot - 0.16 * width, x + 1.15 * width, foot + 0.1 * width)
        draw.rounded_rectangle(box, 0.03 * side, fill=225)
    image.paste((255, 253, 248), mask=clouds.filter(ImageFilter.BoxBlur(0.008 * side)))
    return image


def water(rng: Generator, size: int) -> Image.Image:
    """Swell with small white crests."""
    hue = rng.uniform(0.47, 0.6)
    deep, light = near(rng, hue, 0.68, 0.55), near(rng, hue - 0.02, 0.5, 0.74)
    x, y = _grid(size)
    swell = np.sin(2 * np.pi * (rng.uniform(9, 13) * (y + 0.1) ** 0.75 + 0.8 * _noise(rng, size, 4) + 0.5 * x))
    texture = _mix(deep, light, 0.35 + 0.4 * y + 0.18 * swell + 0.12 * _noise(rng, size, 3))
    image = _canvas(texture)
    draw, side = ImageDraw.Draw(image), image.width
    for _ in range(int(rng.integers(28, 46))):
        left, top = rng.uniform(-0.1, 1, 2) * side
        width = side * rng.uniform(0.03, 0.055) * (0.7 + 0.6 * max(top, 0) / side)
        crest = shade(light, rng.uniform(1.25, 1.75))
        for k in range(int(rng.integers(1, 4))):
            draw.arc((left + k * width, top, left + (k + 1) * width, top + 0.55 * width), 15, 165, fill=crest, width=3)
    return image


def road(rng: Generator, size: int) -> Image.Image:
    """Speckled asphalt, two dashed lines, and a pavement behind a kerb; it mostly runs across the picture."""
    asphalt = hsv(rng.random(), rng.uniform(0.02, 0.12), rng.uniform(0.36, 0.52))
    speckle = rng.normal(0, 9, (size, size, 1)).astype(np.float32)
    image = _canvas(_mix(shade(asphalt, 0.88), shade(asphalt, 1.1), 0.5 + 0.5 * _noise(rng, size, 5)) + speckle)
    turn = rotation(rng.uniform(-18, 18) + pick(rng, (0, 0, 0, 90, 180, 180, 180, 270)))
    kerb = rng.uniform(0.08, 0.2)
    parts = _pavement(rng, kerb, shade(asphalt, 0.7)) + _lanes(rng, kerb)
    fill(image, [Part((part.points - 0.5) @ turn + 0.5, part.colour) for part in parts])
    return image


def _pavement(rng: Generator, kerb: float, gutter: Colour) -> Parts:
    slabs, stone = near(rng, 0.09, 0.1, 0.72), pick(rng, ((178, 92, 82), (122, 122, 126), (86, 108, 140)))
    parts = [box(-0.5, -0.6, 1.5, kerb, slabs), box(-0.5, kerb, 1.5, kerb + 0.055, gutter)]
    for k in range(-4, 12):
        parts.append(box(k / 8, -0.6, k / 8 + 0.008, kerb, shade(slabs, 0.82)))
        parts.append(box(k / 8, kerb, (k + 1) / 8, kerb + 0.035, stone if k % 2 else (226, 224, 218)))
    return parts


def _lanes(rng: Generator, kerb: float) -> Parts:
    colour = pick(rng, ((238, 236, 226), (238, 236, 226), (236, 196, 92)))
    lane, dash, shift = rng.uniform(0.3, 0.42), rng.uniform(0.1, 0.16), rng.uniform(0, 0.2)
    starts = np.arange(-0.6, 1.5, 1.9 * dash) + shift
    rows = (kerb + lane, kerb + 2 * lane)
    return [box(start, row, start + dash, row + 0.028, colour) for row in rows for start in starts]


def meadow(rng: Generator, size: int) -> Image.Image:
    """Blades of grass and a few flowers."""
    hue = rng.uniform(0.2, 0.35)
    grass, sunny = near(rng, hue, 0.58, 0.52), near(rng, hue - 0.03, 0.55, 0.68)
    _, y = _grid(size)
    image = _canvas(_mix(grass, sunny, 0.7 - 0.4 * y + 0.45 * _noise(rng, size, 6)))
    draw, side = ImageDraw.Draw(image), image.width
    tints = [shade(grass, 0.82), shade(grass, 1.12), shade(sunny, 1.12), shade(sunny, 1.3)]
    count = 330
    roots = rng.uniform(0, 1.03, (count, 2)) * side
    tips = roots + np.stack((rng.uniform(-0.014, 0.014, count), -rng.uniform(0.02, 0.05, count)), 1) * side
    for root, tip, tint in zip(roots.tolist(), tips.tolist(), rng.integers(4, size=count).tolist(), strict=True):
        draw.polygon((root[0] - 2.2, root[1], *tip, root[0] + 2.2, root[1]), fill=tints[tint])
    petals = [hsv(rng.random(), rng.uniform(0.1, 0.5), 0.96) for _ in range(2)]
    for _ in range(int(rng.integers(8, 26))):
        (x, top), radius, petal = rng.uniform(0, side, 2), side * rng.uniform(0.006, 0.011), pick(rng, petals)
        for angle in np.arange(5) * 2 * np.pi / 5:
            _dot(draw, x + 1.2 * radius * np.cos(angle), top + 1.2 * radius * np.sin(angle), radius, petal)
        _dot(draw, x, top, 0.8 * radius, (240, 196, 72))
    return image


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: Colour) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def desert(rng: Generator, size: int) -> Image.Image:
    """Rippled sand between dunes."""
    hue = rng.uniform(0.06, 0.125)
    sand, dusk = near(rng, hue, 0.42, 0.93), near(rng, hue - 0.02, 0.55, 0.74)
    x, y = _grid(size)
    ripples = np.sin(2 * np.pi * (rng.uniform(16, 24) * y + rng.uniform(-5, 5) * x + 1.3 * _noise(rng, size, 4)))
    texture = _mix(sand, dusk, 0.8 * _ridges(rng, size, 0.16) + 0.11 * ripples + 0.08)
    return _canvas(texture + rng.normal(0, 3.5, (size, size, 1)).astype(np.float32))


def snow(rng: Generator, size: int) -> Image.Image:
    """Drifts with blue shadows and sparkles."""
    white = hsv(rng.uniform(0.5, 0.7), rng.uniform(0.01, 0.05), rng.uniform(0.92, 0.98))
    shadow = hsv(rng.uniform(0.56, 0.68), rng.uniform(0.16, 0.27), rng.uniform(0.8, 0.9))
    image = _canvas(_mix(white, shadow, 0.85 * _ridges(rng, size, 0.2) + 0.1 * _noise(rng, size, 6)))
    draw, side = ImageDraw.Draw(image), image.width
    for x, y, radius in zip(*rng.uniform(0, side, (2, 60)), rng.uniform(1.5, 3.5, 60), strict=True):
        _dot(draw, x, y, radius, (255, 255, 255))
    return image


# ---- pebbles, and two grounds in one picture -------------------------------------------------------------------------


def scatter_stones(rng: Generator, image: Image.Image) -> None:
    """Draw up to four pebbles on a ground, in place."""
    for _ in range(int(rng.integers(0, 5))):
        pebble = place(rock(rng), *rng.uniform(0, 1, 2), longest=rng.uniform(0.02, 0.05), angle=0, mirrored=False)
        paint(image, pebble, tilt=0.0)


def join(rng: Generator, first: Image.Image, second: Image.Image, upright: bool, border: float) -> None:
    """Lay `second` over the right (upright) or lower part of `first`, in place, like paper cut along a wavy line."""
    along = np.linspace(-0.05, 1.05, 48)
    across = border + rng.uniform(-0.12, 0.12) * (along - 0.5)
    across += rng.uniform(0, 0.03) * np.sin(2 * np.pi * (rng.uniform(1, 3) * along + rng.random()))
    edge = np.stack((across, along) if upright else (along, across), 1) * first.width
    corners = [(1.1, 1.05), (1.1, -0.05)] if upright else [(1.05, 1.1), (-0.05, 1.1)]
    outline = np.concatenate((edge, np.array(corners) * first.width))
    sheet = Image.new("L", first.size)
    ImageDraw.Draw(sheet).polygon(outline.ravel().tolist(), fill=255)
    cast_shadow(first, sheet, (0, 0))
    first.paste(second, mask=sheet)
    ImageDraw.Draw(first).line(edge.ravel().tolist(), fill=(250, 247, 238), width=round(0.012 * first.width))
