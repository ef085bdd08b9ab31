"""Whether the classifier sees the object or its habitual ground: the paper's test with boats and water.

Two counterfactual sets separate the two: objects on a ground that is not theirs, and grounds without their object.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.evaluation.metrics import DECISION


@dataclass(frozen=True)
class Predictions:
    """What the classifier says of M images, and how much each image weighs in R rows."""

    class_probs: Tensor  # (M, C) in [0, 1]
    labels: Tensor  # (M, C) multi-hot
    weights: Tensor  # (R, M) float64


def context_bias_groups(objects: Predictions, contexts: Predictions) -> dict[str, Tensor]:
    """Per class, how often the classifier is right when object and context are separated.

    Args:
        objects: of objects on a foreign ground, labelled with their class; right when its probability is >= 0.5.
        contexts: of grounds without their object, labelled with the class whose ground they show; right when its
            probability is < 0.5.

    Returns:
        {"object_without_context": (R, C), "context_without_object": (R, C)}; NaN for a class without an image.
    """
    found = (objects.class_probs >= DECISION) & (objects.labels > 0)
    resisted = (contexts.class_probs < DECISION) & (contexts.labels > 0)
    return {
        "object_without_context": objects.weights @ found.double() / (objects.weights @ objects.labels.double()),
        "context_without_object": contexts.weights @ resisted.double() / (contexts.weights @ contexts.labels.double()),
    }


def context_bias_metrics(groups: dict[str, Tensor]) -> dict[str, Tensor]:
    """Class means of both cells, their mean ("overall") and the worst single (cell, class) group.

    The interval of a minimum leans downwards: a resample's worst group is the unluckiest one.
    """
    cells = {name: values.nanmean(dim=1) for name, values in groups.items()}
    return {
        **cells,
        "overall": torch.stack(list(cells.values())).mean(dim=0),
        "worst_group": torch.cat(list(groups.values()), dim=1).nanquantile(0.0, dim=1),
    }
