"""The learning-rate range test: rates rise, weights move, a falling loss gives a suggestion."""

import math

import pytest
import torch
from tasks import task_of
from torch.utils.data import DataLoader, DistributedSampler

from pipeline.base.params import load_params
from pipeline.training.range_test import RangeTest, range_test


class Repeated(torch.utils.data.Dataset):
    """The samples of one batch as a data set that ignores the epoch."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return len(self.batch.image)

    def __getitem__(self, index):
        return type(self.batch)(*(field[index] for field in self.batch))

    def set_epoch(self, epoch):
        pass


def run(model, batch, **options):
    data = Repeated(batch)
    loader = DataLoader(data, batch_size=2, sampler=DistributedSampler(data, num_replicas=1, rank=0))
    task = task_of(model, loader, load_params(profile="smoke").finetune, {"segmentation": 1.0, "classification": 1.0})
    return range_test(task, **options)


def test_suggestion_is_the_steepest_fall_before_the_lowest_point():
    rates = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    assert RangeTest(rates, [], [5.0, 4.9, 3.0, 2.9, 9.0]).suggestion == 1e-2


@pytest.mark.parametrize("smoothed", [[1.0, 1.5, 2.0], [1.0, 1.0, 1.0], [1.0]])
def test_a_loss_that_never_falls_gives_no_suggestion(smoothed):
    assert RangeTest([0.1, 0.2, 0.3][: len(smoothed)], [], smoothed).suggestion is None


def test_rates_rise_from_lowest_to_highest_by_equal_factors(tiny_model, batch):
    result = run(tiny_model(), batch, lowest=1e-6, highest=1e-4, num_steps=11)
    assert result.rates[0] == pytest.approx(1e-6)
    assert result.rates[-1] == pytest.approx(1e-4)
    factors = {round(b / a, 6) for a, b in zip(result.rates, result.rates[1:], strict=False)}
    assert factors == {round(100 ** (1 / 10), 6)}
    assert len(result.losses) == len(result.smoothed) == 11


def test_a_useful_range_is_found_and_divergence_ends_the_test(tiny_model, batch):
    result = run(tiny_model(), batch, lowest=1e-5, highest=1e3, num_steps=80)
    assert len(result.rates) < 80
    assert all(map(math.isfinite, result.losses))
    assert result.suggestion is not None
    assert 1e-5 < result.suggestion < 10


def test_frozen_parts_stand_still(tiny_model, batch):
    model = tiny_model()
    before = {name: p.clone() for name, p in model.decoder.named_parameters() if name.startswith("upscore")}
    run(model, batch, lowest=1e-3, highest=1e-2, num_steps=5)
    assert all(torch.equal(p, dict(model.decoder.named_parameters())[name]) for name, p in before.items())
