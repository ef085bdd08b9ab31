"""A network over data: the same result from any batches, in the order of the data set."""

import pytest
import torch
import torch.nn.functional as F
from small_scores import CPU, SCORING, split

from pipeline.data.samples import Sample
from pipeline.evaluation.metrics import SIZES, confusion_matrix
from pipeline.evaluation.passes import evaluate, validation_scores


@pytest.mark.parametrize("size", [1, 3, 8])
def test_evaluation_does_not_depend_on_the_batches(sighted_model, test_set, size):
    whole = Sample(*(torch.cat(tensors) for tensors in zip(*test_set, strict=True)))
    result, expected = (
        evaluate(sighted_model, split(whole, size), CPU, SCORING),
        evaluate(sighted_model, test_set, CPU, SCORING),
    )
    assert torch.equal(result.confusions, expected.confusions)
    assert torch.allclose(result.class_probs, expected.class_probs, atol=1e-6)
    assert torch.equal(result.image_labels, expected.image_labels)
    for name, values in expected.attention.items():
        assert torch.allclose(result.attention[name], values, atol=1e-4), name


def test_pairs_and_confusions_know_their_image(sighted_model, test_set):
    result = evaluate(sighted_model, test_set, CPU, SCORING)
    assert result.attention["image_index"].tolist() == [0, 1, 1, 3, 3, 3, 4, 5, 5, 7, 7, 7]
    assert result.attention["class_index"].tolist() == 2 * [0, 1, 2, 0, 1, 2]
    assert result.confusions.shape == (8, 4, 4)
    pixels = torch.bincount(test_set[0].target[1].flatten(), minlength=4)
    assert result.confusions[1].sum(dim=1).tolist() == pixels.tolist()
    assert result.confusions[4].sum() == 48 * 40 - 16  # void


def test_images_may_come_from_the_middle_of_a_data_set(sighted_model, test_set):
    attention = evaluate(sighted_model, test_set[1:], CPU, SCORING).attention
    assert attention["image_index"].tolist() == [0, 1, 1, 3, 3, 3]


def test_validation_scores_are_what_was_asked_for(sighted_model, test_set):
    row = validation_scores(evaluate(sighted_model, test_set, CPU, SCORING))
    assert {"mean_iou", "macro_f1", "attention_iou", "dead_map_rate"} <= set(row)
    assert not [name for name in row if name.endswith(SIZES)]
    assert all(type(value) is float and 0 <= value <= 1 for value in row.values())
    without = validation_scores(evaluate(sighted_model, test_set, CPU, SCORING, attention=False))
    assert set(without) == {f"{n}" for n in ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")}
    assert without.items() <= row.items()
    blind = validation_scores(evaluate(sighted_model, test_set, CPU, SCORING, segmentation=False))
    assert set(blind) == set(row) - set(without)


def test_batches_of_one_size_each_may_come_in_any_order(sighted_model, test_set):
    """As they do from `evaluation_loader`, where images differ in size."""
    singles = split(Sample(*(torch.cat(tensors) for tensors in zip(*test_set, strict=True))), 1)
    shuffled = [singles[i] for i in (5, 0, 7, 3, 1, 6, 2, 4)]
    result, expected = evaluate(sighted_model, shuffled, CPU, SCORING), evaluate(sighted_model, singles, CPU, SCORING)
    assert torch.equal(result.confusions, expected.confusions)
    assert torch.equal(result.class_probs, expected.class_probs)
    for name, values in expected.attention.items():
        assert torch.equal(result.attention[name], values), name


@torch.no_grad()
def test_a_stated_scale_resizes_images_and_scores_against_the_masks_as_they_are(sighted_model, test_set):
    whole = Sample(*(torch.cat(tensors) for tensors in zip(*test_set, strict=True)))
    sighted_model.scale = 0.5
    result = evaluate(sighted_model, test_set, CPU, SCORING)
    options = {"mode": "bilinear", "align_corners": False, "antialias": True}
    seg_logits, class_logits = sighted_model(F.interpolate(whole.image, size=(24, 20), **options))
    prediction = F.interpolate(seg_logits, size=(48, 40), **options).argmax(dim=1)
    assert torch.equal(result.confusions, confusion_matrix(prediction, whole.target, 4))
    assert torch.allclose(result.class_probs, class_logits.sigmoid(), atol=1e-6)
    area = (whole.target[0] == 1).sum() / (whole.target[0] != 255).sum()
    assert result.attention["area"][0].item() == pytest.approx(area.item())
    sighted_model.scale = 1.0
    assert not torch.allclose(result.class_probs, evaluate(sighted_model, test_set, CPU, SCORING).class_probs)
