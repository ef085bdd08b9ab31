"""How far the classifier needs the ground: scores on test images with object and ground separated.

The images and what they show are described in datasets/counterfactual. Legend: R rows of weights of the test images, C
foreground classes; every group is (R, C), NaN for a class without an image.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.data.samples import Sample
from pipeline.datasets.counterfactual.table import OBJECT_SETS
from pipeline.evaluation.metrics import DECISION
from pipeline.report.context_bias import Predictions

GAP = "background_gap"
# The two cells of overall and worst group: an object without its ground, and a ground without its object.
SEPARATED = ("mixed_rand", "no_object_filled")


@dataclass(frozen=True)
class SeparatedSet:
    """One of the sets of datasets/counterfactual, M images."""

    batches: Iterable[Sample]
    object_labels: Tensor  # (M, C) one-hot: the class that was cut or taken out
    source_index: Tensor  # (M,) int64: position among the test images of the one that it was made from


def counterfactual_groups(predictions: Mapping[str, Predictions]) -> dict[str, Tensor]:
    """Per class, how often the classifier is right in each set, and the background gap.

    Args:
        predictions: of each set, labelled with the class that was cut or taken out; with equal weights for the images
            of one source. Of OBJECT_SETS it is right when the class has probability >= 0.5, of the others when < 0.5.

    Returns:
        The sets, and with both mixed ones `background_gap`, their difference: mixed_same minus mixed_rand (Xiao et
        al., arXiv 2006.09994, section 3). Both show the same objects, so that it is paired.
    """
    groups: dict[str, Tensor] = {}
    for name, of_set in predictions.items():
        found = of_set.class_probs >= DECISION
        right = (found if name in OBJECT_SETS else ~found) & (of_set.labels > 0)
        groups[name] = of_set.weights @ right.double() / (of_set.weights @ of_set.labels.double())
    if {"mixed_same", "mixed_rand"} <= set(groups):
        groups[GAP] = groups["mixed_same"] - groups["mixed_rand"]
    return groups


def counterfactual_metrics(groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Class means of all groups, and of the two cells of SEPARATED their mean and the worst single (cell, class) group.

    The last two need both cells. The interval of a minimum leans downwards, as in `context_bias_metrics`.
    """
    metrics = {name: values.nanmean(dim=1) for name, values in groups.items()}
    if set(SEPARATED) <= set(groups):
        cells = [groups[name] for name in SEPARATED]
        metrics["counterfactual_overall"] = torch.stack([metrics[name] for name in SEPARATED]).mean(dim=0)
        metrics["counterfactual_worst_group"] = torch.cat(cells, dim=1).nanquantile(0.0, dim=1)
    return metrics
