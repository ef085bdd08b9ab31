"""The images that no training reads, in the batches in which every model is scored on them."""

from collections.abc import Mapping

import torch
from torch.utils.data import DataLoader

from pipeline.base.sections import Evaluate
from pipeline.base.workspace import Workspace
from pipeline.data.loaders import evaluation_loader
from pipeline.data.manifest import read_manifest
from pipeline.data.samples import Sample, SegmentationDataset
from pipeline.data.voc import COUNTERFACTUAL_SPLITS, list_splits, read_class_names
from pipeline.report.model_scores import HeldOutData

TRAINING_SPLITS = ("train", "val")


def read_held_out_sets(space: Workspace, *, cache_images: bool) -> dict[str, SegmentationDataset]:
    """The test split, and the counterfactual ones where the data set has them."""
    splits = (split for split in list_splits(space.data) if split not in TRAINING_SPLITS)
    return {split: read_set(space, split, cache_images=cache_images) for split in splits}


def read_set(space: Workspace, split: str, *, cache_images: bool = False) -> SegmentationDataset:
    """The images of one split, as they are in the files."""
    return SegmentationDataset(
        space.data,
        [row for row in read_manifest(space.manifest) if row.split == split],
        num_foreground_classes=len(read_class_names(space.data)),
        cache_images=cache_images,
    )


def held_out_data(
    validation: SegmentationDataset,
    sets: Mapping[str, SegmentationDataset],
    class_names: tuple[str, ...],
    options: Evaluate,
) -> HeldOutData:
    """The validation set and the sets of `read_held_out_sets` in batches of `options.batch_size`."""

    def batches(dataset: SegmentationDataset) -> DataLoader[Sample]:
        return evaluation_loader(dataset, batch_size=options.batch_size, num_workers=0)

    grounds = [row.contexts for row in sets["context_without_object"].rows] if "context_without_object" in sets else []
    return HeldOutData(
        class_names,
        batches(validation),
        batches(sets["test"]),
        {split: batches(sets[split]) for split in COUNTERFACTUAL_SPLITS if split in sets},
        torch.tensor([[float(name in ground) for name in class_names] for ground in grounds]),
        batches(_first(sets["test"], options.num_deletion_images)),
    )


def _first(dataset: SegmentationDataset, count: int) -> SegmentationDataset:
    return SegmentationDataset(
        dataset.root, dataset.rows[:count], num_foreground_classes=dataset.num_foreground_classes
    )
