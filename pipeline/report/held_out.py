"""The images that no training reads, in the batches in which every model is scored on them."""

from collections.abc import Iterable, Mapping

import torch
from torch.utils.data import DataLoader

from pipeline.base.sections import Evaluate
from pipeline.base.workspace import Workspace
from pipeline.data.loaders import evaluation_loader
from pipeline.data.manifest import read_manifest
from pipeline.data.samples import Sample, SegmentationDataset
from pipeline.data.voc import COUNTERFACTUAL_SPLITS, TRAINING_SPLITS, list_splits, read_class_names
from pipeline.datasets.counterfactual.table import SETS, MadeImage, read_table
from pipeline.report.counterfactual_scores import SeparatedSet
from pipeline.report.model_scores import HeldOutData


def read_held_out_sets(space: Workspace, *, cache_images: bool) -> dict[str, SegmentationDataset]:
    """The test split, the counterfactual ones where the data set has them, and those of the stage counterfactual."""
    splits = (split for split in list_splits(space.data) if split not in TRAINING_SPLITS)
    drawn = {split: read_set(space, split, cache_images=cache_images) for split in splits}
    return drawn | _read_separated_sets(space, cache_images=cache_images)


def read_set(space: Workspace, split: str, *, cache_images: bool = False) -> SegmentationDataset:
    """The images of one split, as they are in the files."""
    return SegmentationDataset(
        space.data,
        [row for row in read_manifest(space.manifest) if row.split == split],
        num_foreground_classes=len(read_class_names(space.data)),
        cache_images=cache_images,
    )


def _read_separated_sets(space: Workspace, *, cache_images: bool) -> dict[str, SegmentationDataset]:
    rows = read_table(space.counterfactual)
    sets = {name: [row for row in rows if row.split == name] for name in SETS}
    num_classes = len(read_class_names(space.data))
    return {
        name: SegmentationDataset(
            space.counterfactual, of_set, num_foreground_classes=num_classes, cache_images=cache_images
        )
        for name, of_set in sets.items()
        if of_set
    }


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
        {
            name: _separated_set(sets[name], sets["test"], class_names, batches(sets[name]))
            for name in SETS
            if name in sets
        },
    )


def _separated_set(
    dataset: SegmentationDataset, test: SegmentationDataset, class_names: tuple[str, ...], batches: Iterable[Sample]
) -> SeparatedSet:
    position = {row.image_id: index for index, row in enumerate(test.rows)}
    rows = [row for row in dataset.rows if isinstance(row, MadeImage)]
    labels = torch.tensor([[float(name == row.object) for name in class_names] for row in rows])
    return SeparatedSet(batches, labels, torch.tensor([position[row.source] for row in rows]))


def _first(dataset: SegmentationDataset, count: int) -> SegmentationDataset:
    return SegmentationDataset(
        dataset.root, dataset.rows[:count], num_foreground_classes=dataset.num_foreground_classes
    )
