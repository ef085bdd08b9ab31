"""What the page says guidance did: which differences it calls better or worse, and how it counts what moved."""

import pytest
import torch

from pipeline.evaluation.passes import Evaluation
from pipeline.report.findings import differences, movement
from pipeline.report.model_scores import ModelScores


def scores(ious=(), validation=0.0, spread=0.001, **estimates) -> ModelScores:
    """Replicates that lie within `spread` of the estimates, and the attention IoU of one pair per image."""
    noise = torch.linspace(-spread, spread, 100, dtype=torch.float64)
    group = {"attention_iou": "attention", "mean_iou": "segmentation", "background_gap": "counterfactual"}
    replicates = {}
    for name, value in estimates.items():
        values = torch.cat([torch.tensor([value], dtype=torch.float64), value + noise])
        replicates.setdefault(group[name], {})[name] = values
    empty = torch.zeros(0)
    pairs = {"attention_iou": torch.tensor(ious)} if len(ious) else {}
    rows = [
        {"class": "cat", "pairs": 1, "attention_iou": 0.5},
        {"class": "dog", "pairs": 1, "attention_iou": 0.2},
        {"class": "fox", "pairs": 0, "attention_iou": float("nan")},
    ]
    test = Evaluation(empty, empty, empty, pairs)
    return ModelScores({"attention_iou": validation}, replicates, rows, torch.zeros(2, 2), test)


@pytest.mark.parametrize(
    ("score", "value", "before", "verdict"),
    [
        ("attention_iou", 0.5, 0.2, "better"),
        ("mean_iou", 0.2, 0.5, "worse"),
        ("background_gap", 0.1, 0.4, "better"),  # less of it is better
        ("background_gap", 0.4, 0.1, "worse"),
        ("mean_iou", 0.5, 0.5, "no clear difference"),
    ],
)
def test_verdict_follows_the_interval_of_the_difference(score, value, before, verdict):
    model = scores(**{score: value})
    reference = scores(**{score: before})
    reference.replicates[next(iter(reference.replicates))][score][1:] += torch.linspace(-0.01, 0.01, 100).flip(0)
    (found,) = differences(model, reference)
    assert (found.value, found.reference, found.verdict) == (value, before, verdict)
    assert found.low <= value - before <= found.high


def test_scores_that_one_of_both_lacks_are_left_out():
    assert differences(scores(mean_iou=0.5, attention_iou=0.1), scores(mean_iou=0.4))[0].title == "mean IoU"


def test_movement_counts_pairs_by_how_far_they_moved():
    moved = movement(scores((0.5, 0.05, 0.3, 0.95)), scores((0.2, 0.3, 0.25, 0.05)))
    assert (moved.num_pairs, moved.improved, moved.worsened) == (4, 2, 1)
    assert (moved.missed, moved.missed_before) == (1, 1)
    assert (moved.weakest_class, moved.weakest_iou) == ("dog", 0.2)


def test_nothing_moves_without_a_pair():
    assert movement(scores(), scores()) is None
