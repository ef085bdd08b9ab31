"""A network run over data, and the tables that come of it. The scores themselves are in metrics.py."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.data.loading import Sample
from pipeline.data.voc import IGNORE_INDEX
from pipeline.gain.attention import attention_to_image, class_attention, class_pairs, normalise_attention, soft_mask
from pipeline.metrics import (
    attention_metrics,
    attention_scores,
    class_iou,
    classification_metrics,
    confusion_matrix,
    context_bias_groups,
    context_bias_metrics,
    segmentation_metrics,
)
from pipeline.model.fcn8s import FCN8s

Scores = dict[str, dict[str, float]]  # group to name to value


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a data set yields; empty where it was not asked for."""

    confusion: Tensor  # (C + 1, C + 1) int64, rows = truth
    class_probs: Tensor  # (M, C) float32
    image_labels: Tensor  # (M, C) float32 multi-hot
    attention: dict[str, Tensor]  # one value per (image, class) pair, see `metrics.attention_scores`


@torch.no_grad()
def evaluate(
    model: FCN8s,
    batches: Iterable[Sample],
    device: torch.device,
    *,
    segmentation: bool = True,
    attention: bool = True,
    attention_threshold: float = 0.2,
    mask_threshold: float = 0.5,
    mask_slope: float = 10.0,
) -> Evaluation:
    """Run `model`, in eval mode, over a data set.

    Args:
        segmentation, attention: what to score besides the class probabilities.
        attention_threshold: share of a map's maximum above which a pixel counts as attended.
        mask_threshold, mask_slope: sigma and omega of Eq. 4, for the coverage of the soft mask.
    """
    num_classes = model.num_foreground_classes + 1
    confusion = torch.zeros((num_classes, num_classes), dtype=torch.int64, device=device)
    probs, labels, scores = [], [], []
    for batch in batches:
        image, target = batch.image.to(device), batch.target.to(device)
        batch_labels = batch.image_labels.to(device)
        size = (image.shape[2], image.shape[3])
        features = model.features(image.contiguous(memory_format=torch.channels_last))
        if segmentation:
            confusion += confusion_matrix(model.segment(features, size).argmax(dim=1), target, num_classes)
        probs.append(model.classify(features.conv5_3).sigmoid().cpu())
        labels.append(batch.image_labels)
        if attention:
            pairs = class_pairs(batch_labels, model.num_foreground_classes)
            maps, alive = normalise_attention(
                class_attention(model, features.conv5_3)[pairs.image_index, pairs.class_index]
            )
            maps = attention_to_image(maps, size, model.padding)
            pair_target = target[pairs.image_index]
            score = attention_scores(
                maps,
                pair_target == pairs.class_index[:, None, None] + 1,
                pair_target != IGNORE_INDEX,
                attention_threshold,
            )
            score["coverage"] = soft_mask(maps, threshold=mask_threshold, slope=mask_slope).mean(dim=(1, 2)) * alive
            score["dead"] = (~alive).float()
            score["class_index"] = pairs.class_index
            score["image_index"] = batch.sample_index.to(device)[pairs.image_index]
            scores.append({name: value.cpu() for name, value in score.items()})
    merged = {name: torch.cat([score[name] for score in scores]) for name in scores[0]} if scores else {}
    return Evaluation(confusion.cpu(), torch.cat(probs), torch.cat(labels), merged)


def score_model(
    model: FCN8s,
    test: Iterable[Sample],
    counterfactual: Mapping[str, Iterable[Sample]],
    context_labels: Tensor,
    device: torch.device,
    class_names: Sequence[str],
    *,
    attention_threshold: float,
    mask_threshold: float,
    mask_slope: float,
) -> tuple[Scores, list[dict[str, object]]]:
    """Every score of one model.

    Args:
        test: batches of the test split.
        counterfactual: batches of object_without_context and context_without_object.
        context_labels: (M', C) multi-hot, the class whose ground each image of context_without_object shows.

    Returns:
        {"segmentation", "classification", "attention", "context_bias"} and one row per class.
    """
    result = evaluate(
        model, test, device,
        attention_threshold=attention_threshold, mask_threshold=mask_threshold, mask_slope=mask_slope,
    )  # fmt: skip
    torn = {
        split: evaluate(model, batches, device, segmentation=False, attention=False)
        for split, batches in counterfactual.items()
    }
    objects, contexts = torn["object_without_context"], torn["context_without_object"]
    groups = context_bias_groups(objects.class_probs, objects.image_labels, contexts.class_probs, context_labels)
    scores = {
        "segmentation": segmentation_metrics(result.confusion),
        "classification": classification_metrics(result.class_probs, result.image_labels),
        "attention": attention_metrics(result.attention),
        "context_bias": context_bias_metrics(groups),
    }
    iou = class_iou(result.confusion)
    rows = []
    for index, name in enumerate(class_names):
        of_class = result.attention["class_index"] == index
        attention = {
            key: float(result.attention[key][of_class].mean())
            for key in ("attention_iou", "energy_pointing_game", "pointing_game")
        }
        cells = {cell: float(values[index]) for cell, values in groups.items()}
        rows.append({"class": name, "iou": float(iou[index + 1]), **attention, **cells})
    return scores, rows


def validation_row(result: Evaluation) -> dict[str, float]:
    """The scores worth a curve, as `val/NAME`."""
    row: dict[str, float] = {}
    if int(result.confusion.sum()):
        row |= segmentation_metrics(result.confusion)
    if result.attention:
        row |= classification_metrics(result.class_probs, result.image_labels)
        row |= attention_metrics(result.attention)
    return {f"val/{name}": value for name, value in row.items()}


def results_table(metrics: Mapping[str, Scores]) -> str:
    """Markdown table of the scores to look at first, one row per model, in percent."""
    columns: Sequence[tuple[str, str, str]] = (
        ("mean IoU", "segmentation", "mean_iou"),
        ("pixel acc.", "segmentation", "pixel_accuracy"),
        ("class acc.", "classification", "class_accuracy"),
        ("attention IoU", "attention", "attention_iou"),
        ("energy PG", "attention", "energy_pointing_game"),
        ("pointing game", "attention", "pointing_game"),
        ("object w/o context", "context_bias", "object_without_context"),
        ("context w/o object", "context_bias", "context_without_object"),
        ("overall", "context_bias", "overall"),
        ("worst group", "context_bias", "worst_group"),
    )
    lines = ["| model | " + " | ".join(title for title, _, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for model, groups in metrics.items():
        cells = " | ".join(f"{100 * groups[group][name]:.1f}" for _, group, name in columns)
        lines.append(f"| {model} | {cells} |")
    return "\n".join(lines)
