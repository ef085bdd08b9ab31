"""What guidance did, in numbers that a reader can check: differences with their intervals, and pairs that moved."""

from dataclasses import dataclass
from typing import Literal

import torch

from pipeline.base.scores import LOWER_IS_BETTER
from pipeline.report.bootstrap import interval
from pipeline.report.model_scores import ModelScores
from pipeline.report.tables import COLUMNS

MOVED = 0.1  # of attention IoU: by more, a pair counts as improved or worsened
MISSED = 0.1  # attention IoU below which a map misses its object
ASKED = (  # of the scores, those that a reader asks for first
    "attention_iou",
    "energy_pointing_game",
    "mean_iou",
    "macro_f1",
    "overall",
    "background_gap",
)
Verdict = Literal["better", "worse", "no clear difference"]


@dataclass(frozen=True)
class Difference:
    """One score of a model beside that of another; fractions."""

    title: str
    value: float
    reference: float
    low: float  # 95 % interval of value minus reference, paired over images
    high: float
    verdict: Verdict


@dataclass(frozen=True)
class Movement:
    """How many of the (image, class) pairs of the test split a model attends to better than another, and worse."""

    num_pairs: int
    improved: int
    worsened: int
    missed: int  # that the model misses
    missed_before: int  # that the other misses
    weakest_class: str  # where the model's attention IoU is lowest
    weakest_iou: float


def differences(model: ModelScores, reference: ModelScores) -> list[Difference]:
    """Of the scores in ASKED that both have, in that order."""
    titles = {score: (group, title) for (group, score), title in COLUMNS.items()}
    found = []
    for score in ASKED:
        group, title = titles[score]
        if score in model.replicates.get(group, {}) and score in reference.replicates.get(group, {}):
            values, before = model.replicates[group][score], reference.replicates[group][score]
            low, high = interval(values - before)
            better = (high < 0) if score in LOWER_IS_BETTER else (low > 0)
            clear = low > 0 or high < 0
            verdict: Verdict = "no clear difference" if not clear else "better" if better else "worse"
            found.append(Difference(title, float(values[0]), float(before[0]), low, high, verdict))
    return found


def movement(model: ModelScores, reference: ModelScores) -> Movement | None:
    """How attention moved between two models scored on the same pairs; None without a pair."""
    after, before = (scores.test.attention.get("attention_iou", torch.zeros(0)) for scores in (model, reference))
    if not len(after):
        return None
    ious = {str(row["class"]): float(str(row["attention_iou"])) for row in model.class_rows if row["pairs"]}
    weakest = min(ious, key=lambda name: ious[name])
    return Movement(
        len(after),
        int((after - before > MOVED).sum()),
        int((before - after > MOVED).sum()),
        int((after < MISSED).sum()),
        int((before < MISSED).sum()),
        weakest,
        ious[weakest],
    )
