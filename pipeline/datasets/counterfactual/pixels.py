"""Objects cut out, taken out and put on another ground: arrays in, arrays out.

Legend: image (H, W, 3) uint8 RGB, mask (H, W) uint8 (0 background, 1..C classes, 255 void), hole (H, W) bool, true
where pixels are to be invented. A new mask is void where its pixels were invented and where the old one was void: void
is neither object nor ground.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from pipeline.data.images import RGB_MEAN
from pipeline.data.voc import IGNORE_INDEX

Pixels = NDArray[np.uint8]
Hole = NDArray[np.bool_]

NEUTRAL = np.array([round(255 * value) for value in RGB_MEAN], np.uint8)  # as a crop fills up smaller images
REACH = 4.0  # standard deviations beyond which Pillow's Gaussian, three box filters, has nothing


class Ground(NamedTuple):
    """What an object is put on."""

    image: Pixels
    invented: Hole


def alone(image: Pixels, mask: Pixels, value: int) -> tuple[Pixels, Pixels]:
    """Image and mask of the pixels of class `value` alone, on neutral ground."""
    own = mask == value
    return np.where(own[..., None], image, NEUTRAL), _target(mask, value, np.zeros_like(own))


def on_ground(image: Pixels, mask: Pixels, value: int, ground: Ground) -> tuple[Pixels, Pixels]:
    """Image and mask of the pixels of class `value`, where they are, on a ground of the same size."""
    own = mask == value
    return np.where(own[..., None], image, ground.image), _target(mask, value, ground.invented)


def hole_of(mask: Pixels, removed: Hole, margin: float) -> Hole:
    """The pixels to be invented once `removed` is taken out: those, all void ones, and a ring of background.

    Void may show the object; outlines blend into the background next to them.

    Args:
        margin: width of the ring in fractions of the longer side. Where it would leave nothing to fill from, there is
            no ring.
    """
    from scipy.ndimage import distance_transform_edt  # half a second to import

    hole: Hole = removed | (mask == IGNORE_INDEX)
    if not removed.any() or hole.all():
        return hole
    near = distance_transform_edt(~removed) <= margin * max(mask.shape)
    wider: Hole = hole | (near & (mask == 0))
    return hole if wider.all() else wider


def without(mask: Pixels, hole: Hole) -> Pixels:
    """The mask of an image whose hole was filled: void there, other objects as they were."""
    return np.where(hole, np.uint8(IGNORE_INDEX), mask)


def filled_by_mean(image: Pixels, hole: Hole) -> Pixels:
    """The image with neutral colour in its hole."""
    return np.where(hole[..., None], NEUTRAL, image)


def filled_from_around(image: Pixels, hole: Hole, blur: float) -> Pixels:
    """The image whose hole has the colours around it: those of the nearest pixel, smoothed by a Gaussian.

    Args:
        hole: not all of the image.
        blur: standard deviation of the Gaussian in fractions of the longer side.
    """
    from scipy.ndimage import distance_transform_edt

    if not hole.any():
        return image
    deviation = blur * max(hole.shape)
    around = _box_around(hole, math.ceil(REACH * deviation) + 1)  # what lies beyond it changes nothing in the hole
    known, inside = image[around], hole[around]
    nearest = known[tuple(distance_transform_edt(inside, return_distances=False, return_indices=True))]
    smooth = np.asarray(Image.fromarray(nearest).filter(ImageFilter.GaussianBlur(deviation)))
    filled = image.copy()
    filled[around] = np.where(inside[..., None], smooth, known)
    return filled


def fitted(ground: Ground, size: tuple[int, int]) -> Ground:
    """The centre of a ground at `size` (H, W): resized to cover it, without distortion, and cut."""
    if ground.invented.shape == size:
        return ground
    height, width = size
    image = ImageOps.fit(Image.fromarray(ground.image), (width, height), Image.Resampling.BICUBIC)
    invented = ImageOps.fit(Image.fromarray(ground.invented), (width, height), Image.Resampling.NEAREST)
    return Ground(np.array(image), np.array(invented, dtype=np.bool_))


def _box_around(hole: Hole, reach: int) -> tuple[slice, slice]:
    """Rows and columns of the hole, and so many pixels more on each side."""
    rows, columns = (np.flatnonzero(hole.any(axis=axis)) for axis in (1, 0))
    top, left = max(0, int(rows[0]) - reach), max(0, int(columns[0]) - reach)
    return slice(top, int(rows[-1]) + reach + 1), slice(left, int(columns[-1]) + reach + 1)


def _target(mask: Pixels, value: int, invented: Hole) -> Pixels:
    target = np.where(mask == value, mask, np.uint8(0))
    target[(target == 0) & (invented | (mask == IGNORE_INDEX))] = IGNORE_INDEX
    return target
