"""Scores of a classifier on objects and grounds that were separated."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_scores import numbers, ones, only_row, random_images

from pipeline.base.scores import LOWER_IS_BETTER, SCORES, TEST_ONLY
from pipeline.datasets.counterfactual.table import OBJECT_SETS, SETS
from pipeline.report.bootstrap import interval, resample_weights
from pipeline.report.context_bias import Predictions
from pipeline.report.counterfactual_scores import counterfactual_groups, counterfactual_metrics

LABELS = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]])
# Probabilities of the class that each image shows or showed; those of the others must not matter.
PROBS = {
    "only_object": [0.5, 0.9, 0.9, 0.9, 0.9],
    "mixed_same": [0.9, 0.6, 0.8, 0.7, 0.1],
    "mixed_rand": [0.4, 0.6, 0.8, 0.2, 0.1],
    "no_object_filled": [0.9, 0.1, 0.1, 0.1, 0.5],
    "no_object_mean": [0.49, 0.1, 0.1, 0.1, 0.1],
}


def predictions(weights: torch.Tensor, probs: dict[str, list[float]] | None = None) -> dict[str, Predictions]:
    found = {}
    for name, values in (probs or PROBS).items():
        of_class = torch.tensor(values)[:, None] * LABELS
        others = torch.full((5, 3), 0.7 if name == "only_object" else 0.2) * (1 - LABELS)
        found[name] = Predictions(of_class + others, LABELS, weights)
    return found


def test_scores_by_hand():
    groups = counterfactual_groups(predictions(ones(5)))
    assert list(groups) == [*SETS, "background_gap"]
    by_class = {name: values[0, :2].tolist() for name, values in groups.items()}
    assert by_class == {
        "only_object": [1, 1],
        "mixed_same": [1, pytest.approx(2 / 3)],
        "mixed_rand": [0.5, pytest.approx(1 / 3)],
        "no_object_filled": [0.5, pytest.approx(2 / 3)],
        "no_object_mean": [1, 1],
        "background_gap": [0.5, pytest.approx(1 / 3)],
    }
    assert all(values[0, 2].isnan() for values in groups.values())  # class without an image
    assert only_row(counterfactual_metrics(groups)) == pytest.approx(
        {
            "only_object": 1,
            "mixed_same": 5 / 6,
            "mixed_rand": 5 / 12,
            "no_object_filled": 7 / 12,
            "no_object_mean": 1,
            "background_gap": 5 / 12,
            "counterfactual_overall": 0.5,
            "counterfactual_worst_group": 1 / 3,
        }
    )


def test_names_are_those_that_params_may_name():
    metrics = counterfactual_metrics(counterfactual_groups(predictions(ones(5))))
    assert tuple(metrics) == SCORES["counterfactual"]
    assert set(metrics) <= set(TEST_ONLY)
    assert "background_gap" in LOWER_IS_BETTER


def test_classifier_that_sees_the_ground_alone_has_the_largest_gap():
    ground = {"mixed_same": 5 * [1.0], "mixed_rand": 5 * [0.0], "no_object_filled": 5 * [1.0]}
    scores = only_row(counterfactual_metrics(counterfactual_groups(predictions(ones(5), ground))))
    assert scores["background_gap"] == 1
    assert scores["counterfactual_overall"] == scores["counterfactual_worst_group"] == 0
    seeing = {"mixed_same": 5 * [1.0], "mixed_rand": 5 * [1.0], "no_object_filled": 5 * [0.0]}
    scores = only_row(counterfactual_metrics(counterfactual_groups(predictions(ones(5), seeing))))
    assert scores["background_gap"] == 0
    assert scores["counterfactual_overall"] == scores["counterfactual_worst_group"] == 1


def test_weights_are_those_of_the_sources():
    weights = torch.tensor([[1.0, 1, 1, 1, 1], [3, 1, 0, 0, 2], [0, 0, 1, 0, 0]], dtype=torch.float64)
    groups = counterfactual_groups(predictions(weights))
    assert groups["mixed_rand"][:, :2].flatten().tolist() == pytest.approx(
        [1 / 2, 1 / 3, 1 / 4, 0, math.nan, 1], nan_ok=True
    )
    assert groups["background_gap"][:, :2].flatten().tolist() == pytest.approx(
        [1 / 2, 1 / 3, 3 / 4, 0, math.nan, 0], nan_ok=True
    )
    assert counterfactual_metrics(groups)["background_gap"].tolist() == pytest.approx([5 / 12, 3 / 8, 0])


def test_interval_of_the_gap_is_paired():
    """Where objects that are found on one ground are found on the other, chance moves both scores and not the gap."""
    labels, found = torch.ones(40, 1), torch.arange(40)[:, None] % 2 * 1.0
    weights = resample_weights(40, 500, 0)
    both = {name: Predictions(found, labels, weights) for name in ("mixed_same", "mixed_rand")}
    scores = counterfactual_metrics(counterfactual_groups(both))
    assert interval(scores["background_gap"]) == (0, 0)
    low, high = interval(scores["mixed_rand"])
    assert (low, high) == pytest.approx((0.35, 0.65), abs=0.051)


@pytest.mark.parametrize("lacking", [("mixed_same", "mixed_rand"), SETS])
def test_sets_that_are_not_there_have_no_scores(lacking):
    probs = {name: values for name, values in PROBS.items() if name not in lacking}
    scores = counterfactual_metrics(counterfactual_groups(predictions(ones(5), probs) if probs else {}))
    assert list(scores) == list(probs)


@given(st.integers(0, 1000), st.lists(st.integers(0, 3), min_size=9, max_size=9).filter(any))
def test_weight_of_an_image_is_how_often_it_is_there(seed, counts):
    images = random_images(seed)
    times = torch.tensor(counts)

    def scores(labels: torch.Tensor, probs: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        sets = {name: Predictions(probs.roll(k, 1), labels, weights) for k, name in enumerate(SETS)}
        return counterfactual_metrics(counterfactual_groups(sets))

    labels, probs = images["labels"], images["probs"]
    weighted = scores(labels, probs, torch.tensor([9 * [1], counts], dtype=torch.float64))
    repeated = (tensor.repeat_interleave(times, dim=0) for tensor in (labels, probs))
    expected = only_row(scores(*repeated, ones(sum(counts))))
    for name, values in numbers(weighted).items():
        assert values[1] == pytest.approx(expected[name], nan_ok=True), name
    assert set(OBJECT_SETS) < set(expected)
