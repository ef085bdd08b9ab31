"""A network run over data, and the tables that come of it. The scores themselves are in metrics.py."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.base.ranks import gathered
from pipeline.data.samples import Sample
from pipeline.data.voc import COUNTERFACTUAL_SPLITS, IGNORE_INDEX
from pipeline.evaluation.metrics import (
    attention_metrics,
    attention_metrics_by_size,
    attention_scores,
    class_iou,
    class_macro_means,
    classification_metrics,
    confusion_matrix,
    context_bias_groups,
    context_bias_metrics,
    resample_weights,
    segmentation_metrics,
)
from pipeline.gain.attention import attention_to_image, class_attention, normalise_attention, soft_mask
from pipeline.gain.network import Pairs, class_pairs
from pipeline.model.fcn8s import FCN8s
from pipeline.report.faithfulness import deletion_and_insertion

Scores = dict[str, dict[str, float]]  # group to name to value
Replicates = dict[str, dict[str, Tensor]]  # group to name to (1 + R,) float64: the estimate, then its resamples


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


@dataclass(frozen=True)
class ModelScores:
    """What `score_model` says of one model."""

    replicates: Replicates
    class_rows: list[dict[str, object]]  # one per class, estimates
    confusion: Tensor  # (C + 1, C + 1) int64 over the test split, rows = truth


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
        batches: of this rank; the others' results are added to theirs, so that every rank has them all.
        segmentation, attention: what to score besides the class probabilities.
    """
    num_classes = model.num_foreground_classes + 1
    confusions: list[Tensor] = []
    probs, labels, scores, sample_index = [], [], [], []
    for batch in batches:
        image, target = batch.image.to(device), batch.target.to(device)
        size = (image.shape[2], image.shape[3])
        features = model.features(image.contiguous(memory_format=torch.channels_last))
        if segmentation:
            prediction = model.segment(features, size).argmax(dim=1)
            confusions.append(confusion_matrix(prediction, target, num_classes).cpu())
        probs.append(model.classify(features.conv5_3).sigmoid().cpu())
        labels.append(batch.image_labels)
        if attention:
            pairs, maps, alive = _pair_attention(model, features.conv5_3, batch.image_labels.to(device), size)
            pair_target = target[pairs.image_index]
            score = attention_scores(
                maps,
                pair_target == pairs.class_index[:, None, None] + 1,
                pair_target != IGNORE_INDEX,
                scoring.attention_threshold,
            )
            score["coverage"] = (
                soft_mask(maps, threshold=scoring.mask_threshold, slope=scoring.mask_slope).mean(dim=(1, 2)) * alive
            )
            score["dead"] = (~alive).float()
            score["class_index"] = pairs.class_index
            score["image_index"] = batch.sample_index[pairs.image_index.cpu()]
            scores.append({name: values.cpu() for name, values in score.items()})
        sample_index.append(batch.sample_index)
    everything = gathered((confusions, probs, labels, scores, sample_index))
    confusions, probs, labels, scores, sample_index = (list(chain(*parts)) for parts in zip(*everything, strict=True))
    # Batches of one size each come out of order; the images count from 0 in the order of the data set.
    order = torch.cat(sample_index).argsort()
    confusion = torch.cat([torch.zeros((0, num_classes, num_classes), dtype=torch.int64), *confusions])
    merged = _merged(scores)
    if merged:
        in_order = torch.cat(sample_index)[order]
        merged["image_index"] = torch.searchsorted(in_order, merged["image_index"])
        by_image = merged["image_index"].argsort(stable=True)
        merged = {name: values[by_image] for name, values in merged.items()}
    return Evaluation(
        confusion[order] if len(confusion) else confusion, torch.cat(probs)[order], torch.cat(labels)[order], merged
    )


@torch.no_grad()
def evaluate_faithfulness(
    model: FCN8s, batches: Iterable[Sample], device: torch.device, *, num_steps: int
) -> dict[str, Tensor]:
    """Deletion and insertion of the pairs of a data set, see `faithfulness`.

    As many masked images pass the network together as a batch has images.

    Returns:
        deletion_auc, insertion_auc, class_index and image_index, one value per pair.
    """
    scores = []
    for batch in batches:
        image, labels = batch.image.to(device), batch.image_labels.to(device)
        features = model.features(image.contiguous(memory_format=torch.channels_last))
        pairs, maps, _ = _pair_attention(model, features.conv5_3, labels, (image.shape[2], image.shape[3]))
        deletion, insertion = deletion_and_insertion(
            model, image[pairs.image_index], maps, pairs.class_index, num_steps=num_steps, batch_size=len(image)
        )
        scores.append(
            {
                "deletion_auc": deletion,
                "insertion_auc": insertion,
                "class_index": pairs.class_index,
                "image_index": batch.sample_index[pairs.image_index.cpu()],
            }
        )
    return _merged(scores)


def score_model(
    model: FCN8s,
    test: Iterable[Sample],
    counterfactual: Mapping[str, Iterable[Sample]],
    faithfulness: Sequence[Sample] | DataLoader[Sample],
    device: torch.device,
    class_names: Sequence[str],
    *,
    context_labels: Tensor,
    attention_threshold: float,
    mask_threshold: float,
    mask_slope: float,
    num_replicates: int,
    seed: int,
    deletion_steps: int,
) -> ModelScores:
    """Every score of one model, with its bootstrap over images.

    Args:
        test: batches of the test split.
        counterfactual: batches of object_without_context and context_without_object; empty for a data set without.
        faithfulness: batches of the images on which deletion and insertion are scored, counted from 0; may be empty.
        context_labels: (M', C) multi-hot, the class whose ground each image of context_without_object shows.
        num_replicates: R. Models scored on the same data with the same `seed` share their resamples, so that the
            difference of their replicates is a paired bootstrap.
        deletion_steps: points on the curves of deletion and insertion, after the first.

    Returns:
        Replicates by {"segmentation", "classification", "attention", "context_bias"}, the last only with
        counterfactual data, and more.
    """

    def weights(split: str, num_images: int) -> Tensor:
        entropy = np.random.SeedSequence([seed, *split.encode()])
        return resample_weights(num_images, num_replicates, int(entropy.generate_state(1)[0]))

    scoring = Scoring(attention_threshold, mask_threshold, mask_slope)
    result = evaluate(model, test, device, scoring)
    test_weights = weights("test", len(result.class_probs))
    replicates = {
        "segmentation": segmentation_metrics(result.confusions, test_weights),
        "classification": classification_metrics(result.class_probs, result.image_labels, test_weights),
        "attention": attention_metrics(result.attention, test_weights)
        | attention_metrics_by_size(result.attention, test_weights),
    }
    groups: dict[str, Tensor] = {}
    if counterfactual:
        objects, contexts = (
            evaluate(model, counterfactual[split], device, scoring, segmentation=False, attention=False)
            for split in COUNTERFACTUAL_SPLITS
        )
        groups = context_bias_groups(
            objects.class_probs,
            objects.image_labels,
            weights("object_without_context", len(objects.class_probs)),
            contexts.class_probs,
            context_labels,
            weights("context_without_object", len(contexts.class_probs)),
        )
        replicates["context_bias"] = context_bias_metrics(groups)
    pairs = evaluate_faithfulness(model, faithfulness, device, num_steps=deletion_steps)
    if pairs:
        num_images = sum(len(batch.image) for batch in faithfulness)
        replicates["attention"] |= class_macro_means(
            pairs, ("deletion_auc", "insertion_auc"), weights("deletion", num_images)
        )
    confusion = result.confusions.sum(dim=0)
    cells = {cell: values[0] for cell, values in groups.items()}
    return ModelScores(replicates, _class_rows(class_names, confusion, result.attention, cells), confusion)


def estimates(replicates: Replicates) -> Scores:
    """The scores themselves, without their resamples."""
    return {group: {name: float(values[0]) for name, values in scores.items()} for group, scores in replicates.items()}


def validation_row(result: Evaluation) -> dict[str, float]:
    """The scores worth a curve, as `val/NAME`."""
    weights = torch.ones(1, len(result.class_probs), dtype=torch.float64)
    scores: dict[str, Tensor] = {}
    if len(result.confusions):
        scores |= segmentation_metrics(result.confusions, weights)
    if result.attention:
        scores |= classification_metrics(result.class_probs, result.image_labels, weights)
        scores |= attention_metrics(result.attention, weights)
    return {f"val/{name}": float(values) for name, values in scores.items()}


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
    shown = [column for column in columns if all(column[1] in groups for groups in metrics.values())]
    lines = ["| model | " + " | ".join(title for title, _, _ in shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for model, groups in metrics.items():
        cells = " | ".join(f"{100 * groups[group][name]:.1f}" for _, group, name in shown)
        lines.append(f"| {model} | {cells} |")
    return "\n".join(lines)


def _pair_attention(
    model: FCN8s, conv5_3: Tensor, image_labels: Tensor, size: tuple[int, int]
) -> tuple[Pairs, Tensor, Tensor]:
    """The ground-truth pairs of a batch, their attention (N, H, W) in [0, 1] and which maps are alive, (N,) bool."""
    pairs = class_pairs(image_labels, model.num_foreground_classes)
    maps, alive = normalise_attention(class_attention(model, conv5_3)[pairs.image_index, pairs.class_index])
    return pairs, attention_to_image(maps, size, model.attention_grid), alive


def _merged(scores: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([score[name].cpu() for score in scores]) for name in scores[0]} if scores else {}


def _class_rows(
    class_names: Sequence[str], confusion: Tensor, attention: Mapping[str, Tensor], cells: Mapping[str, Tensor]
) -> list[dict[str, object]]:
    iou = class_iou(confusion)
    rows: list[dict[str, object]] = []
    for index, name in enumerate(class_names):
        of_class = attention["class_index"] == index
        means = {
            key: float(attention[key][of_class].mean())
            for key in ("attention_iou", "energy_pointing_game", "pointing_game")
        }
        by_cell = {cell: float(values[index]) for cell, values in cells.items()}
        rows.append({"class": name, "iou": float(iou[index + 1]), "pairs": int(of_class.sum()), **means, **by_cell})
    return rows
