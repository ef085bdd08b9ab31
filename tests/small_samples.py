"""A data set of small images for tests of samples and of their batches."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.base.sections import Augmentation
from pipeline.data import voc
from pipeline.data.guidance import Guidance
from pipeline.data.manifest import ManifestRow
from pipeline.data.samples import Sample, SegmentationDataset

Make = Callable[..., SegmentationDataset]
IDS = ("t0", "t1", "t2", "t3")


@pytest.fixture
def make(voc_root: Path) -> Make:
    """The four training images over and over, 24 unless told, flipped half of the time unless told.

    t1 alone is labelled, with a box that is not its mask.
    """
    voc.write_boxes(voc_root, "t1", [voc.Box("dog", 1, 2, 3, 6)], height=6, width=8)

    def dataset(num_images: int = 24, **options: object) -> SegmentationDataset:
        rows = [ManifestRow(image_id, "train", 6, 8, (), (), 0 if image_id == "t1" else -1, "") for image_id in IDS]
        rows = (num_images * rows)[:num_images]
        guidance = Guidance(voc_root, rows, ("cat", "dog"), source="boxes", num_labelled=1, seed=0)
        changes = {key: options.pop(key) for key in tuple(options) if key in Augmentation.model_fields}
        plain = Augmentation(horizontal_flip=0.5, crop_size=None, scale=(1.0, 1.0))
        augmentation = plain.model_copy(update=changes)  # unchecked: crops of a few pixels are too small for a network
        options = {"num_foreground_classes": 2, "augmentation": augmentation, "guidance": guidance, **options}
        return SegmentationDataset(voc_root, rows, **options)

    return dataset


def same(one: Sample, other: Sample) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
