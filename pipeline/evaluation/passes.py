"""A network run over a data set: what it predicts and attends to, image by image. The scores are in metrics.py."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.base.ranks import gathered
from pipeline.base.scores import TEST_ONLY
from pipeline.data.samples import Sample
from pipeline.data.voc import IGNORE_INDEX
from pipeline.evaluation.metrics import (
    attention_metrics,
    attention_scores,
    classification_metrics,
    confusion_matrix,
    segmentation_metrics,
)
from pipeline.gain.attention import class_attention, normalise_attention, soft_mask
from pipeline.gain.network import Pairs, class_pairs
from pipeline.gain.view import View
from pipeline.model.fcn8s import FCN8s


@dataclass(frozen=True)
class Scoring:
    """Where attention is cut to be scored; the values are those of params.yaml."""

    attention_threshold: float  # share of a map's maximum from which a pixel counts as attended
    mask_threshold: float  # sigma of Eq. 4, for the coverage of the soft mask
    mask_slope: float  # omega of Eq. 4


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a data set of M images yields; empty where it was not asked for."""

    confusions: Tensor  # (M, C + 1, C + 1) int64, one per image, rows = truth
    class_probs: Tensor  # (M, C) float32
    image_labels: Tensor  # (M, C) float32 multi-hot
    attention: dict[str, Tensor]  # one value per (image, class) pair, see `metrics.attention_scores`


class PairAttention(NamedTuple):
    """Attention of the N ground-truth (image, class) pairs of a batch."""

    pairs: Pairs
    maps: Tensor  # (N, H, W) in [0, 1], at image resolution
    alive: Tensor  # (N,) bool, see `normalise_attention`


class _BatchResult(NamedTuple):
    """What a batch of B images adds to an `Evaluation`, in the memory of the host."""

    confusions: Tensor
    class_probs: Tensor
    image_labels: Tensor
    attention: dict[str, Tensor]
    sample_index: Tensor  # (B,) int64, places in the data set


@torch.no_grad()
def evaluate(
    model: FCN8s,
    batches: Iterable[Sample],
    device: torch.device,
    scoring: Scoring,
    *,
    segmentation: bool = True,
    attention: bool = True,
) -> Evaluation:
    """Run `model`, in eval mode, over a data set.

    Args:
        batches: of this rank; the results of all ranks are put together, on every rank.
        segmentation, attention: what to score besides the class probabilities.
    """
    num_classes = model.num_foreground_classes + 1
    results: list[_BatchResult] = []
    for batch in batches:
        image, target = batch.image.to(device), batch.target.to(device)
        view = View.of(model, image.contiguous(memory_format=torch.channels_last))
        confusions = torch.zeros((0, num_classes, num_classes), dtype=torch.int64)
        if segmentation:
            prediction = view.seg_logits().argmax(dim=1)
            confusions = confusion_matrix(prediction, target, num_classes).cpu()
        class_probs = view.class_logits().sigmoid().cpu()
        scores = _score_attention(view, batch, target, scoring) if attention else {}
        results.append(_BatchResult(confusions, class_probs, batch.image_labels, scores, batch.sample_index))
    return _in_order(list(chain(*gathered(results))))


def pair_attention(view: View, image_labels: Tensor) -> PairAttention:
    """Attention of the ground-truth pairs of a batch.

    Args:
        image_labels: (B, C) multi-hot, on the device of the features.
    """
    pairs = class_pairs(image_labels, view.model.num_foreground_classes)
    attention = class_attention(view.model, view.features.conv5_3)
    maps, alive = normalise_attention(attention[pairs.image_index, pairs.class_index])
    return PairAttention(pairs, view.attention(maps), alive)


def concatenate_scores(scores: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The scores of several batches as those of one, in the memory of the host; all have the same names."""
    return {name: torch.cat([score[name].cpu() for score in scores]) for name in scores[0]} if scores else {}


def validation_scores(result: Evaluation) -> dict[str, float]:
    """The scores by which epochs and variants are chosen, in [0, 1]: those of base/scores.py without TEST_ONLY.

    A result without attention has those of the segmentation alone.
    """
    weights = torch.ones(1, len(result.class_probs), dtype=torch.float64)
    scores: dict[str, Tensor] = {}
    if len(result.confusions):
        scores |= segmentation_metrics(result.confusions, weights)
    if result.attention:
        scores |= classification_metrics(result.class_probs, result.image_labels, weights)
        scores |= attention_metrics(result.attention, weights)
    return {name: float(values) for name, values in scores.items() if name not in TEST_ONLY}


def _score_attention(view: View, batch: Sample, target: Tensor, scoring: Scoring) -> dict[str, Tensor]:
    """`attention_scores` and more of the pairs of a batch, whose target lies on the device of the features."""
    pairs, maps, alive = pair_attention(view, batch.image_labels.to(target.device))
    pair_target = target[pairs.image_index]
    scores = attention_scores(
        maps,
        pair_target == pairs.class_index[:, None, None] + 1,
        pair_target != IGNORE_INDEX,
        scoring.attention_threshold,
    )
    mask = soft_mask(maps, threshold=scoring.mask_threshold, slope=scoring.mask_slope)
    scores["coverage"] = mask.mean(dim=(1, 2)) * alive
    scores["dead"] = (~alive).float()
    scores["class_index"] = pairs.class_index
    scores["image_index"] = batch.sample_index[pairs.image_index.cpu()]
    return {name: values.cpu() for name, values in scores.items()}


def _in_order(results: Sequence[_BatchResult]) -> Evaluation:
    """The batches as one, their images counted from 0 in the order of the data set.

    Batches of one size each come out of order.
    """
    sample_index = torch.cat([result.sample_index for result in results])
    in_order, order = sample_index.sort()
    confusions = torch.cat([result.confusions for result in results])
    attention = concatenate_scores([result.attention for result in results])
    if attention:
        attention["image_index"] = torch.searchsorted(in_order, attention["image_index"])
        by_image = attention["image_index"].argsort(stable=True)
        attention = {name: values[by_image] for name, values in attention.items()}
    return Evaluation(
        confusions[order] if len(confusions) else confusions,
        torch.cat([result.class_probs for result in results])[order],
        torch.cat([result.image_labels for result in results])[order],
        attention,
    )
