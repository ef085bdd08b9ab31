"""Scores of segmentation, classification, attention and context bias; every ratio is a fraction in [0, 1].

Attention is scored for the ground-truth classes of each image, at image resolution, void pixels left out, as a mean
over the pairs of a class and then over classes ("class-macro").
"""

import torch
from torch import Tensor

from pipeline.data.voc import IGNORE_INDEX

THRESHOLDS = torch.linspace(0.05, 0.95, 19)  # candidates for the best threshold of attention_iou_best
PAIR_SCORES = (
    "attention_iou",
    "mask_precision",
    "mask_recall",
    "energy_pointing_game",
    "pointing_game",
    "pointing_game_centre",
    "coverage",
)
DECISION = 0.5  # probability from which a class counts as predicted


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """(N, N) int64 counts, rows = truth. prediction and target (B, H, W) int64; void is left out."""
    valid = target != IGNORE_INDEX
    cells = target[valid] * num_classes + prediction[valid]
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def segmentation_metrics(confusion: Tensor) -> dict[str, float]:
    """The four scores of the FCN paper (section 5). Classes absent from the truth are left out of the means."""
    counts = confusion.double()
    truth, correct = counts.sum(dim=1), counts.diag()
    present = truth > 0
    iou = class_iou(confusion)
    return {
        "pixel_accuracy": float(correct.sum() / counts.sum()),
        "mean_accuracy": float((correct / truth)[present].mean()),
        "mean_iou": float(iou[present].mean()),
        "frequency_weighted_iou": float((truth * iou)[present].sum() / counts.sum()),
    }


def class_iou(confusion: Tensor) -> Tensor:
    """Intersection over union per class, (N,) float64; NaN for a class neither present nor predicted."""
    counts = confusion.double()
    return counts.diag() / (counts.sum(dim=0) + counts.sum(dim=1) - counts.diag())


def classification_metrics(class_probs: Tensor, image_labels: Tensor) -> dict[str, float]:
    """Multi-label scores at probability 0.5. class_probs and image_labels (M, C).

    class_accuracy: share of right (image, class) decisions. exact_match: share of images with all classes right.
    macro_f1: F1 per class, mean over classes that occur or are predicted.
    """
    predicted, present = class_probs >= DECISION, image_labels > 0
    right = predicted == present
    true_positives = (predicted & present).sum(dim=0).double()
    occurring = (predicted.sum(dim=0) + present.sum(dim=0)).double()
    return {
        "class_accuracy": float(right.double().mean()),
        "exact_match": float(right.all(dim=1).double().mean()),
        "macro_f1": float((2 * true_positives / occurring)[occurring > 0].mean()),
    }


def attention_scores(maps: Tensor, mask: Tensor, valid: Tensor, threshold: float) -> dict[str, Tensor]:
    """Agreement of attention with the masks, one value per pair.

    attention_iou: IoU of {A >= threshold max A} and the mask; iou_at_thresholds: (N, 19) over THRESHOLDS.
    mask_precision, mask_recall: of that same region. energy_pointing_game: attention inside the mask over all of it
    (Score-CAM, arXiv 1910.01279). pointing_game: the maximum lies in the mask (Excitation Backprop, arXiv
    1608.00507); pointing_game_centre: the image centre does, the baseline to beat.

    Args:
        maps: (N, H, W) in [0, 1].
        mask: (N, H, W) bool, pixels of the pair's class.
        valid: (N, H, W) bool, False on void.
        threshold: share of a map's maximum.
    """
    maps = maps * valid
    mask = mask & valid
    maximum = maps.amax(dim=(1, 2), keepdim=True)
    alive = maximum[:, 0, 0] > 0
    attended = (maps >= threshold * maximum) & valid & alive[:, None, None]
    intersection = (attended & mask).sum(dim=(1, 2)).float()
    area, attended_area = mask.sum(dim=(1, 2)).float(), attended.sum(dim=(1, 2)).float()
    flat_mask = mask.flatten(1)
    peak = flat_mask.gather(1, maps.flatten(1).argmax(dim=1, keepdim=True))[:, 0]
    return {
        "attention_iou": intersection / (area + attended_area - intersection).clamp(min=1),
        "iou_at_thresholds": torch.stack([_iou(maps >= t * maximum, mask, valid, alive) for t in THRESHOLDS], dim=1),
        "mask_precision": intersection / attended_area.clamp(min=1),
        "mask_recall": intersection / area.clamp(min=1),
        "energy_pointing_game": (maps * mask).sum(dim=(1, 2)) / maps.sum(dim=(1, 2)).clamp(min=1e-12),
        "pointing_game": (peak & alive).float(),
        "pointing_game_centre": mask[:, mask.shape[1] // 2, mask.shape[2] // 2].float(),
        "area": area / valid.sum(dim=(1, 2)).clamp(min=1),
    }


def attention_metrics(scores: dict[str, Tensor]) -> dict[str, float]:
    """Class-macro means of the scores collected by `evaluate`, and the rate of dead maps over pairs."""
    if scores["class_index"].numel() == 0:
        return {}
    metrics = {name: float(class_macro(scores[name], scores["class_index"])) for name in PAIR_SCORES}
    at_thresholds = class_macro(scores["iou_at_thresholds"], scores["class_index"])
    best = int(at_thresholds.argmax())
    metrics["attention_iou_best"] = float(at_thresholds[best])
    metrics["attention_best_threshold"] = float(THRESHOLDS[best])
    metrics["dead_map_rate"] = float(scores["dead"].mean())
    return metrics


def class_macro(values: Tensor, class_index: Tensor) -> Tensor:
    """Mean over the pairs of each class, then over the classes that occur. values (N, ...) to (...)."""
    means = [values[class_index == c].double().mean(dim=0) for c in torch.unique(class_index)]
    return torch.stack(means).mean(dim=0)


def context_bias_groups(
    object_probs: Tensor, object_labels: Tensor, context_probs: Tensor, context_labels: Tensor
) -> dict[str, Tensor]:
    """Per class, how often the classifier is right when object and context are torn apart (the paper's boat test).

    Args:
        object_probs, object_labels: (M, C), the object on a foreign ground; right when its probability is >= 0.5.
        context_probs, context_labels: (M', C), the ground without its object, labelled with the ground's class;
            right when that class's probability is < 0.5.

    Returns:
        {"object_without_context": (C,), "context_without_object": (C,)}; NaN for a class without an image.
    """
    found = (object_probs >= DECISION) & (object_labels > 0)
    resisted = (context_probs < DECISION) & (context_labels > 0)
    return {
        "object_without_context": found.sum(dim=0).double() / object_labels.sum(dim=0).double(),
        "context_without_object": resisted.sum(dim=0).double() / context_labels.sum(dim=0).double(),
    }


def context_bias_metrics(groups: dict[str, Tensor]) -> dict[str, float]:
    """Class means of both cells, their mean ("overall") and the worst single (cell, class) group."""
    cells = {name: float(values.nanmean()) for name, values in groups.items()}
    values = torch.cat(list(groups.values()))
    return {
        **cells,
        "overall": sum(cells.values()) / len(cells),
        "worst_group": float(values[~values.isnan()].min()),
    }


def _iou(attended: Tensor, mask: Tensor, valid: Tensor, alive: Tensor) -> Tensor:
    attended = attended & valid & alive[:, None, None]
    intersection = (attended & mask).sum(dim=(1, 2)).float()
    return intersection / (attended | mask).sum(dim=(1, 2)).clamp(min=1)
