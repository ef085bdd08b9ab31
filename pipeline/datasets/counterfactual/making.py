"""Test images with object and ground separated, in VOC layout, for any data set with masks.

The sets are those of the Backgrounds Challenge (Xiao et al., "Noise or Signal", arXiv 2006.09994, section 2) for images
with several objects and pixel masks, and the test of GAIN's Table 4:

only_object       the pixels of one class on neutral ground, the data mean
mixed_same        the same pixels on the ground of another image of their class
mixed_rand        the same pixels on the ground of an image without their class
no_object_filled  the image with that class taken out and filled from its surroundings; other objects stay
no_object_mean    the same, filled with the data mean

A ground is an image from which all objects and all void pixels were taken out and filled, so that the new image shows
one class alone. Every image is a PNG: an object's pixels are those of its source.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.base.files import write_csv
from pipeline.base.sections import Counterfactual
from pipeline.data import voc
from pipeline.data.images import decode_image, decode_mask, save_mask, save_png
from pipeline.datasets.counterfactual import pixels
from pipeline.datasets.counterfactual.pixels import Ground, Pixels
from pipeline.datasets.counterfactual.plan import Cutout, Plan, plan_cutouts
from pipeline.datasets.counterfactual.table import SETS, MadeImage, write_table
from pipeline.datasets.parallel import parallel_map

NOT_MADE = "not_made.csv"


class _Made(NamedTuple):
    """One image of a set."""

    name: str  # of the set
    image: Pixels
    mask: Pixels
    contexts: tuple[str, ...]  # classes whose ground shows
    ground: str = ""  # image that lent it


def plan_of(root: Path, image_ids: Sequence[str], options: Counterfactual, *, seed: int) -> Plan:
    """`plan_cutouts` for images of the VOC-layout folder `root`.

    Raises:
        PipelineError: a mask is missing or damaged.
    """
    counts = {
        image_id: np.bincount(decode_mask(voc.mask_path(root, image_id)).ravel(), minlength=256)
        for image_id in image_ids
    }
    return plan_cutouts(counts, options, seed=seed)


def make_sets(
    root: Path,
    plan: Plan,
    folder: Path,
    options: Counterfactual,
    *,
    num_workers: int = 1,
    on_object: Callable[[], None] = lambda: None,
) -> list[MadeImage]:
    """Write the images of `plan` in VOC layout into the empty `folder`.

    counterfactual.csv lists them (table.py), not_made.csv what could not be made and why. A set without an image has no
    list in ImageSets/Segmentation.

    Args:
        root: where the images are that the plan speaks of.
        num_workers: processes that compute, see `parallel_map`. No file depends on it.
        on_object: called in this process as the images of an object are written.

    Returns:
        The rows of counterfactual.csv, set by set.

    Raises:
        PipelineError: an image is missing or damaged, or a process was killed.
        OSError: an image cannot be written.
    """
    voc.make_folders(folder)
    class_names = voc.read_class_names(root)
    made: list[MadeImage] = []
    with parallel_map(num_workers) as map_objects:
        for rows in map_objects(partial(_make, root, folder, class_names, options), plan.cutouts):
            made += rows
            on_object()
    made.sort(key=lambda row: SETS.index(row.split))  # stable: in a set, as in the plan
    ids = {name: [row.image_id for row in made if row.split == name] for name in SETS}
    voc.write_lists(folder, class_names, {name: of_set for name, of_set in ids.items() if of_set})
    write_table(folder, made)
    write_csv(folder / NOT_MADE, _not_made_rows(plan, class_names))
    return made


def _not_made_rows(plan: Plan, class_names: Sequence[str]) -> list[dict[str, object]]:
    return [
        {"class": class_names[entry.value - 1], "reason": entry.reason, "objects": entry.objects}
        for entry in plan.not_made
    ]


def _make(
    root: Path, folder: Path, class_names: Sequence[str], options: Counterfactual, cutout: Cutout
) -> list[MadeImage]:
    """Write every image of one object."""
    image, mask = _read(root, cutout.source)
    value, contexts = cutout.value, _classes(mask, class_names)
    hole = pixels.hole_of(mask, mask == value, options.margin)
    target = pixels.without(mask, hole)
    alone = pixels.alone(image, mask, value)
    made = [_Made("only_object", *alone, contexts=())]
    for name, lender in (("mixed_same", cutout.same), ("mixed_rand", cutout.foreign)):
        if lender is not None:
            ground, shown = _ground(root, lender, class_names, options)
            picture = pixels.on_ground(image, mask, value, pixels.fitted(ground, mask.shape))
            made.append(_Made(name, *picture, contexts=shown, ground=lender))
    filled = pixels.filled_from_around(image, hole, options.fill_blur)
    made.append(_Made("no_object_filled", filled, target, contexts))
    made.append(_Made("no_object_mean", pixels.filled_by_mean(image, hole), target, contexts))
    return [_write(folder, class_names, cutout, picture) for picture in made]


def _ground(
    root: Path, image_id: str, class_names: Sequence[str], options: Counterfactual
) -> tuple[Ground, tuple[str, ...]]:
    """An image without any of its objects, and the classes that they were of."""
    image, mask = _read(root, image_id)
    invented = pixels.hole_of(mask, (mask > 0) & (mask != voc.IGNORE_INDEX), options.margin)
    filled = pixels.filled_from_around(image, invented, options.fill_blur)
    return Ground(filled, invented), _classes(mask, class_names)


def _read(root: Path, image_id: str) -> tuple[Pixels, Pixels]:
    return decode_image(voc.image_path(root, image_id)), decode_mask(voc.mask_path(root, image_id))


def _classes(mask: Pixels, class_names: Sequence[str]) -> tuple[str, ...]:
    counts = np.bincount(mask.ravel(), minlength=256)
    return tuple(name for value, name in enumerate(class_names, start=1) if counts[value])


def _write(folder: Path, class_names: Sequence[str], cutout: Cutout, made: _Made) -> MadeImage:
    """Write one image and its mask."""
    image_id = f"{cutout.source}-{cutout.value}-{made.name}"
    image_path, mask_path = folder / "JPEGImages" / f"{image_id}.png", voc.mask_path(folder, image_id)
    save_png(made.image, image_path, quickly=True)
    save_mask(made.mask, mask_path)
    height, width = made.mask.shape
    return MadeImage(
        image_id=image_id,
        split=made.name,
        height=height,
        width=width,
        classes=_classes(made.mask, class_names),
        contexts=made.contexts,
        pixel_label_rank=-1,
        digest=hashlib.sha256(image_path.read_bytes() + mask_path.read_bytes()).hexdigest(),
        object=class_names[cutout.value - 1],
        source=cutout.source,
        ground=made.ground,
    )
