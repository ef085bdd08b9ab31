"""Every score of one model on held-out data, with its bootstrap over images."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pipeline.data.samples import Sample
from pipeline.data.voc import COUNTERFACTUAL_SPLITS
from pipeline.evaluation.metrics import (
    attention_metrics,
    attention_metrics_by_size,
    class_iou,
    class_macro_means,
    classification_metrics,
    segmentation_metrics,
)
from pipeline.evaluation.passes import Evaluation, Scoring, evaluate, validation_scores
from pipeline.model.fcn8s import FCN8s
from pipeline.report.bootstrap import resample_weights
from pipeline.report.context_bias import Predictions, context_bias_groups, context_bias_metrics
from pipeline.report.counterfactual_scores import SeparatedSet, counterfactual_groups, counterfactual_metrics
from pipeline.report.faithfulness import evaluate_faithfulness
from pipeline.report.tables import Scores

Replicates = dict[str, dict[str, Tensor]]  # group to name to (1 + R,) float64: the estimate, then its resamples
CLASS_SCORES = ("attention_iou", "energy_pointing_game", "pointing_game")  # in the table by class


@dataclass(frozen=True)
class HeldOutData:
    """What every model is scored on, in batches; C classes."""

    class_names: Sequence[str]  # C
    validation: Iterable[Sample]
    test: Iterable[Sample]
    counterfactual: Mapping[str, Iterable[Sample]]  # by split of COUNTERFACTUAL_SPLITS; empty for a data set without
    context_labels: Tensor  # (M', C) multi-hot, the classes whose ground each image of context_without_object shows
    faithfulness: Iterable[Sample]  # on which deletion and insertion are scored, counted from 0; may be empty
    separated: Mapping[str, SeparatedSet] = field(default_factory=dict)  # by set; those that could be made


@dataclass(frozen=True)
class ScoreOptions:
    """How a model is scored; the values are those of params.yaml.

    Models scored on the same data with the same seed share their resamples, so that the difference of their replicates
    is a paired bootstrap.
    """

    scoring: Scoring
    deletion_steps: int  # points on the curves of deletion and insertion, after the first
    num_replicates: int  # R
    seed: int

    def weights(self, split: str, num_images: int) -> Tensor:
        """`resample_weights` of a split, (1 + R, num_images); splits are resampled independently of each other."""
        entropy = np.random.SeedSequence([self.seed, *split.encode()])
        return resample_weights(num_images, self.num_replicates, int(entropy.generate_state(1)[0]))


@dataclass(frozen=True)
class ModelScores:
    """What `score_model` says of one model."""

    validation: dict[str, float]  # of validation images, to choose by; all below is of test images
    replicates: Replicates
    class_rows: list[dict[str, object]]  # one per class, estimates
    confusion: Tensor  # (C + 1, C + 1) int64 over the test split, rows = truth
    test: Evaluation  # image by image

    @property
    def estimates(self) -> Scores:
        """The scores themselves, without their resamples."""
        return {
            group: {name: float(values[0]) for name, values in scores.items()}
            for group, scores in self.replicates.items()
        }


def score_model(model: FCN8s, data: HeldOutData, options: ScoreOptions, device: torch.device) -> ModelScores:
    """Every score of a model in eval mode; the groups and names are those of base/scores.py.

    Context bias needs counterfactual data, the scores of separated objects and grounds an image of their set, deletion
    and insertion at least one image to score them on.
    """
    validation = validation_scores(evaluate(model, data.validation, device, options.scoring))
    result = evaluate(model, data.test, device, options.scoring)
    weights = options.weights("test", len(result.class_probs))
    replicates = {
        "segmentation": segmentation_metrics(result.confusions, weights),
        "classification": classification_metrics(result.class_probs, result.image_labels, weights),
        "attention": attention_metrics(result.attention, weights)
        | attention_metrics_by_size(result.attention, weights),
    }
    groups = _score_context_bias(model, data, options, device) if data.counterfactual else {}
    if groups:
        replicates["context_bias"] = context_bias_metrics(groups)
    separated = _score_separated(model, data, options, device, weights)
    if separated:
        replicates["counterfactual"] = counterfactual_metrics(separated)
        groups |= separated
    replicates["attention"] |= _score_faithfulness(model, data, options, device)
    confusion = result.confusions.sum(dim=0)
    return ModelScores(
        validation, replicates, _class_rows(data.class_names, confusion, result, groups), confusion, result
    )


def _score_context_bias(
    model: FCN8s, data: HeldOutData, options: ScoreOptions, device: torch.device
) -> dict[str, Tensor]:
    objects, contexts = (
        evaluate(model, data.counterfactual[split], device, options.scoring, segmentation=False, attention=False)
        for split in COUNTERFACTUAL_SPLITS
    )
    object_weights, context_weights = (
        options.weights(split, len(result.class_probs))
        for split, result in zip(COUNTERFACTUAL_SPLITS, (objects, contexts), strict=True)
    )
    return context_bias_groups(
        Predictions(objects.class_probs, objects.image_labels, object_weights),
        Predictions(contexts.class_probs, data.context_labels, context_weights),
    )


def _score_separated(
    model: FCN8s, data: HeldOutData, options: ScoreOptions, device: torch.device, weights: Tensor
) -> dict[str, Tensor]:
    """Images made from a test image weigh as it does: all sets are resampled together with the test split."""
    predictions: dict[str, Predictions] = {}
    for name, of_set in data.separated.items():
        result = evaluate(model, of_set.batches, device, options.scoring, segmentation=False, attention=False)
        predictions[name] = Predictions(result.class_probs, of_set.object_labels, weights[:, of_set.source_index])
    return counterfactual_groups(predictions)


def _score_faithfulness(
    model: FCN8s, data: HeldOutData, options: ScoreOptions, device: torch.device
) -> dict[str, Tensor]:
    pairs = evaluate_faithfulness(model, data.faithfulness, device, num_steps=options.deletion_steps)
    if not pairs:
        return {}
    num_images = sum(len(batch.image) for batch in data.faithfulness)
    return class_macro_means(pairs, ("deletion_auc", "insertion_auc"), options.weights("deletion", num_images))


def _class_rows(
    class_names: Sequence[str], confusion: Tensor, result: Evaluation, groups: Mapping[str, Tensor]
) -> list[dict[str, object]]:
    iou = class_iou(confusion)
    rows: list[dict[str, object]] = []
    for index, name in enumerate(class_names):
        of_class = result.attention["class_index"] == index
        means = {key: float(result.attention[key][of_class].mean()) for key in CLASS_SCORES}
        cells = {cell: float(values[0, index]) for cell, values in groups.items()}
        rows.append({"class": name, "iou": float(iou[index + 1]), "pairs": int(of_class.sum()), **means, **cells})
    return rows
