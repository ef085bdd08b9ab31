import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from small_scores import numbers, ones, only_row, random_images, random_weights

from pipeline.evaluation.metrics import (
    PAIR_SCORES,
    SIZE_SCORES,
    SIZES,
    THRESHOLDS,
    attention_metrics,
    attention_metrics_by_size,
    attention_scores,
    average_precision,
    class_iou,
    class_macro,
    class_macro_means,
    classification_metrics,
    confusion_matrix,
    segmentation_metrics,
)

VOID = 255


# ---- segmentation ----------------------------------------------------------------------------------------------------


def test_confusion_matrix_counts_by_hand_with_truth_in_rows():
    target = torch.tensor([[[0, 1, 2], [2, VOID, 1]]])
    prediction = torch.tensor([[[0, 1, 1], [2, 2, 0]]])
    assert confusion_matrix(prediction, target, 3).tolist() == [[[1, 0, 0], [1, 1, 0], [0, 1, 1]]]


def test_confusion_matrix_of_nothing_but_void_is_zero():
    target = torch.full((2, 3, 3), VOID)
    assert confusion_matrix(torch.zeros_like(target), target, 3).tolist() == 2 * [3 * [[0, 0, 0]]]


def test_confusion_matrices_of_a_batch_are_those_of_its_images():
    generator = torch.Generator().manual_seed(0)
    target, prediction = torch.randint(0, 4, (2, 5, 6, 7), generator=generator)
    target[2], target[4, :3] = VOID, VOID
    alone = [confusion_matrix(prediction[i : i + 1], target[i : i + 1], 4)[0] for i in range(5)]
    assert torch.equal(confusion_matrix(prediction, target, 4), torch.stack(alone))


def test_segmentation_scores_by_hand():
    scores = only_row(segmentation_metrics(torch.tensor([[[1, 0, 0], [1, 1, 0], [0, 1, 1]]]), ones(1)))
    assert scores["pixel_accuracy"] == pytest.approx(3 / 5)
    assert scores["mean_accuracy"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert scores["mean_iou"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    assert scores["frequency_weighted_iou"] == pytest.approx((1 / 2 + 2 / 3 + 2 / 2) / 5)


def test_class_absent_from_the_truth_is_left_out_of_the_means_but_costs_the_others():
    confusion = torch.tensor([[[2, 1, 0], [0, 0, 0], [0, 0, 0]]])  # class 1 predicted once, class 2 never
    iou = class_iou(confusion[0]).tolist()
    assert iou[:2] == pytest.approx([2 / 3, 0])
    assert math.isnan(iou[2])
    assert only_row(segmentation_metrics(confusion, ones(1))) == pytest.approx(
        {"pixel_accuracy": 2 / 3, "mean_accuracy": 2 / 3, "mean_iou": 2 / 3, "frequency_weighted_iou": 2 / 3}
    )


def test_perfect_segmentation_scores_one():
    target = torch.tensor([[[0, 1], [VOID, 2]]])
    confusion = confusion_matrix(torch.tensor([[[0, 1], [0, 2]]]), target, 4)
    assert set(only_row(segmentation_metrics(confusion, ones(1))).values()) == {1.0}


def test_images_weigh_as_much_as_their_weight_says():
    confusions = torch.tensor([[[3, 0], [0, 0]], [[0, 1], [1, 1]]])
    weights = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [2.0, 1.0]], dtype=torch.float64)
    scores = numbers(segmentation_metrics(confusions, weights))
    assert scores["pixel_accuracy"] == pytest.approx([4 / 6, 1 / 3, 1, 7 / 9])
    # Class 1 is absent from the third row, and from its mean.
    assert scores["mean_accuracy"] == pytest.approx([(3 / 4 + 1 / 2) / 2, (0 + 1 / 2) / 2, 1, (6 / 7 + 1 / 2) / 2])
    assert scores["mean_iou"] == pytest.approx([(3 / 5 + 1 / 3) / 2, (0 + 1 / 3) / 2, 1, (6 / 8 + 1 / 3) / 2])


@pytest.mark.parametrize("seed", range(5))
def test_segmentation_agrees_with_scikit_learn(seed):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 5, (3, 7, 9), generator=generator)
    prediction = torch.randint(0, 5, (3, 7, 9), generator=generator)
    prediction = torch.where(torch.rand(target.shape, generator=generator) < 0.4, target, prediction)
    target[torch.rand(target.shape, generator=generator) < 0.2] = VOID
    truth, guess = target[target != VOID].numpy(), prediction[target != VOID].numpy()
    confusions = confusion_matrix(prediction, target, 5)
    confusion = confusions.sum(dim=0)
    assert confusion.tolist() == sklearn_metrics.confusion_matrix(truth, guess).tolist()
    assert class_iou(confusion).tolist() == pytest.approx(sklearn_metrics.jaccard_score(truth, guess, average=None))
    assert only_row(segmentation_metrics(confusions, ones(3))) == pytest.approx(
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
    scores = only_row(classification_metrics(probs, labels, ones(3)))
    assert scores["class_accuracy"] == pytest.approx(7 / 9)
    assert scores["exact_match"] == pytest.approx(1 / 3)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)  # class 2 neither occurs nor is predicted


def test_class_that_is_predicted_but_never_occurs_has_f1_zero():
    scores = classification_metrics(torch.tensor([[0.9, 0.9]]), torch.tensor([[1.0, 0.0]]), ones(1))
    assert only_row(scores) == {
        "class_accuracy": 0.5,
        "exact_match": 0.0,
        "macro_f1": 0.5,
        "mean_average_precision": 1.0,
    }


@pytest.mark.parametrize("seed", range(5))
def test_classification_agrees_with_scikit_learn(seed):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.rand(40, 4, generator=generator)
    labels = (torch.rand(40, 4, generator=generator) < 0.3).float()
    truth, guess = labels.numpy(), (probs >= 0.5).numpy()
    assert only_row(classification_metrics(probs, labels, ones(40))) == pytest.approx(
        {
            "class_accuracy": 1 - sklearn_metrics.hamming_loss(truth, guess),
            "exact_match": sklearn_metrics.accuracy_score(truth, guess),
            "macro_f1": sklearn_metrics.f1_score(truth, guess, average="macro"),
            "mean_average_precision": sklearn_metrics.average_precision_score(truth, probs.numpy(), average="macro"),
        }
    )


def test_average_precision_by_hand():
    """Class 0 is found first, third and last of four, class 1 in a tie of three and last; class 2 does not occur."""
    probs = torch.tensor([[0.9, 0.8, 0.5], [0.8, 0.8, 0.1], [0.7, 0.8, 0.1], [0.1, 0.2, 0.1]])
    present = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0]]) > 0
    found = average_precision(probs, present, ones(4))[0].tolist()
    assert found[:2] == pytest.approx([(1 + 2 / 3 + 3 / 4) / 3, (1 / 3 + 2 / 4) / 2])
    assert math.isnan(found[2])
    scores = classification_metrics(probs, present.float(), ones(4))
    assert only_row(scores)["mean_average_precision"] == pytest.approx(sum(found[:2]) / 2)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_of_resamples_is_that_of_the_images_drawn(seed):
    """Ties and images that weigh nothing included; scikit-learn scores the images as often as they were drawn."""
    generator = torch.Generator().manual_seed(seed)
    probs = (10 * torch.rand(30, 3, generator=generator)).round() / 10
    present = torch.rand(30, 3, generator=generator) < 0.4
    weights = random_weights(6, 30)
    found = average_precision(probs, present, weights)
    for row, counts in enumerate(weights.long()):
        drawn = torch.arange(30).repeat_interleave(counts)
        expected = sklearn_metrics.average_precision_score(present[drawn].numpy(), probs[drawn].numpy(), average=None)
        assert found[row].tolist() == pytest.approx(expected.tolist())


def test_images_of_highest_probability_may_weigh_nothing():
    probs, present = torch.tensor([[0.9], [0.5], [0.4]]), torch.tensor([[True], [False], [True]])
    weights = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).double()
    found = average_precision(probs, present, weights)[:, 0].tolist()
    assert found[:3] == pytest.approx([1 / 2, 1, 1])
    assert math.isnan(found[3])


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
    weights = torch.tensor([[1.0, 1, 1, 1], [2, 1, 0, 1], [0, 0, 0, 3], [0, 0, 0, 0]], dtype=torch.float64)
    means = class_macro(values, class_index, weights)
    assert means.tolist() == pytest.approx([(1 / 3 + 1 / 2) / 2, (2 / 3 + 1 / 2) / 2, 1 / 2, math.nan], nan_ok=True)


def pair_scores(seed: int, num_images: int = 9, num_classes: int = 3) -> dict[str, torch.Tensor]:
    """Random scores of random (image, class) pairs, as `evaluate` collects them; the first image has one."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(num_images, num_classes, generator=generator) < 0.5
    labels[0, 0] = True
    image_index, class_index = labels.nonzero(as_tuple=True)
    names = (*PAIR_SCORES, "deletion_auc", "insertion_auc", "area")
    scores = {name: torch.rand(len(image_index), generator=generator) for name in names}
    scores["iou_at_thresholds"] = torch.rand(len(image_index), len(THRESHOLDS), generator=generator)
    scores["dead"] = (torch.rand(len(image_index), generator=generator) < 0.3).float()
    return {**scores, "image_index": image_index, "class_index": class_index}


def test_attention_metrics_by_hand():
    curves = torch.zeros(4, 19)
    curves[:3, 3] = 0.9  # the class with more pairs is best at 0.2,
    curves[:3, 9] = 0.6
    curves[3, 9] = 0.8  # the other at 0.5: (0.6 + 0.8) / 2 > 0.9 / 2
    ramp = torch.tensor([1.0, 0.0, 0.5, 1.0])
    scores = {name: ramp / (number + 1) for number, name in enumerate(PAIR_SCORES)}
    scores |= {"iou_at_thresholds": curves, "dead": torch.tensor([0.0, 1.0, 0.0, 0.0])}
    scores |= {"class_index": torch.tensor([1, 1, 1, 4]), "image_index": torch.tensor([0, 1, 2, 2])}
    # In the second row the last image is not drawn, the second one twice; 0.2 would be best there, but 0.5 stays.
    weights = torch.tensor([[1.0, 1.0, 1.0], [1.0, 2.0, 0.0]], dtype=torch.float64)
    metrics = numbers(attention_metrics(scores, weights))
    expected = {name: [0.75 / (number + 1), 1 / 3 / (number + 1)] for number, name in enumerate(PAIR_SCORES)}
    expected |= {
        "attention_iou_best": [0.7, 0.6],
        "attention_best_threshold": [0.5, 0.5],
        "dead_map_rate": [1 / 4, 2 / 3],
    }
    assert metrics == {name: pytest.approx(values) for name, values in expected.items()}


def test_attention_metrics_without_a_pair_are_empty():
    scores = {name: values[:0] for name, values in pair_scores(0).items()}
    assert attention_metrics(scores, ones(9)) == {}
    assert attention_metrics_by_size(scores, ones(9)) == {}


def test_scores_by_size_are_those_of_a_third_of_the_pairs():
    scores = {name: values[:9] for name, values in pair_scores(0, num_images=6).items()}
    scores["area"] = torch.tensor([0.5, 0.1, 0.9, 0.2, 0.6, 0.7, 0.3, 0.8, 0.4])
    weights = random_weights(20, 6)
    metrics = attention_metrics_by_size(scores, weights)
    assert set(metrics) == {f"{name}_{size}" for name in SIZE_SCORES for size in SIZES}
    for size, pairs in {"small": [1, 3, 6], "medium": [8, 0, 4], "large": [5, 7, 2]}.items():
        third = {name: values[pairs] for name, values in scores.items()}
        expected = numbers(class_macro_means(third, SIZE_SCORES, weights))
        for name in SIZE_SCORES:
            assert metrics[f"{name}_{size}"].tolist() == pytest.approx(expected[name], nan_ok=True)


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), min_size=1, max_size=30))
def test_thirds_part_the_pairs_by_size(areas):
    area, pairs = torch.tensor(areas), torch.arange(len(areas))
    scores = dict.fromkeys(SIZE_SCORES, area) | {"area": area, "image_index": pairs, "class_index": 0 * pairs}
    metrics = attention_metrics_by_size(scores, torch.eye(len(area), dtype=torch.float64))  # one pair a row
    nowhere = torch.full((len(area),), torch.nan)
    thirds = torch.stack([metrics.get(f"attention_iou_{size}", nowhere) for size in SIZES])
    assert set((~thirds.isnan()).sum(dim=0).tolist()) == {1}
    ordered = [value for third in thirds.tolist() for value in sorted(v for v in third if not math.isnan(v))]
    assert ordered == pytest.approx(sorted(areas))


def test_objects_of_one_size_are_all_small():
    scores = pair_scores(0)
    scores["area"] = torch.full_like(scores["area"], 0.1)
    metrics = attention_metrics_by_size(scores, ones(9))
    means = class_macro_means(scores, SIZE_SCORES, ones(9))
    assert numbers(metrics) == {f"{name}_small": values for name, values in numbers(means).items()}


# ---- weights of images -----------------------------------------------------------------------------------------------


SCORES: dict[str, Callable[..., dict[str, torch.Tensor]]] = {
    "segmentation": lambda images, weights: segmentation_metrics(images["confusions"], weights),
    "classification": lambda images, weights: classification_metrics(images["probs"], images["labels"], weights),
}


@pytest.mark.parametrize("group", SCORES)
@given(st.integers(0, 1000), st.lists(st.integers(0, 3), min_size=9, max_size=9).filter(any))
def test_weight_of_an_image_is_how_often_it_is_there(group, seed, counts):
    images = random_images(seed)
    weighted = SCORES[group](images, torch.tensor([9 * [1], counts], dtype=torch.float64))
    repeated = {name: values.repeat_interleave(torch.tensor(counts), dim=0) for name, values in images.items()}
    expected = only_row(SCORES[group](repeated, ones(sum(counts))))
    estimate = only_row(SCORES[group](images, ones(9)))
    for name, values in numbers(weighted).items():
        assert values == pytest.approx([estimate[name], expected[name]], nan_ok=True), name


@given(st.integers(0, 1000), st.lists(st.integers(0, 3), min_size=9, max_size=9).filter(any))
def test_weight_of_an_image_is_how_often_its_pairs_are_there(seed, counts):
    scores = pair_scores(seed)
    weights = torch.tensor([9 * [1], counts], dtype=torch.float64)
    metrics = attention_metrics(scores, weights) | attention_metrics_by_size(scores, weights)
    best = int((metrics["attention_best_threshold"][1] == THRESHOLDS).nonzero())
    times = torch.tensor(counts)[scores["image_index"]]
    # The thirds and the threshold are those of the data, not of the resample.
    bounds = np.quantile(scores["area"].double().numpy(), [1 / 3, 2 / 3])
    third = torch.from_numpy(np.searchsorted(bounds, scores["area"].double().numpy()))
    curves = {**scores, "attention_iou_best": scores["iou_at_thresholds"][:, best]}
    repeated = {n: v.repeat_interleave(times, dim=0).numpy() for n, v in {**curves, "third": third}.items()}

    def class_mean(name: str, chosen: np.ndarray) -> float:
        values, classes = repeated[name][chosen], repeated["class_index"][chosen]
        means = [values[classes == c].mean(dtype=np.float64) for c in np.unique(classes)]
        return float(np.mean(means)) if means else math.nan

    everything = repeated["third"] >= 0
    expected = {name: class_mean(name, everything) for name in (*PAIR_SCORES, "attention_iou_best")}
    for index, size in enumerate(SIZES):
        expected |= {f"{name}_{size}": class_mean(name, repeated["third"] == index) for name in SIZE_SCORES}
    expected["dead_map_rate"] = float(repeated["dead"].mean()) if len(repeated["dead"]) else math.nan
    resampled = {name: float(values[1]) for name, values in metrics.items() if name != "attention_best_threshold"}
    assert resampled == pytest.approx({name: expected[name] for name in resampled}, nan_ok=True)


def test_pairs_of_an_image_weigh_alike():
    scores = pair_scores(5, num_images=40, num_classes=1)
    doubled = {name: values.repeat_interleave(2, dim=0) for name, values in scores.items()}
    weights = random_weights(50, 40)
    single, double = attention_metrics(scores, weights), attention_metrics(doubled, weights)
    for name, values in numbers(single).items():
        assert double[name].tolist() == pytest.approx(values), name
