"""Masks at another size, without moving what they show."""

import torch
from torch import Tensor


def resized_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Each pixel the class of the source pixel whose centre is nearest, as images are resized.

    On an axis of n pixels made m, pixel i has its centre at (i + 0.5) n / m - 0.5 in source pixels. Halfway between
    two, neighbouring pixels take turns: always to take the right one moves a mask at half its size by half a source
    pixel. torch's `nearest` takes a pixel's left edge for its centre, and `nearest-exact` does not take turns.

    Args:
        mask: (H, W) of any type.
        size: height and width of the result, at least 1.
    """
    rows, columns = (_nearest(old, new) for old, new in zip(mask.shape, size, strict=True))
    return mask[rows[:, None], columns]


def _nearest(old: int, new: int) -> Tensor:
    """(new,) int64 in [0, old): the nearest source pixels, in whole numbers, so that halfway is exact."""
    index = torch.arange(new)
    numerator, denominator = (2 * index + 1) * old - new, 2 * new
    whole = numerator.div(denominator, rounding_mode="floor")
    rest = numerator - whole * denominator  # in [0, denominator)
    up = (2 * rest > denominator) | ((2 * rest == denominator) & (index % 2 == 1))
    return whole + up
