import copy

import pytest
import torch

from pipeline.data.samples import Sample
from pipeline.evaluation.metrics import SIZE_SCORES, SIZES, class_iou, interval
from pipeline.evaluation.passes import (
    estimates,
    evaluate,
    evaluate_faithfulness,
    results_table,
    score_model,
    validation_row,
)
from pipeline.gain.attention import attention_to_image, class_attention, normalise_attention
from pipeline.model.fcn8s import FCN8s
from pipeline.report.faithfulness import deletion_and_insertion

CPU = torch.device("cpu")
NAMES = ["cat", "dog", "fox"]


def split(batch: Sample, size: int) -> list[Sample]:
    """The same images in batches of `size`."""
    parts = zip(*(tensor.split(size) for tensor in batch), strict=True)
    return [Sample(*tensors) for tensors in parts]


@pytest.fixture
def test_set(batch) -> list[Sample]:
    """Eight images in batches of four; no two are alike."""
    noise = torch.randn(4, 3, 48, 40, generator=torch.Generator().manual_seed(1))
    return [batch, batch._replace(image=noise, sample_index=batch.sample_index + 4)]


@pytest.fixture
def model(tiny_model, test_set) -> FCN8s:
    """It finds each class in some images and not in others."""
    model = tiny_model()
    with torch.no_grad():
        logits = torch.cat([model(batch.image, segmentation=False)[1] for batch in test_set])
        model.classifier.score.bias -= logits.mean(dim=0)
    return model


@pytest.fixture
def score(test_set):
    """Scores a model on the test set, which also stands in for the counterfactual ones."""

    def function(model, **changes):
        counterfactual = {"object_without_context": test_set, "context_without_object": test_set[:1]}
        labels = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
        options = {
            "attention_threshold": 0.2, "mask_threshold": 0.5, "mask_slope": 10.0,
            "num_replicates": 20, "seed": 0, "deletion_steps": 3,
        }  # fmt: skip
        inputs = {"counterfactual": counterfactual, "faithfulness": []}
        inputs |= {name: changes.pop(name) for name in list(changes) if name in inputs}
        return score_model(
            model, test_set, *inputs.values(), CPU, NAMES, context_labels=labels, **{**options, **changes}
        )

    return function


@pytest.mark.parametrize("size", [1, 3, 8])
def test_evaluation_does_not_depend_on_the_batches(model, test_set, size):
    whole = Sample(*(torch.cat(tensors) for tensors in zip(*test_set, strict=True)))
    result, expected = evaluate(model, split(whole, size), CPU), evaluate(model, test_set, CPU)
    assert torch.equal(result.confusions, expected.confusions)
    assert torch.allclose(result.class_probs, expected.class_probs, atol=1e-6)
    assert torch.equal(result.image_labels, expected.image_labels)
    for name, values in expected.attention.items():
        assert torch.allclose(result.attention[name], values, atol=1e-4), name


def test_pairs_and_confusions_know_their_image(model, test_set):
    result = evaluate(model, test_set, CPU)
    assert result.attention["image_index"].tolist() == [0, 1, 1, 3, 3, 3, 4, 5, 5, 7, 7, 7]
    assert result.attention["class_index"].tolist() == 2 * [0, 1, 2, 0, 1, 2]
    assert result.confusions.shape == (8, 4, 4)
    pixels = torch.bincount(test_set[0].target[1].flatten(), minlength=4)
    assert result.confusions[1].sum(dim=1).tolist() == pixels.tolist()
    assert result.confusions[4].sum() == 48 * 40 - 16  # void


def test_images_may_come_from_the_middle_of_a_data_set(model, test_set):
    attention = evaluate(model, test_set[1:], CPU).attention
    assert attention["image_index"].tolist() == [0, 1, 1, 3, 3, 3]


def test_validation_row_holds_what_was_asked_for(model, test_set):
    row = validation_row(evaluate(model, test_set, CPU))
    assert {"val/mean_iou", "val/macro_f1", "val/attention_iou", "val/dead_map_rate"} <= set(row)
    assert not [name for name in row if name.endswith(SIZES)]
    assert all(type(value) is float and 0 <= value <= 1 for value in row.values())
    without = validation_row(evaluate(model, test_set, CPU, attention=False))
    assert set(without) == {
        f"val/{n}" for n in ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")
    }
    assert without.items() <= row.items()
    blind = validation_row(evaluate(model, test_set, CPU, segmentation=False))
    assert set(blind) == set(row) - set(without)


def test_scores_of_a_model_are_estimates_and_their_resamples(model, test_set, score):
    scores = score(model)
    assert list(scores.replicates) == ["segmentation", "classification", "attention", "context_bias"]
    for values in (values for group in scores.replicates.values() for values in group.values()):
        assert (values.dtype, values.shape) == (torch.float64, (21,))
    assert {f"{name}_{size}" for name in SIZE_SCORES for size in SIZES} <= set(scores.replicates["attention"])
    assert not {"deletion_auc", "insertion_auc"} & set(scores.replicates["attention"])
    flat = {f"val/{n}": v for group in estimates(scores.replicates).values() for n, v in group.items()}
    row = validation_row(evaluate(model, test_set, CPU))
    assert {name: flat[name] for name in row} == pytest.approx(row)
    assert torch.equal(scores.confusion, evaluate(model, test_set, CPU).confusions.sum(dim=0))
    low, high = interval(scores.replicates["segmentation"]["pixel_accuracy"])
    assert low < flat["val/pixel_accuracy"] < high


def test_class_rows_hold_the_estimates_and_the_number_of_pairs(model, score):
    scores = score(model)
    assert [row["class"] for row in scores.class_rows] == NAMES
    assert [row["pairs"] for row in scores.class_rows] == [4, 4, 4]
    estimate = estimates(scores.replicates)
    for group, names in {
        "attention": ["attention_iou", "energy_pointing_game", "pointing_game"],
        "context_bias": ["object_without_context", "context_without_object"],
    }.items():
        for name in names:
            mean = sum(row[name] for row in scores.class_rows) / 3
            assert mean == pytest.approx(estimate[group][name], abs=1e-6)
    assert [row["iou"] for row in scores.class_rows] == class_iou(scores.confusion)[1:].tolist()


def test_models_share_the_resamples_of_a_seed(model, score):
    before, after = model, copy.deepcopy(model)
    torch.nn.init.normal_(after.decoder.score_fr.weight)  # changes nothing but the segmentation
    first, second, other = score(before), score(after), score(before, seed=1)
    for group, values in first.replicates.items():
        for name, replicates in values.items():
            same = torch.allclose(replicates, second.replicates[group][name], equal_nan=True)
            assert same == (group != "segmentation"), name
            assert torch.allclose(replicates[0], other.replicates[group][name][0]), name
    pixels, others = (s.replicates["segmentation"]["pixel_accuracy"] for s in (first, other))
    assert not torch.equal(pixels, others)


def test_sets_of_images_are_resampled_apart(model, test_set):
    """With the same images in both sets, equal resamples would make the two cells add up to 1."""
    labels = torch.cat([batch.image_labels for batch in test_set])
    counterfactual = {"object_without_context": test_set, "context_without_object": test_set}
    scores = score_model(
        model, test_set, counterfactual, [], CPU, NAMES, context_labels=labels, attention_threshold=0.2,
        mask_threshold=0.5, mask_slope=10.0, num_replicates=20, seed=0, deletion_steps=3,
    )  # fmt: skip
    cells = [scores.replicates["context_bias"][name] for name in counterfactual]
    total = cells[0] + cells[1]
    assert float(total[0]) == pytest.approx(1)
    assert (total[1:] - 1).abs().max() > 0.01


def pair_maps(model, batch: Sample) -> torch.Tensor:
    """Attention of the pairs of one batch, to the bit: rounded as in another batch, pixels would rank otherwise."""
    with torch.no_grad():
        conv5_3 = model.features(batch.image.contiguous(memory_format=torch.channels_last)).conv5_3
        maps, _ = normalise_attention(class_attention(model, conv5_3)[batch.image_labels.nonzero(as_tuple=True)])
        return attention_to_image(maps, (48, 40), model.attention_grid)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_deletion_scores_every_pair(model, test_set, score, size):
    whole = Sample(*(torch.cat(tensors) for tensors in zip(*test_set, strict=True)))
    image_index, class_index = whole.image_labels.nonzero(as_tuple=True)
    scores = evaluate_faithfulness(model, split(whole, size), CPU, num_steps=3)
    assert scores["image_index"].tolist() == image_index.tolist()
    assert scores["class_index"].tolist() == class_index.tolist()
    maps = torch.cat([pair_maps(model, part) for part in split(whole, size)])
    expected = deletion_and_insertion(model, whole.image[image_index], maps, class_index, num_steps=3, batch_size=9)
    for name, values in zip(("deletion_auc", "insertion_auc"), expected, strict=True):
        assert torch.allclose(scores[name], values, atol=1e-5)
        replicates = score(model, faithfulness=test_set).replicates["attention"][name]
        classes = [values[class_index == c].mean() for c in class_index.unique()]
        assert float(replicates[0]) == pytest.approx(float(torch.stack(classes).mean()), abs=1e-5)
        assert replicates.shape == (21,)


def test_data_without_counterfactual_sets_has_no_context_bias(model, score):
    scores = score(model, counterfactual={})
    assert set(scores.replicates) == {"segmentation", "classification", "attention"}
    assert {"class", "iou", "attention_iou"} <= set(scores.class_rows[0])
    table = results_table({"a": estimates(scores.replicates)})
    assert "mean IoU" in table
    assert "worst group" not in table


def test_batches_of_one_size_each_may_come_in_any_order(model, test_set):
    """As they do from `evaluation_loader`, where images differ in size."""
    singles = split(Sample(*(torch.cat(tensors) for tensors in zip(*test_set, strict=True))), 1)
    shuffled = [singles[i] for i in (5, 0, 7, 3, 1, 6, 2, 4)]
    result, expected = evaluate(model, shuffled, CPU), evaluate(model, singles, CPU)
    assert torch.equal(result.confusions, expected.confusions)
    assert torch.equal(result.class_probs, expected.class_probs)
    for name, values in expected.attention.items():
        assert torch.equal(result.attention[name], values), name


def test_scoring_leaves_the_random_state_alone(model, test_set, score):
    state = torch.get_rng_state()
    score(model, faithfulness=test_set)
    assert torch.equal(torch.get_rng_state(), state)
