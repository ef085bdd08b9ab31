"""Scores of segmentation, classification, attention and context bias; every ratio is a fraction in [0, 1].

Attention is scored for the ground-truth classes of each image, at image resolution, void pixels left out, as a mean
over the pairs of a class and then over classes ("class-macro").

Each score is a function of how much each image weighs, so that its bootstrap over images is the score itself under
other weights (report/bootstrap.py); a row of ones gives the score. Legend: M images, N (image, class) pairs, C
foreground classes, R rows of weights (R, M) float64; every score has one value per row, (R,) float64, NaN where a row
leaves nothing to score.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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
SIZE_SCORES = ("attention_iou", "mask_precision", "mask_recall", "energy_pointing_game", "pointing_game")
SIZES = ("small", "medium", "large")
DECISION = 0.5  # probability from which a class counts as predicted


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """(B, N, N) int64 counts per image, N classes with the background, rows = truth; void is left out.

    Args:
        prediction, target: (B, H, W) int64.
    """
    valid = target != IGNORE_INDEX
    image = torch.arange(len(target), device=target.device)[:, None, None]
    cells = ((image * num_classes + target) * num_classes + prediction)[valid]
    counts = torch.bincount(cells, minlength=len(target) * num_classes**2)
    return counts.view(len(target), num_classes, num_classes)


def segmentation_metrics(confusions: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """The four scores of the FCN paper (section 5). Classes absent from the truth are left out of the means.

    Args:
        confusions: (M, N, N) int64 from `confusion_matrix`.
        weights: (R, M).
    """
    counts = (weights @ confusions.flatten(1).double()).view(-1, *confusions.shape[1:])
    total, truth, correct = counts.sum(dim=(1, 2)), counts.sum(dim=2), counts.diagonal(dim1=1, dim2=2)
    iou = class_iou(counts)
    return {
        "pixel_accuracy": correct.sum(dim=1) / total,
        "mean_accuracy": (correct / truth).nanmean(dim=1),
        "mean_iou": iou.masked_fill(truth == 0, torch.nan).nanmean(dim=1),
        "frequency_weighted_iou": (truth * iou).nansum(dim=1) / total,
    }


def class_iou(confusion: Tensor) -> Tensor:
    """Intersection over union per class; NaN for a class neither present nor predicted. (..., N, N) to (..., N)."""
    counts = confusion.double()
    correct = counts.diagonal(dim1=-2, dim2=-1)
    return correct / (counts.sum(dim=-2) + counts.sum(dim=-1) - correct)


def classification_metrics(class_probs: Tensor, image_labels: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Multi-label scores: the first three decide at probability 0.5, the last ranks the images.

    class_accuracy: share of right (image, class) decisions. exact_match: share of images with all classes right.
    macro_f1: F1 per class, mean over classes that occur or are predicted. mean_average_precision: `average_precision`,
    mean over classes that occur.

    Args:
        class_probs, image_labels: (M, C).
        weights: (R, M).
    """
    predicted, present = class_probs >= DECISION, image_labels > 0
    right = (predicted == present).double()
    true_positives = weights @ (predicted & present).double()
    occurring = weights @ (predicted.double() + present.double())
    return {
        "class_accuracy": weights @ right.sum(dim=1) / (weights.sum(dim=1) * right.shape[1]),
        "exact_match": weights @ right.amin(dim=1) / weights.sum(dim=1),
        "macro_f1": (2 * true_positives / occurring).nanmean(dim=1),
        "mean_average_precision": average_precision(class_probs, present, weights).nanmean(dim=1),
    }


def average_precision(class_probs: Tensor, present: Tensor, weights: Tensor) -> Tensor:
    """Area under the precision-recall curve of each class, over images ranked by its probability.

    The sum over thresholds of precision times what recall gains there, as scikit-learn and torchmetrics have it, not
    interpolated; images of one probability pass a threshold together. PASCAL VOC's, which since 2010 takes at each
    recall the best precision at that or a higher one, is at least as high.

    Args:
        class_probs: (M, C).
        present: (M, C) bool.
        weights: (R, M).

    Returns:
        (R, C) in [0, 1]; NaN for a class that does not occur.
    """
    precisions = []
    for probs, truth in zip(class_probs.T.contiguous(), present.T.contiguous(), strict=True):
        ranked, order = probs.sort(descending=True, stable=True)
        last = torch.searchsorted(-ranked, -ranked, right=True) - 1  # the last image of the same probability
        of_images = weights[:, order]
        positives = of_images * truth[order]
        found, passed = positives.cumsum(dim=1)[:, last], of_images.cumsum(dim=1)[:, last]
        precision = found / passed.clamp(min=1e-12)  # where nothing has passed, no image weighs anything
        precisions.append((positives * precision).sum(dim=1) / positives.sum(dim=1))
    return torch.stack(precisions, dim=1)


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
        "iou_at_thresholds": _iou_at_thresholds(maps, mask, valid, maximum, alive),
        "mask_precision": intersection / attended_area.clamp(min=1),
        "mask_recall": intersection / area.clamp(min=1),
        "energy_pointing_game": (maps * mask).sum(dim=(1, 2)) / maps.sum(dim=(1, 2)).clamp(min=1e-12),
        "pointing_game": (peak & alive).float(),
        "pointing_game_centre": mask[:, mask.shape[1] // 2, mask.shape[2] // 2].float(),
        "area": area / valid.sum(dim=(1, 2)).clamp(min=1),
    }


def attention_metrics(scores: dict[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    """Class-macro means of the scores collected by `passes.evaluate`, and the rate of dead maps over pairs.

    attention_iou_best: attention_iou at the threshold that is best under the first row of weights, for every row.

    Args:
        scores: (N, ...) each, with class_index and image_index (N,) int64.
        weights: (R, M).

    Returns:
        Nothing without a pair.
    """
    class_index, pair_weights = scores["class_index"], weights[:, scores["image_index"]]
    if class_index.numel() == 0:
        return {}
    at_thresholds = scores["iou_at_thresholds"].T
    estimates = torch.cat([class_macro(values, class_index, pair_weights[:1]) for values in at_thresholds])
    best = int(estimates.argmax())
    return {
        **class_macro_means(scores, PAIR_SCORES, weights),
        "attention_iou_best": class_macro(at_thresholds[best], class_index, pair_weights),
        "attention_best_threshold": THRESHOLDS[best].double().expand(len(weights)),
        "dead_map_rate": pair_weights @ scores["dead"].double() / pair_weights.sum(dim=1),
    }


def attention_metrics_by_size(scores: dict[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    """SIZE_SCORES over the small, medium and large third of the objects, as `attention_iou_small` and so on.

    Arguments as in `attention_metrics`. A third without a pair, as when all areas are equal, is left out.
    """
    thirds = area_thirds(scores["area"])
    metrics: dict[str, Tensor] = {}
    for third, size in enumerate(SIZES):
        means = class_macro_means({n: v[thirds == third] for n, v in scores.items()}, SIZE_SCORES, weights)
        metrics |= {f"{name}_{size}": values for name, values in means.items()}
    return metrics


def area_thirds(area: Tensor) -> Tensor:
    """Which of SIZES each pair's object has, (N,) int64 from (N,) areas.

    The thirds end at the 1/3 and 2/3 quantiles over all pairs, so they depend on the data alone.
    """
    if not area.numel():
        return torch.zeros(0, dtype=torch.int64)
    return torch.bucketize(area.double(), area.double().quantile(torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)))


def class_macro_means(scores: dict[str, Tensor], names: Sequence[str], weights: Tensor) -> dict[str, Tensor]:
    """`class_macro` of the named scores with the weights (R, M) of their pairs' images; nothing without a pair."""
    class_index, pair_weights = scores["class_index"], weights[:, scores["image_index"]]
    return {name: class_macro(scores[name], class_index, pair_weights) for name in names if class_index.numel()}


def class_macro(values: Tensor, class_index: Tensor, weights: Tensor) -> Tensor:
    """Mean over the pairs of each class, then over the classes that occur. values (N,), weights (R, N) to (R,)."""
    of_class = F.one_hot(class_index).double()  # (N, C)
    return (weights @ (of_class * values[:, None]) / (weights @ of_class)).nanmean(dim=1)


def _iou_at_thresholds(maps: Tensor, mask: Tensor, valid: Tensor, maximum: Tensor, alive: Tensor) -> Tensor:
    """IoU of {A >= t max A} and the mask for every t of THRESHOLDS, (N, 19), from one count of each map's pixels."""
    num_maps, num_thresholds = len(maps), len(THRESHOLDS)
    edges = THRESHOLDS.to(maps.device) * maximum[:, :, 0]  # (N, 19)
    reached = torch.searchsorted(edges, maps.flatten(1).contiguous(), right=True)  # (N, P), thresholds at or below A
    cell = torch.arange(num_maps, device=maps.device)[:, None] * (num_thresholds + 1) + reached

    def at_least(pixels: Tensor) -> Tensor:
        counts = torch.bincount(cell[pixels.flatten(1)], minlength=num_maps * (num_thresholds + 1))
        return counts.view(num_maps, num_thresholds + 1).flip(1).cumsum(dim=1).flip(1)[:, 1:].float()

    intersection, attended = at_least(mask) * alive[:, None], at_least(valid) * alive[:, None]
    return intersection / (mask.sum(dim=(1, 2))[:, None] + attended - intersection).clamp(min=1)
