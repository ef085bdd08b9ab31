"""Batches: their order, how ranks share them, and what reaches the processes that load them."""

from itertools import chain

import pytest
import torch
from small_samples import same

from pipeline.data.loaders import evaluation_loader, start_epoch, training_loader
from pipeline.data.manifest import ManifestRow
from pipeline.data.samples import Sample, SegmentationDataset, finished


def order(loader: torch.utils.data.DataLoader, epoch: int) -> list[int]:
    start_epoch(loader, epoch)
    return [index for batch in loader for index in batch.sample_index.tolist()]


def test_order_depends_on_seed_and_epoch_alone(make):
    dataset = make()
    orders = {
        (seed, epoch): order(training_loader(dataset, batch_size=4, seed=seed, num_workers=0), epoch)
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert all(sorted(indices) == list(range(24)) for indices in orders.values())
    assert orders[0, 0] != orders[0, 1] != orders[1, 1]
    assert orders[0, 0] != orders[1, 0] != orders[1, 1]
    torch.manual_seed(99)
    loader = training_loader(make(), batch_size=12, seed=1, num_workers=0)
    assert order(loader, 1) == orders[1, 1]  # without having been through epoch 0
    assert order(loader, 0) == orders[1, 0]


def test_order_of_one_seed_is_not_that_of_another_seed_an_epoch_later(make):
    first, second = (training_loader(make(), batch_size=4, seed=seed, num_workers=0) for seed in (0, 1))
    assert order(first, 1) != order(second, 0)


def test_training_batches_have_equal_sizes(make):
    loader = training_loader(make(10), batch_size=4, seed=0, num_workers=0)
    assert [len(batch.sample_index) for batch in loader] == [4, 4]


def test_fewer_images_than_a_batch_make_one_smaller_batch(make):
    loader = training_loader(make(3), batch_size=8, seed=0, num_workers=0)
    assert [len(batch.sample_index) for batch in loader] == [3]


def test_ranks_share_the_images_out(make):
    loaders = [training_loader(make(), batch_size=4, seed=0, num_workers=0, rank=rank, num_ranks=2) for rank in (0, 1)]
    indices = [order(loader, 1) for loader in loaders]
    assert [len(part) for part in indices] == [12, 12]
    assert sorted(indices[0] + indices[1]) == list(range(24))


@pytest.mark.parametrize(("num_ranks", "accumulate"), [(2, 1), (1, 3), (2, 3)])
def test_a_step_has_the_same_images_however_it_is_shared_out(make, num_ranks, accumulate):
    def steps(count, parts):
        """The images of each step, over all ranks."""
        shares = []
        for rank in range(count):
            loader = training_loader(
                make(), batch_size=12, seed=0, num_workers=0, accumulate_grad_batches=parts, rank=rank, num_ranks=count
            )
            start_epoch(loader, 1)
            images = [batch.sample_index.tolist() for batch in loader]
            shares.append([list(chain(*images[i : i + parts])) for i in range(0, len(images), parts)])
        return [sorted(chain(*step)) for step in zip(*shares, strict=True)]

    assert steps(num_ranks, accumulate) == steps(1, 1)
    assert len(steps(1, 1)) == 2


def test_few_images_are_shared_out_too(make):
    loader = training_loader(make(12), batch_size=32, seed=0, num_workers=0, rank=0, num_ranks=2)
    assert [len(batch.sample_index) for batch in loader] == [6]


def test_more_ranks_than_images_are_refused(make, refused):
    message = refused(training_loader, make(3), batch_size=8, seed=0, num_workers=0, rank=0, num_ranks=4)
    assert "3 training images in steps of 8 are too few for 4 devices" in message


def test_ranks_evaluate_every_image_once(make):
    dataset = make(10, horizontal_flip=0.0)
    parts = [evaluation_loader(dataset, batch_size=2, num_workers=0, rank=rank, num_ranks=3) for rank in range(3)]
    seen = [batch.sample_index.tolist() for part in parts for batch in part]
    assert sorted(chain(*seen)) == list(range(10))
    assert [len(part) for part in parts] == [2, 2, 1]


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.system)])
def test_evaluation_keeps_the_order_and_yields_every_image_once(make, num_workers):
    dataset = make(10, horizontal_flip=0.0)
    batches = list(evaluation_loader(dataset, batch_size=4, num_workers=num_workers))
    assert [len(batch.sample_index) for batch in batches] == [4, 4, 2]
    assert [index for batch in batches for index in batch.sample_index.tolist()] == list(range(10))
    stacked = [torch.stack(parts) for parts in zip(*(dataset[index] for index in range(4)), strict=True)]
    assert same(batches[0], Sample(*stacked))


def test_evaluation_batches_images_of_one_size(voc_root):
    """Alternating 8x6 and 4x4 images: each at its own size, every one once, no batch mixed."""
    rows = [ManifestRow("t0", "test", 6, 8, (), (), -1, ""), ManifestRow("v0", "test", 4, 4, (), (), -1, "")] * 5
    dataset = SegmentationDataset(voc_root, rows, num_foreground_classes=2)
    batches = list(evaluation_loader(dataset, batch_size=2, num_workers=0))
    assert [tuple(batch.image.shape[2:]) for batch in batches] == [(6, 8)] * 3 + [(4, 4)] * 3
    assert sorted(index for batch in batches for index in batch.sample_index.tolist()) == list(range(10))
    assert all(same(Sample(*(part[0] for part in batch)), dataset[int(batch.sample_index[0])]) for batch in batches)


def test_raw_batches_are_finished_where_they_are_used(make):
    for options in ({"crop_size": 5, "scale": (0.75, 1.25)}, {}):
        batches = [
            next(iter(training_loader(make(raw=raw, **options), batch_size=24, seed=0, num_workers=0)))
            for raw in (False, True)
        ]
        assert (batches[1].image.dtype, batches[1].target.dtype) == (torch.uint8, torch.uint8)
        assert same(Sample(*batches[0]), finished(Sample(*batches[1])))
        assert same(Sample(*batches[0]), finished(Sample(*batches[0])))


@pytest.mark.system
def test_augmentation_does_not_depend_on_the_number_of_workers(make):
    passes = []
    for num_workers in (0, 2):
        loader = training_loader(make(), batch_size=6, seed=5, num_workers=num_workers)
        batches = []
        for epoch in (0, 1, 2):  # workers live on: they must learn of the new epoch
            start_epoch(loader, epoch)
            batches += list(loader)
        passes.append(batches)
    assert len(passes[0]) == len(passes[1]) == 12
    assert all(map(same, *passes))
    assert not same(passes[0][0], passes[0][4])


def test_start_epoch_reaches_the_augmentation(make):
    loader, alone = training_loader(make(), batch_size=24, seed=0, num_workers=0), make()
    for epoch in (0, 3):
        start_epoch(loader, epoch)
        alone.set_epoch(epoch)
        for sample in map(Sample._make, zip(*next(iter(loader)), strict=True)):
            assert same(sample, alone[int(sample.sample_index)])
