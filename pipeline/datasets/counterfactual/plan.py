"""Which objects are shown without their ground, on which grounds, and what cannot be made.

A cut-out is all pixels of one class in one image: an image of two classes gives two. Every draw depends on the seed,
the image and the class, never on the order of the images.
"""

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import first_of
from pipeline.base.sections import Counterfactual
from pipeline.data.voc import IGNORE_INDEX

Counts = Mapping[str, NDArray[np.int64]]  # image id to its pixels by mask value, (256,)

TOO_SMALL = "object smaller than least_object"
NO_GROUND = "object and void leave less than least_ground"
NO_OTHER = "no other image of the class lends its ground"
NO_FOREIGN = "no image without the class lends its ground"
WHOLLY = (TOO_SMALL, NO_GROUND)  # reasons for which no image of an object is made; for the others, no mixed ones


class Cutout(NamedTuple):
    """One object, or all of its class, in one image."""

    source: str  # image id
    value: int  # of the class in the mask
    same: str | None  # image of the class whose ground it is put on; None with `foreign` where one of them lacks
    foreign: str | None  # the same of an image without the class


class NotMade(NamedTuple):
    """Objects of one class of which images could not be made."""

    value: int
    reason: str
    objects: int


class Plan(NamedTuple):
    """What is to be made of a split."""

    cutouts: list[Cutout]  # by class, then by image
    not_made: list[NotMade]


def plan_cutouts(counts: Counts, options: Counterfactual, *, seed: int) -> Plan:
    """Choose objects and grounds.

    Args:
        counts: of the images of the split, objects or not.
    """
    shares = {image_id: pixels / pixels.sum() for image_id, pixels in sorted(counts.items())}
    lenders = [image_id for image_id, share in shares.items() if share[0] >= options.least_ground]
    cutouts: list[Cutout] = []
    reasons: Counter[tuple[int, str]] = Counter()
    for value in range(1, IGNORE_INDEX):
        showing = [image_id for image_id, share in shares.items() if share[value] > 0]
        usable = []
        for image_id in showing:
            reason = _unusable(shares[image_id], value, options)
            if reason is None:
                usable.append(image_id)
            else:
                reasons[value, reason] += 1
        drawn = sorted(usable, key=lambda image_id: _rng(seed, image_id, value, "drawn").random())
        foreign = [image_id for image_id in lenders if shares[image_id][value] == 0]
        for source in sorted(drawn[: options.max_per_class]):
            same = [image_id for image_id in lenders if shares[image_id][value] > 0 and image_id != source]
            if same and foreign:
                grounds = (_drawn(same, seed, source, value, "same"), _drawn(foreign, seed, source, value, "foreign"))
                cutouts.append(Cutout(source, value, *grounds))
            else:
                reasons[value, NO_FOREIGN if same else NO_OTHER] += 1
                cutouts.append(Cutout(source, value, None, None))
    return Plan(cutouts, [NotMade(value, reason, objects) for (value, reason), objects in sorted(reasons.items())])


def said(plan: Plan, class_names: Sequence[str]) -> str:
    """What could not be made, in one line; "" where nothing lacks."""
    by_reason: dict[str, list[NotMade]] = {}
    for entry in plan.not_made:
        by_reason.setdefault(entry.reason, []).append(entry)
    parts = []
    for reason, entries in by_reason.items():
        what = "no image" if reason in WHOLLY else "no mixed images"
        count = sum(entry.objects for entry in entries)
        classes = first_of([f"{class_names[entry.value - 1]} {entry.objects}" for entry in entries])
        parts.append(f"{what} of {count} {'object' if count == 1 else 'objects'}, {reason} ({classes})")
    return "; ".join(parts)


def _unusable(share: NDArray[np.float64], value: int, options: Counterfactual) -> str | None:
    if share[value] < options.least_object:
        return TOO_SMALL
    return NO_GROUND if 1 - share[value] - share[IGNORE_INDEX] < options.least_ground else None


def _drawn(candidates: Sequence[str], seed: int, source: str, value: int, purpose: str) -> str:
    return candidates[int(_rng(seed, source, value, purpose).integers(len(candidates)))]


def _rng(seed: int, image_id: str, value: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(f"{purpose} {image_id}".encode()), value])
