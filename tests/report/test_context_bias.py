"""Scores of a classifier on objects without their context, and on contexts without their object."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_scores import numbers, ones, only_row, random_images

from pipeline.report.context_bias import Predictions, context_bias_groups, context_bias_metrics


def test_context_bias_by_hand():
    object_labels = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]])
    object_probs = torch.tensor([[0.5, 0.9, 0.9], [0.4, 0.9, 0.9], [0.0, 0.9, 0.0], [0.0, 0.8, 0.9]])
    context_labels = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]])
    context_probs = torch.tensor([[0.1, 0.9, 0], [0, 0.5, 0], [0, 0.6, 0], [0, 0.7, 0], [0.9, 0.49, 0.9]])
    groups = context_bias_groups(
        Predictions(object_probs, object_labels, ones(4)), Predictions(context_probs, context_labels, ones(5))
    )
    assert list(groups) == ["object_without_context", "context_without_object"]
    assert groups["object_without_context"][0, :2].tolist() == [0.5, 1.0]
    assert groups["context_without_object"][0, :2].tolist() == [1.0, 0.25]
    assert all(values[0, 2].isnan() for values in groups.values())  # class without an image
    assert only_row(context_bias_metrics(groups)) == pytest.approx(
        {
            "object_without_context": 0.75,
            "context_without_object": 0.625,
            "overall": (0.75 + 0.625) / 2,
            "worst_group": 0.25,
        }
    )


def test_context_bias_weighs_both_sets_of_images_apart():
    labels, probs = torch.tensor([[1.0, 0], [1, 0], [0, 1]]), torch.tensor([[0.9, 0], [0.1, 0], [0, 0.9]])
    object_weights = torch.tensor([[1.0, 1, 1], [1, 3, 0]], dtype=torch.float64)
    context_weights = torch.tensor([[1.0, 1, 1], [3, 1, 2]], dtype=torch.float64)
    groups = context_bias_groups(
        Predictions(probs, labels, object_weights), Predictions(probs, labels, context_weights)
    )
    assert groups["object_without_context"].tolist()[0] == [1 / 2, 1]
    assert groups["object_without_context"].tolist()[1] == pytest.approx([1 / 4, math.nan], nan_ok=True)
    assert groups["context_without_object"].tolist() == [[1 / 2, 0], [1 / 4, 0]]
    assert numbers(context_bias_metrics(groups)) == {
        "object_without_context": [3 / 4, 1 / 4],
        "context_without_object": [1 / 4, 1 / 8],
        "overall": [1 / 2, 3 / 16],
        "worst_group": [0, 0],
    }


def test_classifier_that_looks_at_the_context_alone_is_always_wrong():
    labels = torch.eye(3)
    seen = torch.roll(labels, 1, dims=1)  # the foreign ground that an object stands on
    groups = context_bias_groups(Predictions(seen, labels, ones(3)), Predictions(labels, labels, ones(3)))
    assert set(only_row(context_bias_metrics(groups)).values()) == {0.0}
    groups = context_bias_groups(Predictions(labels, labels, ones(3)), Predictions(torch.zeros(3, 3), labels, ones(3)))
    assert set(only_row(context_bias_metrics(groups)).values()) == {1.0}


def context_bias(images: dict[str, torch.Tensor], weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the images as both sets, the second one in reverse and with the weights reversed."""
    probs, labels = images["probs"], images["labels"]
    flipped = Predictions(probs.flip(0), labels.flip(0), weights.flip(1))
    return context_bias_metrics(context_bias_groups(Predictions(probs, labels, weights), flipped))


@given(st.integers(0, 1000), st.lists(st.integers(0, 3), min_size=9, max_size=9).filter(any))
def test_weight_of_an_image_is_how_often_it_is_there(seed, counts):
    images = random_images(seed)
    weighted = context_bias(images, torch.tensor([9 * [1], counts], dtype=torch.float64))
    repeated = {name: values.repeat_interleave(torch.tensor(counts), dim=0) for name, values in images.items()}
    expected = only_row(context_bias(repeated, ones(sum(counts))))
    estimate = only_row(context_bias(images, ones(9)))
    for name, values in numbers(weighted).items():
        assert values == pytest.approx([estimate[name], expected[name]], nan_ok=True), name
