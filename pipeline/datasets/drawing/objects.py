"""The six objects, and what may stand before them; only its shape says what an object is, its colours do not."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from pipeline.datasets.drawing.painting import (
    Colour,
    Parts,
    box,
    ellipse,
    extent,
    hsv,
    muted,
    near,
    pick,
    place,
    polygon,
    rock,
    shade,
    silhouette,
    stroke,
)

_INK: Colour = (52, 50, 58)
_GLASS: Colour = (190, 217, 226)
_WOOD: Colour = (128, 98, 74)
_OCCLUDED_SHARE = (0.1, 0.35)


def aeroplane(rng: Generator) -> Parts:
    """Seen from the side and a little from below, nose to the right; some have a propeller."""
    body, accent = muted(rng), muted(rng)
    girth, span, fin = rng.uniform(0.075, 0.105), rng.uniform(0.3, 0.42), rng.uniform(0.2, 0.27)
    sweep, far = rng.uniform(0.1, 0.24), 0.75 * span
    hull = [(-0.55, -0.05), (-0.3, -0.9 * girth), (0.3, -girth), (0.47, -0.6 * girth), (0.56, 0.2 * girth)]
    hull += [(0.4, girth), (0.1, 1.05 * girth), (-0.3, 0.7 * girth)]
    parts = [
        polygon([(0.15, -0.05), (-sweep, -far), (-sweep - 0.09, -far), (-0.1, -0.05)], shade(body, 0.7)),
        polygon([(-0.3, -0.04), (-0.44, -fin), (-0.54, -fin), (-0.51, -0.02)], accent),
        polygon(hull, body, 3),
        polygon([(-0.5, 0.0), (0.52, 0.3 * girth), (0.4, 0.6 * girth), (-0.4, 0.4 * girth)], shade(body, 1.35)),
        polygon([(0.36, -0.62 * girth), (0.43, -0.5 * girth), (0.47, -0.05 * girth), (0.37, -0.1 * girth)], _GLASS),
        polygon([(-0.36, 0.0), (-0.5, 0.14), (-0.57, 0.14), (-0.5, 0.0)], shade(accent, 0.85)),
        polygon([(0.17, 0.03), (-sweep + 0.02, span), (-sweep - 0.09, span), (-0.12, 0.03)], shade(accent, 0.85)),
    ]
    parts += [ellipse(x, -0.3 * girth, 0.018, 0.022, _INK) for x in np.linspace(-0.24, 0.26, int(rng.integers(4, 8)))]
    if rng.random() < 0.4:
        parts += [ellipse(0.56, 0.01, 0.014, 0.17, shade(accent, 0.6)), ellipse(0.56, 0.01, 0.03, 0.03, _INK)]
    return parts


def boat(rng: Generator) -> Parts:
    """A sailing boat or a steamer, bow to the right."""
    body, accent = muted(rng), muted(rng)
    bow, depth = rng.uniform(0.5, 0.6), rng.uniform(0.2, 0.27)
    keel = [(0.36, depth), (0.3, depth + 0.03), (-0.34, depth + 0.03)]
    return [
        *(_sails(rng) if rng.random() < 0.55 else _cabin(rng)),
        polygon([(-0.47, 0.0), (bow, -0.05), *keel], body),
        polygon([(-0.4, 0.6 * depth), (0.44, 0.6 * depth), *keel], accent),
        polygon([(-0.5, -0.02), (bow + 0.02, -0.08), (bow, -0.02), (-0.48, 0.04)], shade(body, 1.5)),
    ]


def _sails(rng: Generator) -> Parts:
    colour, height, mast = muted(rng), rng.uniform(0.6, 0.85), rng.uniform(-0.08, 0.1)
    cloth, top = shade(colour, rng.uniform(1.0, 1.7)), -height - 0.05
    main = [(0.03, -0.93 * height), (0.2, -0.5 * height), (0.4, -0.12), (0.03, -0.1)]
    jib = [(-0.03, -0.85 * height), (-0.16, -0.45 * height), (-0.36, -0.1), (-0.03, -0.1)]
    return [
        polygon([(mast + x, y) for x, y in main], cloth),
        polygon([(mast + x, y) for x, y in jib], shade(cloth, 0.82)),
        polygon([(mast, top), (mast - 0.14, top + 0.04), (mast, top + 0.08)], colour),
        stroke((mast, 0), (mast, top), 0.035, _WOOD),
    ]


def _cabin(rng: Generator) -> Parts:
    wall, funnel = shade(muted(rng), 1.4), muted(rng)
    left, right, roof = rng.uniform(-0.38, -0.28), rng.uniform(0.15, 0.28), -rng.uniform(0.2, 0.28)
    stack = left + rng.uniform(0.12, 0.22)
    parts = [
        box(stack, roof - 0.22, stack + 0.13, roof, funnel),
        box(stack, roof - 0.17, stack + 0.13, roof - 0.12, shade(funnel, 1.6)),
        polygon([(left, 0.02), (left, roof), (right - 0.05, roof), (right, 0.02)], wall),
        stroke((left - 0.02, roof), (right - 0.02, roof), 0.04, shade(wall, 0.65)),
    ]
    return parts + [ellipse(x, 0.5 * roof, 0.04, 0.045, _INK) for x in np.linspace(left + 0.09, right - 0.1, 3)]


def car(rng: Generator) -> Parts:
    """Seen from the side, front to the right; from hatchback to saloon."""
    body, trim = muted(rng), rng.random() < 0.5
    roof, boot, wheel = rng.uniform(0.2, 0.3), rng.uniform(0.0, 0.16), rng.uniform(0.095, 0.12)
    rear, front = -0.46 + boot, rng.uniform(0.2, 0.3)
    hull = [(-0.53, 0.0), (-0.4, -0.05), (0.3, -0.04), (0.53, 0.02), (0.56, 0.2), (0.45, 0.22), (-0.5, 0.22)]
    cabin = [(rear, 0.02), (rear + 0.07, -roof), (front - 0.16, -roof), (front, 0.02)]
    parts = [
        polygon(cabin, shade(body, 0.88) if trim else body, 1),
        polygon(hull, body, 2),
        *_car_windows(rear, front, roof),
        stroke((-0.48, 0.16), (0.48, 0.16), 0.035, shade(body, 0.72)),
        stroke((0.04, 0.05), (0.1, 0.05), 0.018, shade(body, 0.5)),
        ellipse(0.47, 0.07, 0.035, 0.04, (255, 240, 190)),
        ellipse(-0.48, 0.07, 0.025, 0.04, (196, 84, 78)),
    ]
    for x in (-0.29, 0.3):
        parts += [ellipse(x, 0.21, wheel, wheel, _INK), ellipse(x, 0.21, 0.5 * wheel, 0.5 * wheel, (205, 205, 208))]
    return parts


def _car_windows(rear: float, front: float, roof: float) -> Parts:
    middle, top = 0.5 * (rear + front), -0.84 * roof
    back = [(rear + 0.07, -0.02), (rear + 0.105, top), (middle - 0.04, top), (middle - 0.02, -0.02)]
    ahead = [(middle + 0.03, -0.02), (middle + 0.01, top), (front - 0.16, top), (front - 0.06, -0.02)]
    return [polygon(back, _GLASS), polygon(ahead, _GLASS)]


def tree(rng: Generator) -> Parts:
    """A broadleaf or a fir; leaves of any colour."""
    leaves, width = muted(rng), rng.uniform(0.08, 0.13)
    trunk = polygon([(-0.5 * width, 0), (0.5 * width, 0), (0.75 * width, 0.5), (-0.75 * width, 0.5)], shade(_WOOD, 0.9))
    return [trunk, *(_crown(rng, leaves) if rng.random() < 0.6 else _fir(rng, leaves))]


def _crown(rng: Generator, leaves: Colour) -> Parts:
    """A round crown: a ring of dark blobs below, lighter ones towards the light at the upper left."""
    count, radius, height = int(rng.integers(6, 9)), rng.uniform(0.28, 0.38), rng.uniform(0.9, 1.2)
    turns = np.linspace(0, 2 * np.pi, count, endpoint=False) + rng.uniform(0, 1)
    blobs = [(radius * np.cos(t), -0.2 + height * radius * np.sin(t), rng.uniform(0.15, 0.21)) for t in turns]
    parts = [ellipse(x, y, r, r, shade(leaves, 0.8)) for x, y, r in blobs]
    parts.append(ellipse(0, -0.2, radius, height * radius, shade(leaves, 0.8)))
    parts += [ellipse(0.8 * x - 0.03, 0.85 * y - 0.06, 0.8 * r, 0.8 * r, leaves) for x, y, r in blobs]
    parts.append(ellipse(-0.02, -0.24, 0.85 * radius, 0.85 * height * radius, leaves))
    for _ in range(5):
        x, y = rng.uniform(-0.22, 0.1), rng.uniform(-0.45, -0.15)
        parts.append(ellipse(x, y, 0.06, 0.045, shade(leaves, 1.25)))
    return parts


def _fir(rng: Generator, leaves: Colour) -> Parts:
    tiers, width, parts = int(rng.integers(3, 5)), rng.uniform(0.3, 0.4), []
    for tier in range(tiers):
        half, foot, light = width * (1 - 0.22 * tier), 0.28 - 0.26 * tier, 0.08 * tier
        top = (0, foot - 0.42)
        parts.append(polygon([(-half, foot), (0, foot + 0.05), (half, foot), top], shade(leaves, 0.72 + light)))
        parts.append(polygon([(-half, foot), (-0.25 * half, foot + 0.03), top], shade(leaves, 0.95 + light)))
    return parts


def cactus(rng: Generator) -> Parts:
    """A ribbed column with one or two arms, some in bloom."""
    body, girth = muted(rng), rng.uniform(0.22, 0.3)
    top, parts = -rng.uniform(0.45, 0.6), []
    for side in (-1, 1) if rng.random() < 0.8 else (pick(rng, (-1, 1)),):
        x, joint = side * rng.uniform(0.29, 0.36), rng.uniform(-0.15, 0.2)
        tip, arm = joint - rng.uniform(0.18, 0.36), girth * rng.uniform(0.55, 0.75)
        parts += [stroke((0, joint), (x, joint), arm, shade(body, 0.88)), stroke((x, joint), (x, tip), arm, body)]
        parts.append(stroke((x, joint), (x, tip), 0.18 * arm, shade(body, 0.72)))
    parts.append(stroke((0, 0.45), (0, top), girth, body))
    parts += [stroke((k * girth, 0.48), (k * girth, top), 0.025, shade(body, 0.72)) for k in (-0.25, 0.0, 0.25)]
    heights = np.arange(top, 0.45, 0.12)
    parts += [ellipse(k * girth, y, 0.013, 0.013, shade(body, 1.7)) for y in heights for k in (-0.38, 0.13, 0.38)]
    if rng.random() < 0.5:
        bloom = muted(rng)
        parts += [ellipse(x, top - 0.5 * girth, 0.05, 0.045, bloom) for x in (-0.05, 0.05)]
        parts.append(ellipse(0, top - 0.5 * girth - 0.03, 0.045, 0.05, shade(bloom, 1.3)))
    return parts


def snowman(rng: Generator) -> Parts:
    """Three balls, stick arms, scarf and hat."""
    snow, scarf = hsv(rng.random(), rng.uniform(0.04, 0.16), rng.uniform(0.88, 0.97)), muted(rng)
    base, chest, head = rng.uniform(0.27, 0.32), rng.uniform(0.2, 0.24), rng.uniform(0.14, 0.17)
    middle = -0.75 * (base + chest)
    top = middle - 0.85 * (chest + head)
    parts = [stroke((0, middle), (side * 0.42, middle - rng.uniform(-0.05, 0.22)), 0.03, _WOOD) for side in (-1, 1)]
    for y, radius in ((0.0, base), (middle, chest), (top, head)):
        parts += [ellipse(0, y, radius, 0.95 * radius, shade(snow, 0.8))]
        parts += [ellipse(-0.07 * radius, y - 0.06 * radius, 0.92 * radius, 0.88 * radius, snow)]
    parts += [ellipse(0, y, 0.025, 0.025, _INK) for y in np.linspace(middle - 0.06, middle + 0.13, 3)]
    neck = top + 0.85 * head
    parts += [stroke((-0.75 * head, neck), (0.75 * head, neck), 0.07, scarf)]
    parts += [stroke((0.5 * head, neck), (0.6 * head, neck + 0.16), 0.06, shade(scarf, 0.85))]
    parts += [ellipse(x, top - 0.03, 0.022, 0.026, _INK) for x in (-0.3 * head, 0.45 * head)]
    parts += [polygon([(0.02, top), (0.02, top + 0.05), (0.2, top + 0.05)], (226, 135, 72))]
    return parts + _hat(rng, top - 0.8 * head, head)


def _hat(rng: Generator, y: float, head: float) -> Parts:
    felt, height = shade(muted(rng), 0.6), rng.uniform(0.13, 0.22)
    if rng.random() < 0.35:
        cone = [(-0.9 * head, y), (0.9 * head, y), (0.3 * head, y - 0.8 * height), (-0.3 * head, y - 0.8 * height)]
        return [polygon(cone, felt, 2), ellipse(0, y - 0.75 * height, 0.05, 0.05, shade(felt, 1.6))]
    crown = [(-0.7 * head, y), (0.7 * head, y), (0.75 * head, y - height), (-0.75 * head, y - height)]
    band = [(-0.7 * head, y), (0.7 * head, y), (0.71 * head, y - 0.05), (-0.71 * head, y - 0.05)]
    return [polygon(crown, felt), polygon(band, muted(rng)), stroke((-1.15 * head, y), (1.15 * head, y), 0.04, felt)]


OBJECTS: dict[str, Callable[[Generator], Parts]] = {
    "aeroplane": aeroplane,
    "boat": boat,
    "car": car,
    "tree": tree,
    "cactus": cactus,
    "snowman": snowman,
}


# ---- occluders: what may stand before an object of any class ---------------------------------------------------------


def _crate(rng: Generator) -> Parts:
    wood, height = near(rng, 0.09, 0.4, 0.68), rng.uniform(0.38, 0.5)
    frame = shade(wood, 0.75)
    corners = [(-0.5, -height), (0.5, -height), (0.5, height), (-0.5, height)]
    parts = [polygon(corners, wood)]
    parts += [stroke((-0.45, y * height), (0.45, y * height), 0.03, frame) for y in (-0.4, 0.0, 0.4)]
    parts.append(stroke((-0.42, height - 0.08), (0.42, 0.08 - height), 0.1, shade(wood, 0.87)))
    edges = zip(corners, corners[1:] + corners[:1], strict=True)
    return parts + [stroke((0.9 * a, 0.9 * b), (0.9 * c, 0.9 * d), 0.1, frame) for (a, b), (c, d) in edges]


def _ball(rng: Generator) -> Parts:
    colours, start = (muted(rng), hsv(0.1, 0.08, 0.95)), rng.uniform(0, np.pi)
    parts = [ellipse(0, 0, 0.5, 0.5, colours[1])]
    for wedge in range(0, 6, 2):
        turns = start + np.linspace(wedge, wedge + 1, 9) * np.pi / 3
        rim = [(0.5 * float(np.cos(t)), 0.5 * float(np.sin(t))) for t in turns]
        parts.append(polygon([(-0.08, -0.08), *rim], colours[0]))
    return [*parts, ellipse(-0.08, -0.08, 0.08, 0.08, shade(colours[0], 0.8))]


def occluder(rng: Generator, parts: Parts) -> Parts:
    """A thing that says nothing about the class, slid over the parts until it hides about a random share of them."""
    low, high = extent(parts)
    wanted, longest = rng.uniform(*_OCCLUDED_SHARE), float((high - low).max())
    thing, angle = pick(rng, (rock, _crate, _ball))(rng), rng.uniform(-20, 20)
    covered = np.asarray(silhouette(parts, 96)) > 0
    candidates = []
    for _ in range(40):
        (x, y), scale = rng.uniform(low, high), rng.uniform(0.4, 0.65)
        hiding = place(thing, x, y, longest=scale * longest, angle=angle, mirrored=False)
        hidden = covered & (np.asarray(silhouette(hiding, 96)) > 0)
        candidates.append((abs(hidden.sum() / covered.sum() - wanted), hiding))
    return min(candidates, key=lambda candidate: candidate[0])[1]
