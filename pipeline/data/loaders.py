"""Batches of samples, in an order that is a function of seed and epoch."""

import numpy as np
import torch
from torch.utils.data import DataLoader, DistributedSampler

from pipeline.base.errors import PipelineError
from pipeline.data.samples import Sample, SegmentationDataset


def training_loader(
    dataset: SegmentationDataset,
    *,
    batch_size: int,
    seed: int,
    num_workers: int,
    accumulate_grad_batches: int = 1,
    rank: int = 0,
    num_ranks: int = 1,
) -> DataLoader[Sample]:
    """Shuffled batches of equal size, the order a function of seed and epoch. Call `start_epoch` before each pass.

    However many ranks and accumulated batches share a step, together they have the same images.

    Args:
        batch_size: images of a step, of all ranks and accumulated batches; fewer where the data set has fewer.
        rank, num_ranks: whose share this is.

    Raises:
        PipelineError: a step has more ranks and accumulated batches than images.
    """
    shares = num_ranks * accumulate_grad_batches
    images = min(batch_size, len(dataset)) // shares
    if images == 0:
        raise PipelineError(
            f"{len(dataset)} training images in steps of {batch_size} are too few for {num_ranks} devices and "
            f"{accumulate_grad_batches} accumulated batches; raise batch_size, or lower the other two in params.yaml"
        )
    # The sampler adds the epoch to its seed: neighbouring seeds would share orders.
    sampler_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    sampler: DistributedSampler[Sample] = DistributedSampler(
        dataset, num_replicas=num_ranks, rank=rank, shuffle=True, seed=sampler_seed, drop_last=True
    )
    return DataLoader(
        dataset,
        batch_size=images,
        sampler=sampler,
        num_workers=num_workers,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
    )


def start_epoch(loader: DataLoader[Sample], epoch: int) -> None:
    """Fix the order and the augmentation of the next pass over a `training_loader`."""
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    loader.dataset.set_epoch(epoch)  # type: ignore[attr-defined]


def evaluation_loader(
    dataset: SegmentationDataset, *, batch_size: int, num_workers: int, rank: int = 0, num_ranks: int = 1
) -> DataLoader[Sample]:
    """Every image once, at its own size, in batches of one size each; in order where all sizes are equal.

    Args:
        rank, num_ranks: whose share of the batches this is.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for index, row in enumerate(dataset.rows):
        groups.setdefault((row.height, row.width), []).append(index)
    batches = [
        indices[first : first + batch_size]
        for indices in groups.values()
        for first in range(0, len(indices), batch_size)
    ]
    return DataLoader(
        dataset,
        batch_sampler=batches[rank::num_ranks],
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
