import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from pipeline.metrics import (
    THRESHOLDS,
    attention_metrics,
    attention_scores,
    class_iou,
    class_macro,
    classification_metrics,
    confusion_matrix,
    context_bias_groups,
    context_bias_metrics,
    segmentation_metrics,
)

VOID = 255


def numbers(scores: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    return {name: values.flatten().tolist() for name, values in scores.items()}


# ---- segmentation ----------------------------------------------------------------------------------------------------


def test_confusion_matrix_counts_by_hand_with_truth_in_rows():
    target = torch.tensor([[[0, 1, 2], [2, VOID, 1]]])
    prediction = torch.tensor([[[0, 1, 1], [2, 2, 0]]])
    assert confusion_matrix(prediction, target, 3).tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]


def test_confusion_matrix_of_nothing_but_void_is_zero():
    target = torch.full((2, 3, 3), VOID)
    assert confusion_matrix(torch.zeros_like(target), target, 3).tolist() == 3 * [[0, 0, 0]]


def test_segmentation_scores_by_hand():
    scores = segmentation_metrics(torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1]]))
    assert scores["pixel_accuracy"] == pytest.approx(3 / 5)
    assert scores["mean_accuracy"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert scores["mean_iou"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    assert scores["frequency_weighted_iou"] == pytest.approx((1 / 2 + 2 / 3 + 2 / 2) / 5)


def test_class_absent_from_the_truth_is_left_out_of_the_means_but_costs_the_others():
    confusion = torch.tensor([[2, 1, 0], [0, 0, 0], [0, 0, 0]])  # class 1 predicted once, class 2 never
    iou = class_iou(confusion).tolist()
    assert iou[:2] == pytest.approx([2 / 3, 0])
    assert math.isnan(iou[2])
    assert segmentation_metrics(confusion) == pytest.approx(
        {"pixel_accuracy": 2 / 3, "mean_accuracy": 2 / 3, "mean_iou": 2 / 3, "frequency_weighted_iou": 2 / 3}
    )


def test_perfect_segmentation_scores_one():
    target = torch.tensor([[[0, 1], [VOID, 2]]])
    confusion = confusion_matrix(torch.tensor([[[0, 1], [0, 2]]]), target, 4)
    assert set(segmentation_metrics(confusion).values()) == {1.0}


@pytest.mark.parametrize("seed", range(5))
def test_segmentation_agrees_with_scikit_learn(seed):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 5, (3, 7, 9), generator=generator)
    prediction = torch.randint(0, 5, (3, 7, 9), generator=generator)
    prediction = torch.where(torch.rand(target.shape, generator=generator) < 0.4, target, prediction)
    target[torch.rand(target.shape, generator=generator) < 0.2] = VOID
    truth, guess = target[target != VOID].numpy(), prediction[target != VOID].numpy()
    confusion = confusion_matrix(prediction, target, 5)
    assert confusion.tolist() == sklearn_metrics.confusion_matrix(truth, guess).tolist()
    assert class_iou(confusion).tolist() == pytest.approx(sklearn_metrics.jaccard_score(truth, guess, average=None))
    assert segmentation_metrics(confusion) == pytest.approx(
        {
            "pixel_accuracy": sklearn_metrics.accuracy_score(truth, guess),
            "mean_accuracy": sklearn_metrics.balanced_accuracy_score(truth, guess),
            "mean_iou": sklearn_metrics.jaccard_score(truth, guess, average="macro"),
            "frequency_weighted_iou": sklearn_metrics.jaccard_score(truth, guess, average="weighted"),
        }
    )


# ---- classification --------------------------------------------------------------------------------------------------


def test_classification_scores_by_hand():
    probs = torch.tensor([[0.9, 0.5, 0.0], [0.2, 0.7, 0.1], [0.49, 0.1, 0.2]])  # 0.5 counts as predicted
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    scores = classification_metrics(probs, labels)
    assert scores["class_accuracy"] == pytest.approx(7 / 9)
    assert scores["exact_match"] == pytest.approx(1 / 3)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)  # class 2 neither occurs nor is predicted


def test_class_that_is_predicted_but_never_occurs_has_f1_zero():
    scores = classification_metrics(torch.tensor([[0.9, 0.9]]), torch.tensor([[1.0, 0.0]]))
    assert scores == {"class_accuracy": 0.5, "exact_match": 0.0, "macro_f1": 0.5}


@pytest.mark.parametrize("seed", range(5))
def test_classification_agrees_with_scikit_learn(seed):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.rand(40, 4, generator=generator)
    labels = (torch.rand(40, 4, generator=generator) < 0.3).float()
    truth, guess = labels.numpy(), (probs >= 0.5).numpy()
    assert classification_metrics(probs, labels) == pytest.approx(
        {
            "class_accuracy": 1 - sklearn_metrics.hamming_loss(truth, guess),
            "exact_match": sklearn_metrics.accuracy_score(truth, guess),
            "macro_f1": sklearn_metrics.f1_score(truth, guess, average="macro"),
        }
    )


# ---- attention -------------------------------------------------------------------------------------------------------


def test_attention_scores_by_hand():
    maps = torch.tensor([[[0.8, 0.4, 0.08], [0.2, 0.0, 0.72]]])
    mask = torch.tensor([[[True, False, True], [False, False, True]]])
    valid = torch.tensor([[[True, True, True], [True, True, False]]])
    scores = numbers(attention_scores(maps, mask, valid, 0.2))
    # Attended at 0.2 * 0.8: three pixels, one of the two in the mask. The last pixel is void.
    assert scores["attention_iou"] == pytest.approx([1 / 4])
    assert scores["mask_precision"] == pytest.approx([1 / 3])
    assert scores["mask_recall"] == pytest.approx([1 / 2])
    assert scores["energy_pointing_game"] == pytest.approx([0.88 / 1.48])
    assert scores["pointing_game"] == [1.0]
    assert scores["pointing_game_centre"] == [0.0]
    assert scores["area"] == pytest.approx([2 / 5])
    at_thresholds = scores["iou_at_thresholds"]
    assert THRESHOLDS[[0, 7, 18]].tolist() == pytest.approx([0.05, 0.4, 0.95])
    assert [at_thresholds[0], at_thresholds[7], at_thresholds[18]] == pytest.approx([2 / 4, 1 / 3, 1 / 2])


def test_maximum_on_void_neither_points_nor_sets_the_threshold():
    maps = torch.tensor([[[0.2, 1.0], [0.1, 0.01]]])
    mask = torch.tensor([[[True, True], [False, False]]])
    valid = torch.tensor([[[True, False], [True, True]]])
    scores = numbers(attention_scores(maps, mask, valid, 0.4))
    assert scores["attention_iou"] == pytest.approx([1 / 2])
    assert scores["mask_recall"] == [1.0]
    assert scores["energy_pointing_game"] == pytest.approx([0.2 / 0.31])
    assert scores["pointing_game"] == [1.0]


def test_perfect_map_scores_one():
    mask = torch.zeros(1, 5, 7, dtype=torch.bool)
    mask[0, 1:4, 2:6] = True
    scores = numbers(attention_scores(mask.float(), mask, torch.ones_like(mask), 0.2))
    assert scores.pop("area") == pytest.approx([12 / 35])
    assert {value for values in scores.values() for value in values} == {1.0}


@pytest.mark.parametrize("threshold", [0.0, 0.2, 1.0])
def test_dead_map_scores_zero_and_never_nan(threshold):
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    scores = numbers(attention_scores(torch.zeros(1, 4, 4), mask, mask, threshold))
    assert (scores.pop("area"), scores.pop("pointing_game_centre")) == ([1.0], [1.0])
    assert {value for values in scores.values() for value in values} == {0.0}


def test_pair_without_a_valid_pixel_scores_zero_and_never_nan():
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    scores = numbers(attention_scores(torch.ones(1, 4, 4), mask, torch.zeros_like(mask), 0.2))
    assert {value for values in scores.values() for value in values} == {0.0}


def test_map_outside_the_mask_scores_zero():
    mask = torch.tensor([[[True, False], [False, False]]])
    scores = numbers(attention_scores((~mask).float(), mask, torch.ones_like(mask), 0.2))
    assert scores.pop("area") == [0.25]
    assert {value for values in scores.values() for value in values} == {0.0}


@pytest.mark.parametrize(("row", "column", "expected"), [(1, 2, 1.0), (0, 2, 0.0), (1, 1, 0.0)])
def test_centre_baseline_looks_at_the_centre_of_a_3x5_image_alone(row, column, expected):
    mask = torch.zeros(1, 3, 5, dtype=torch.bool)
    mask[0, row, column] = True
    maps = torch.rand(1, 3, 5, generator=torch.Generator().manual_seed(0))
    scores = attention_scores(maps, mask, torch.ones_like(mask), 0.2)
    assert scores["pointing_game_centre"].tolist() == [expected]
    assert attention_scores(maps, mask, ~mask, 0.2)["pointing_game_centre"].tolist() == [0.0]


def random_pairs(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(4, 6, 5, generator=generator)
    maps[3] = 0
    return maps, *(torch.rand(4, 6, 5, generator=generator) < share for share in (0.3, 0.8))


@given(st.integers(0, 1000), st.integers(-8, 0))
def test_attention_scores_do_not_depend_on_the_scale_of_a_map(seed, exponent):
    maps, mask, valid = random_pairs(seed)
    scaled = numbers(attention_scores(maps * 2.0**exponent, mask, valid, 0.2))
    for name, values in numbers(attention_scores(maps, mask, valid, 0.2)).items():
        assert scaled[name] == pytest.approx(values), name


def test_attention_of_a_batch_is_that_of_its_pairs():
    maps, mask, valid = random_pairs(0)
    together = attention_scores(maps, mask, valid, 0.2)
    alone = [attention_scores(maps[i : i + 1], mask[i : i + 1], valid[i : i + 1], 0.2) for i in range(4)]
    for name, values in together.items():
        assert torch.equal(values, torch.cat([scores[name] for scores in alone])), name


def test_attention_iou_agrees_with_scikit_learn():
    maps, mask, valid = random_pairs(1)
    scores = attention_scores(maps, mask, valid, 0.5)
    for pair in range(3):
        attended = maps[pair] >= 0.5 * maps[pair][valid[pair]].max()
        truth, guess = mask[pair][valid[pair]].numpy(), attended[valid[pair]].numpy()
        oracle = {
            "attention_iou": sklearn_metrics.jaccard_score(truth, guess),
            "mask_precision": sklearn_metrics.precision_score(truth, guess),
            "mask_recall": sklearn_metrics.recall_score(truth, guess),
        }
        assert {name: float(scores[name][pair]) for name in oracle} == pytest.approx(oracle)
        assert float(scores["iou_at_thresholds"][pair, 9]) == pytest.approx(oracle["attention_iou"])  # 0.5 too


def test_class_macro_is_a_mean_of_class_means():
    values, class_index = torch.tensor([1.0, 0.0, 0.0, 0.5]), torch.tensor([0, 0, 0, 2])
    assert float(class_macro(values, class_index)) == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert float(class_macro(values, class_index)) != pytest.approx(float(values.mean()))
    pairs = torch.stack([values, 1 - values], dim=1)
    assert class_macro(pairs, class_index).tolist() == pytest.approx([5 / 12, 7 / 12])


def test_attention_metrics_by_hand():
    curves = torch.zeros(4, 19)
    curves[:3, 3] = 0.9  # the class with more pairs is best at 0.2,
    curves[:3, 9] = 0.6
    curves[3, 9] = 0.8  # the other at 0.5: (0.6 + 0.8) / 2 > 0.9 / 2
    ramp = torch.tensor([1.0, 0.0, 0.5, 1.0])
    names = ("attention_iou", "mask_precision", "mask_recall", "energy_pointing_game", "pointing_game")
    names += ("pointing_game_centre", "coverage")
    scores = {name: ramp / (number + 1) for number, name in enumerate(names)}
    scores |= {"iou_at_thresholds": curves, "dead": torch.tensor([0.0, 1.0, 0.0, 0.0])}
    metrics = attention_metrics({**scores, "class_index": torch.tensor([1, 1, 1, 4])})
    expected = {name: 0.75 / (number + 1) for number, name in enumerate(names)}
    expected |= {"attention_iou_best": 0.7, "attention_best_threshold": 0.5, "dead_map_rate": 0.25}
    assert metrics == pytest.approx(expected)


def test_attention_metrics_without_a_pair_are_empty():
    assert attention_metrics({"class_index": torch.zeros(0, dtype=torch.int64)}) == {}


# ---- context bias ----------------------------------------------------------------------------------------------------


def test_context_bias_by_hand():
    object_labels = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]])
    object_probs = torch.tensor([[0.5, 0.9, 0.9], [0.4, 0.9, 0.9], [0.0, 0.9, 0.0], [0.0, 0.8, 0.9]])
    context_labels = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]])
    context_probs = torch.tensor([[0.1, 0.9, 0], [0, 0.5, 0], [0, 0.6, 0], [0, 0.7, 0], [0.9, 0.49, 0.9]])
    groups = context_bias_groups(object_probs, object_labels, context_probs, context_labels)
    assert list(groups) == ["object_without_context", "context_without_object"]
    assert groups["object_without_context"][:2].tolist() == [0.5, 1.0]
    assert groups["context_without_object"][:2].tolist() == [1.0, 0.25]
    assert all(values[2].isnan() for values in groups.values())  # class without an image
    assert context_bias_metrics(groups) == pytest.approx(
        {
            "object_without_context": 0.75,
            "context_without_object": 0.625,
            "overall": (0.75 + 0.625) / 2,
            "worst_group": 0.25,
        }
    )


def test_classifier_that_looks_at_the_context_alone_is_always_wrong():
    labels = torch.eye(3)
    seen = torch.roll(labels, 1, dims=1)  # the foreign ground that an object stands on
    groups = context_bias_groups(seen, labels, labels, labels)
    assert set(context_bias_metrics(groups).values()) == {0.0}
    groups = context_bias_groups(labels, labels, torch.zeros(3, 3), labels)
    assert set(context_bias_metrics(groups).values()) == {1.0}
