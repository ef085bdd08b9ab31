"""Every score of one model, its resamples and its table by class."""

import copy
from dataclasses import replace

import pytest
import torch
from small_scores import CPU, SCORING, split

from pipeline.base.scores import SCORES, TEST_ONLY, score_names
from pipeline.data.samples import Sample
from pipeline.datasets.counterfactual.table import SETS
from pipeline.evaluation.metrics import SIZE_SCORES, SIZES, class_iou
from pipeline.evaluation.passes import evaluate, validation_scores
from pipeline.gain.attention import attention_to_image, class_attention, normalise_attention
from pipeline.report.bootstrap import interval
from pipeline.report.counterfactual_scores import SeparatedSet
from pipeline.report.faithfulness import deletion_and_insertion, evaluate_faithfulness
from pipeline.report.model_scores import HeldOutData, ScoreOptions, score_model
from pipeline.report.tables import results_table

NAMES = ["cat", "dog", "fox"]
OPTIONS = ScoreOptions(SCORING, deletion_steps=3, num_replicates=20, seed=0)


@pytest.fixture
def held_out(test_set) -> HeldOutData:
    """The test set also stands in for the others, its first batch for validation; none for deletion and insertion."""
    return HeldOutData(
        class_names=NAMES,
        validation=test_set[:1],
        test=test_set,
        counterfactual={"object_without_context": test_set, "context_without_object": test_set[:1]},
        context_labels=torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]),
        faithfulness=[],
    )


@pytest.fixture
def separated(test_set) -> dict[str, SeparatedSet]:
    """The eight test images also stand in for images made from the last four of them, two from each."""
    labels = torch.eye(3)[torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])]
    return {name: SeparatedSet(test_set, labels, torch.tensor([4, 4, 5, 5, 6, 6, 7, 7])) for name in SETS}


def test_scores_of_a_model_are_estimates_and_their_resamples(sighted_model, test_set, held_out):
    scores = score_model(sighted_model, held_out, OPTIONS, CPU)
    assert list(scores.replicates) == ["segmentation", "classification", "attention", "context_bias"]
    for values in (values for group in scores.replicates.values() for values in group.values()):
        assert (values.dtype, values.shape) == (torch.float64, (21,))
    assert {f"{name}_{size}" for name in SIZE_SCORES for size in SIZES} <= set(scores.replicates["attention"])
    assert not {"deletion_auc", "insertion_auc"} & set(scores.replicates["attention"])
    flat = {n: v for group in scores.estimates.values() for n, v in group.items()}
    result = evaluate(sighted_model, test_set, CPU, SCORING)
    expected = validation_scores(result)
    assert {name: flat[name] for name in expected} == pytest.approx(expected)
    assert set(expected) == set(score_names()) - set(TEST_ONLY)
    assert scores.validation == validation_scores(evaluate(sighted_model, test_set[:1], CPU, SCORING)) != expected
    assert torch.equal(scores.confusion, result.confusions.sum(dim=0))
    low, high = interval(scores.replicates["segmentation"]["pixel_accuracy"])
    assert low < flat["pixel_accuracy"] < high


def test_scores_are_those_that_params_may_name(sighted_model, test_set, held_out, separated):
    everything = replace(held_out, faithfulness=test_set, separated=separated)
    scores = score_model(sighted_model, everything, OPTIONS, CPU)
    assert {group: tuple(names) for group, names in scores.replicates.items()} == SCORES


def test_class_rows_hold_the_estimates_and_the_number_of_pairs(sighted_model, held_out):
    scores = score_model(sighted_model, held_out, OPTIONS, CPU)
    assert [row["class"] for row in scores.class_rows] == NAMES
    assert [row["pairs"] for row in scores.class_rows] == [4, 4, 4]
    for group, names in {
        "attention": ["attention_iou", "energy_pointing_game", "pointing_game"],
        "context_bias": ["object_without_context", "context_without_object"],
    }.items():
        for name in names:
            mean = sum(row[name] for row in scores.class_rows) / 3
            assert mean == pytest.approx(scores.estimates[group][name], abs=1e-6)
    assert [row["iou"] for row in scores.class_rows] == class_iou(scores.confusion)[1:].tolist()


def test_models_share_the_resamples_of_a_seed(sighted_model, held_out):
    after = copy.deepcopy(sighted_model)
    torch.nn.init.normal_(after.decoder.score_fr.weight)  # changes nothing but the segmentation
    first, second = (score_model(model, held_out, OPTIONS, CPU) for model in (sighted_model, after))
    other = score_model(sighted_model, held_out, replace(OPTIONS, seed=1), CPU)
    for group, values in first.replicates.items():
        for name, replicates in values.items():
            same = torch.allclose(replicates, second.replicates[group][name], equal_nan=True)
            assert same == (group != "segmentation"), name
            assert torch.allclose(replicates[0], other.replicates[group][name][0]), name
    pixels, others = (s.replicates["segmentation"]["pixel_accuracy"] for s in (first, other))
    assert not torch.equal(pixels, others)


def test_sets_of_images_are_resampled_apart(sighted_model, test_set, held_out):
    """With the same images in both sets, equal resamples would make the two cells add up to 1."""
    labels = torch.cat([batch.image_labels for batch in test_set])
    counterfactual = {"object_without_context": test_set, "context_without_object": test_set}
    same = replace(held_out, counterfactual=counterfactual, context_labels=labels)
    scores = score_model(sighted_model, same, OPTIONS, CPU)
    cells = [scores.replicates["context_bias"][name] for name in counterfactual]
    total = cells[0] + cells[1]
    assert float(total[0]) == pytest.approx(1)
    assert (total[1:] - 1).abs().max() > 0.01


def test_images_made_from_test_images_are_resampled_with_them(sighted_model, test_set, held_out, separated):
    """The class of each was found in it or not; the weight of its source counts in every set alike."""
    scores = score_model(sighted_model, replace(held_out, separated=separated), OPTIONS, CPU)
    result = evaluate(sighted_model, test_set, CPU, SCORING)
    labels = separated["only_object"].object_labels
    found = ((result.class_probs >= 0.5) * labels).double()
    weights = OPTIONS.weights("test", 8)[:, [4, 4, 5, 5, 6, 6, 7, 7]]
    rates = (weights @ found) / (weights @ labels.double())
    replicates = scores.replicates["counterfactual"]
    for name in ("only_object", "mixed_same", "mixed_rand"):
        assert torch.allclose(replicates[name], rates.nanmean(dim=1), equal_nan=True)
    for name in ("no_object_filled", "no_object_mean"):
        assert torch.allclose(replicates[name], (1 - rates).nanmean(dim=1), equal_nan=True)
    # The same images in both mixed sets: with resamples of their own, the gap would scatter.
    assert set(replicates["background_gap"][~replicates["background_gap"].isnan()].tolist()) == {0.0}
    assert 0 < float(replicates["only_object"][0]) < 1
    for row, rate in zip(scores.class_rows, rates[0].tolist(), strict=True):
        assert (row["mixed_rand"], row["no_object_mean"]) == pytest.approx((rate, 1 - rate))
        assert row["background_gap"] == 0


def test_separated_objects_leave_the_other_scores_alone(sighted_model, held_out, separated):
    before, after = (
        score_model(sighted_model, replace(held_out, separated=sets), OPTIONS, CPU).replicates
        for sets in ({}, separated)
    )
    for group, scores in before.items():
        assert all(torch.equal(values, after[group][name]) or values.isnan().any() for name, values in scores.items())
    assert set(after) - set(before) == {"counterfactual"}


def test_sets_that_could_not_be_made_have_no_scores(sighted_model, held_out, separated):
    sets = {name: of_set for name, of_set in separated.items() if not name.startswith("mixed")}
    scores = score_model(sighted_model, replace(held_out, separated=sets, counterfactual={}), OPTIONS, CPU)
    assert list(scores.replicates["counterfactual"]) == ["only_object", "no_object_filled", "no_object_mean"]
    assert "background gap" not in results_table({"a": scores.estimates})
    scores = score_model(sighted_model, replace(held_out, separated=separated, counterfactual={}), OPTIONS, CPU)
    assert "| background gap | worst cut-out group |" in results_table({"a": scores.estimates})


def pair_maps(model, batch: Sample) -> torch.Tensor:
    """Attention of the pairs of one batch, to the bit: rounded as in another batch, pixels would rank otherwise."""
    with torch.no_grad():
        conv5_3 = model.features(batch.image.contiguous(memory_format=torch.channels_last)).conv5_3
        maps, _ = normalise_attention(class_attention(model, conv5_3)[batch.image_labels.nonzero(as_tuple=True)])
        return attention_to_image(maps, (48, 40), model.attention_grid)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_deletion_scores_every_pair(sighted_model, test_set, held_out, size):
    whole = Sample(*(torch.cat(tensors) for tensors in zip(*test_set, strict=True)))
    images, classes = whole.image_labels.nonzero(as_tuple=True)
    scores = evaluate_faithfulness(sighted_model, split(whole, size), CPU, num_steps=3)
    assert scores["image_index"].tolist() == images.tolist()
    assert scores["class_index"].tolist() == classes.tolist()
    maps = torch.cat([pair_maps(sighted_model, part) for part in split(whole, size)])
    expected = deletion_and_insertion(sighted_model, whole.image[images], maps, classes, num_steps=3, batch_size=9)
    scored = score_model(sighted_model, replace(held_out, faithfulness=test_set), OPTIONS, CPU)
    for name, values in zip(("deletion_auc", "insertion_auc"), expected, strict=True):
        # In batches of another size maps are rounded otherwise, and neighbours in rank may change places.
        assert torch.allclose(scores[name], values, atol=1e-4)
        replicates = scored.replicates["attention"][name]
        means = [values[classes == c].mean() for c in classes.unique()]
        assert float(replicates[0]) == pytest.approx(float(torch.stack(means).mean()), abs=1e-4)
        assert replicates.shape == (21,)


def test_data_without_counterfactual_sets_has_no_context_bias(sighted_model, held_out):
    scores = score_model(sighted_model, replace(held_out, counterfactual={}), OPTIONS, CPU)
    assert set(scores.replicates) == {"segmentation", "classification", "attention"}
    assert {"class", "iou", "attention_iou"} <= set(scores.class_rows[0])
    table = results_table({"a": scores.estimates})
    assert "mean IoU" in table
    assert "worst group" not in table


def test_scoring_leaves_the_random_state_alone(sighted_model, test_set, held_out):
    state = torch.get_rng_state()
    score_model(sighted_model, replace(held_out, faithfulness=test_set), OPTIONS, CPU)
    assert torch.equal(torch.get_rng_state(), state)
