"""The learning-rate range test: rates rise, weights move, a falling loss gives a suggestion."""

import math

import pytest
import torch
from tasks import task_of
from torch.utils.data import DataLoader, DistributedSampler

from pipeline.base.params import load_params
from pipeline.training.range_test import SMOOTHING, RangeTest, range_test


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


def run(model, batch, frozen=(), **options):
    data = Repeated(batch)
    loader = DataLoader(data, batch_size=2, sampler=DistributedSampler(data, num_replicas=1, rank=0))
    training = load_params(profile="smoke").finetune.model_copy(update={"frozen": frozen})
    task = task_of(model, loader, training, {"segmentation": 1.0, "classification": 1.0})
    return range_test(task, **options)


def measured(losses):
    """A test of 100 rates from 1e-6 to 1, or as far as there are losses."""
    rates = [10.0 ** (-6 + 6 * step / 99) for step in range(len(losses))]
    average, smoothed = 0.0, []
    for step, loss in enumerate(losses):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed.append(average / (1 - SMOOTHING ** (step + 1)))
    return RangeTest(rates, losses, smoothed)


def noise(seed, scale=0.4, steps=100):
    return (scale * torch.randn(steps, generator=torch.Generator().manual_seed(seed))).tolist()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("centre", [-4.0, -3.0, -2.0])
def test_suggestion_is_where_the_loss_falls_steepest(seed, centre):
    """Under scatter, to within half a decade."""
    logs = [-6 + 6 * step / 99 for step in range(100)]
    losses = [
        1.0 + 3.0 / (1.0 + math.exp(4 * (x - centre))) + (50 * (x + 1) if x > -1 else 0.0) + scatter
        for x, scatter in zip(logs, noise(seed), strict=True)
    ]
    assert math.log10(measured(losses).suggestion) == pytest.approx(centre, abs=0.5)


def test_scatter_of_single_batches_is_no_answer():
    """So it is where a network is fine-tuned: its loss does not fall in a hundred steps, but by chance in a few."""
    found = [measured([1.0 + abs(x) for x in noise(seed)]).suggestion for seed in range(200)]
    assert sum(rate is not None for rate in found) <= 4


def test_first_steps_are_left_out():
    assert measured([4.0 - 0.3 * step for step in range(10)] + 90 * [1.0]).suggestion is None


@pytest.mark.parametrize("losses", [[1.0 + 0.1 * step for step in range(100)], 100 * [1.0], [1.0], 9 * [1.0]])
def test_a_loss_that_never_falls_gives_no_suggestion(losses):
    assert measured(losses).suggestion is None


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
    assert result.diverged >= result.rates[-1]
    assert all(map(math.isfinite, result.losses))
    assert result.suggestion is not None
    assert 1e-5 < result.suggestion < 10


def test_frozen_parts_stand_still(tiny_model, batch):
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(model, batch, frozen=("trunk", "classifier"), lowest=1e-3, highest=1e-2, num_steps=5)
    moved = {name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"decoder"}
