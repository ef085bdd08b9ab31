"""Resamples of images, and the intervals that come of them."""

import math

import pytest
import torch

from pipeline.evaluation.metrics import classification_metrics
from pipeline.report.bootstrap import interval, resample_weights


def test_resamples_draw_as_many_images_as_there_are():
    weights = resample_weights(7, 500, seed=3)
    assert (weights.shape, weights.dtype) == ((501, 7), torch.float64)
    assert weights[0].tolist() == 7 * [1.0]
    assert torch.equal(weights, weights.round())
    assert set(weights.sum(dim=1).tolist()) == {7.0}
    assert len(weights.unique(dim=0)) > 300
    assert weights[1:].mean(dim=0).tolist() == pytest.approx(7 * [1.0], abs=0.2)
    assert float(weights[1:].var()) == pytest.approx(6 / 7, rel=0.1)  # binomial: 7 draws, 1/7 each


def test_resamples_depend_on_their_seed_alone():
    state = torch.get_rng_state()
    weights = resample_weights(20, 5, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1234)
    assert torch.equal(resample_weights(20, 5, seed=1), weights)
    assert not torch.equal(resample_weights(20, 5, seed=2), weights)


def test_interval_is_the_middle_95_percent_of_the_resamples():
    resamples = torch.arange(1001, dtype=torch.float64)[torch.randperm(1001)]
    assert interval(torch.cat([torch.tensor([1.0e6]).double(), resamples])) == pytest.approx((25, 975))
    assert interval(torch.tensor([0.0, 1.0, math.nan, 1.0], dtype=torch.float64)) == (1.0, 1.0)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_interval_of_a_share_is_the_binomial_one(share):
    num_images = 400
    labels = torch.ones(num_images, 1)
    probs = (torch.arange(num_images) < share * num_images).float()[:, None]
    accuracy = classification_metrics(probs, labels, resample_weights(num_images, 4000, seed=0))["class_accuracy"]
    assert float(accuracy[0]) == pytest.approx(share)
    margin = 1.96 * math.sqrt(share * (1 - share) / num_images)
    assert interval(accuracy) == pytest.approx((share - margin, share + margin), abs=0.006)


def test_interval_holds_the_truth_19_times_in_20():
    generator, weights = torch.Generator().manual_seed(0), resample_weights(100, 400, seed=0)
    labels = torch.ones(100, 1)
    covered = []
    for _ in range(200):
        probs = torch.rand(100, 1, generator=generator)
        low, high = interval(classification_metrics(probs, labels, weights)["class_accuracy"])
        covered.append(low <= 0.5 <= high)
    assert 0.9 <= sum(covered) / 200 <= 0.99


def test_difference_of_two_models_on_the_same_images_is_tighter_than_either():
    generator, weights = torch.Generator().manual_seed(0), resample_weights(200, 500, seed=0)
    labels = torch.ones(200, 1)
    before = (torch.rand(200, 1, generator=generator) < 0.5).float()
    after = before.clone()
    after[(before == 0).nonzero()[:10, 0]] = 1.0  # ten more images right, none lost
    shares = [classification_metrics(probs, labels, weights)["class_accuracy"] for probs in (before, after)]
    low, high = interval(shares[1] - shares[0])
    assert 0 < low < 0.05 < high
    assert high - low < 0.6 * (interval(shares[0])[1] - interval(shares[0])[0])
