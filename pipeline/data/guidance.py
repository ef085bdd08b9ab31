"""What the external supervision loss, Eq. 7 of GAIN, compares attention with: masks, boxes, or masks of other images.

Few images are labelled. The others are void as a whole: their attention is not supervised.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.base.errors import PipelineError
from pipeline.data import voc
from pipeline.data.images import decode_mask
from pipeline.data.manifest import ManifestRow
from pipeline.data.resizing import resized_mask

Source = Literal["masks", "boxes", "shuffled_masks"]


class Guidance:
    """Class values 1..C where attention should be, 0 where it should not, 255 where that is unknown.

    Args:
        root: VOC-layout folder that `build_manifest` has checked.
        rows: manifest rows in the order of the data set.
        source: `masks` are the images' own. `boxes` are their annotations, filled. `shuffled_masks`, the control that
            shows that it is the right mask that teaches, takes the pixels of each class of an image from the mask of
            another labelled image with that class; a class that only one labelled image has gets no pixels. Where two
            classes claim a pixel it is void.
        num_labelled: images of a pixel_label_rank below this are labelled.
        seed: decides which image lends its mask to which.

    Raises:
        PipelineError: the source is boxes and a labelled image has no readable annotation.
    """

    def __init__(
        self,
        root: Path,
        rows: Sequence[ManifestRow],
        class_names: tuple[str, ...],
        *,
        source: Source,
        num_labelled: int,
        seed: int,
    ) -> None:
        self.root = root
        self.source = source
        self.class_names = class_names
        self.image_ids = [row.image_id for row in rows]
        self.labelled = {index for index, row in enumerate(rows) if 0 <= row.pixel_label_rank < num_labelled}
        if source == "boxes":
            for index in self.labelled:  # a missing file is found before the training, not in the middle of it
                voc.read_boxes(root, self.image_ids[index])
        self._partners = _partners({index: rows[index].classes for index in self.labelled}, class_names, seed)

    def __call__(self, index: int, target: Tensor) -> Tensor:
        """The guidance of image `index` (H, W) uint8, `target` being its mask (H, W) uint8.

        Raises:
            PipelineError: an annotation or the partner's mask is gone.
        """
        if index not in self.labelled:
            return torch.full_like(target, voc.IGNORE_INDEX)
        if self.source == "masks":
            return target
        return self._boxes(index, target) if self.source == "boxes" else self._shuffled_masks(index, target)

    def _boxes(self, index: int, target: Tensor) -> Tensor:
        guidance = torch.zeros_like(target)
        for box in voc.read_boxes(self.root, self.image_ids[index]):
            inside = torch.zeros_like(target, dtype=torch.bool)
            inside[max(box.top, 0) : box.bottom, max(box.left, 0) : box.right] = True
            guidance = _claim(guidance, inside, self.class_names.index(box.class_name) + 1)
        return guidance

    def _shuffled_masks(self, index: int, target: Tensor) -> Tensor:
        guidance, void = torch.zeros_like(target), torch.zeros_like(target, dtype=torch.bool)
        for class_value, partner in self._partners[index].items():
            mask = torch.from_numpy(decode_mask(voc.mask_path(self.root, self.image_ids[partner])))
            mask = resized_mask(mask, (target.shape[0], target.shape[1]))
            guidance = _claim(guidance, mask == class_value, class_value)
            void |= mask == voc.IGNORE_INDEX
        return guidance.masked_fill(void & (guidance == 0), voc.IGNORE_INDEX)


def num_labelled_images(rows: Iterable[ManifestRow], *, count: int | None, fraction: float | None) -> int:
    """How many training images guide attention: `count` of them, or a `fraction` in [0, 1], rounded but 0 only for 0.

    A fraction counts all training images, though only those that show a class can be labelled.

    Raises:
        PipelineError: both are given or neither, or there are fewer than `count` training images with a class.
    """
    training = [row for row in rows if row.split == "train"]
    available = sum(row.pixel_label_rank >= 0 for row in training)
    if (count is None) == (fraction is None):
        raise PipelineError(f"pixel labels: count is {count} and fraction {fraction}; give one of the two")
    if fraction is not None:
        return min(available, max(1, round(fraction * len(training)))) if fraction > 0 else 0
    assert count is not None
    if count > available:
        raise PipelineError(
            f"pixel labels: {count} training images asked for, only {available} show a class; ask for fewer"
        )
    return count


def _partners(
    image_classes: dict[int, tuple[str, ...]], class_names: tuple[str, ...], seed: int
) -> dict[int, dict[int, int]]:
    """For each image and class value the image that lends its pixels of that class, where there is another one."""
    partners: dict[int, dict[int, int]] = {index: {} for index in image_classes}
    for class_value, name in enumerate(class_names, start=1):
        having = sorted(index for index, classes in image_classes.items() if name in classes)
        order = np.random.default_rng([seed, class_value]).permutation(having).tolist()
        for index, partner in zip(order, order[1:] + order[:1], strict=True):
            if index != partner:
                partners[index][class_value] = partner
    return partners


def _claim(guidance: Tensor, pixels: Tensor, class_value: int) -> Tensor:
    """`guidance` with `pixels` (bool) given to a class, void where another class has them already."""
    free = (guidance == 0) | (guidance == class_value)
    return guidance.masked_fill(pixels & free, class_value).masked_fill(pixels & ~free, voc.IGNORE_INDEX)
