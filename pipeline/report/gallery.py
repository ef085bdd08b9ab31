"""What a page shows of single images: for each (image, class) pair, what every model sees and answers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from pipeline.data.manifest import ManifestRow
from pipeline.data.samples import Sample
from pipeline.data.voc import IGNORE_INDEX
from pipeline.datasets.counterfactual.table import GROUND_SETS, MadeImage
from pipeline.evaluation.metrics import DECISION, SIZES, area_thirds, attention_scores
from pipeline.evaluation.snapshots import as_batch
from pipeline.gain.attention import class_attention, normalise_attention
from pipeline.gain.view import View
from pipeline.model.fcn8s import FCN8s
from pipeline.report.comparison import Comparison
from pipeline.report.findings import best_guided, reference_model
from pipeline.report.overlays import Picture, attention_overlay, outlined, segmentation_overlay
from pipeline.report.panels import picture

OF_OTHER_SETS = 6  # images of each counterfactual set
WITHOUT_OBJECT = ("context_without_object", *GROUND_SETS)  # sets in which the class asked for is not there


@dataclass(frozen=True)
class Answer:
    """What one model makes of a pair."""

    attention: Picture  # over the image, the true mask outlined
    prediction: Picture  # the segmentation over the image
    probability: float  # of the class
    iou: float | None  # of attention and mask; None where the class has no mask
    right: bool  # whether the class is found, or not claimed where it is not there


@dataclass(frozen=True)
class Exhibit:
    """A pair: an image, and a class that it shows, or whose ground it shows."""

    split: str
    image_id: str
    class_name: str
    there: bool  # the class is in the image
    size: str  # of the object, one of SIZES; "" outside the test split
    image: Picture
    truth: Picture
    answers: Mapping[str, Answer]  # by model


def exhibits(comparison: Comparison, count: int, threshold: float) -> Iterator[Exhibit]:
    """The pairs of `count` test images, and of some images of every other set.

    Args:
        threshold: share of a map's maximum from which a pixel counts as attended.
    """
    sizes = _sizes(comparison)
    for index in chosen_images(comparison, count):
        yield from _pairs(comparison, "test", index, threshold, sizes)
    for split, dataset in comparison.sets.items():
        if split != "test":
            for index in np.unique(np.linspace(0, len(dataset) - 1, OF_OTHER_SETS).round().astype(int)).tolist():
                yield from _pairs(comparison, split, index, threshold, {})


def chosen_images(comparison: Comparison, count: int) -> list[int]:
    """Indices of test images to look at, at most `count`.

    In turn the one whose attention improved most from the reference to the best guided variant, the one that worsened
    most, the one that the variant misses most, and the next one of all, which nobody chose.
    """
    dataset = comparison.sets["test"]
    scores = comparison.scores
    guided, reference = (scores[name].test.attention for name in (best_guided(scores), reference_model(scores)))
    orders: list[list[int]] = []
    if guided:
        change = guided["attention_iou"] - reference["attention_iou"]
        sought = (-change, change, guided["attention_iou"])
        orders += [guided["image_index"][values.argsort(stable=True)].tolist() for values in sought]
    orders.append(list(range(len(dataset))))
    in_turn = (index for turn in zip_longest(*orders) for index in turn if index is not None)
    return list(dict.fromkeys(in_turn))[:count]


def _sizes(comparison: Comparison) -> dict[tuple[int, int], str]:
    """Of the object of each test pair, by (image, class) index."""
    attention = next(iter(comparison.scores.values())).test.attention
    if not attention:
        return {}
    keys = zip(attention["image_index"].tolist(), attention["class_index"].tolist(), strict=True)
    return {key: SIZES[third] for key, third in zip(keys, area_thirds(attention["area"]).tolist(), strict=True)}


def _pairs(
    comparison: Comparison, split: str, index: int, threshold: float, sizes: Mapping[tuple[int, int], str]
) -> Iterator[Exhibit]:
    row, sample = comparison.sets[split].rows[index], comparison.sets[split][index]
    there, names = split not in WITHOUT_OBJECT, comparison.class_names
    asked = [names.index(name) for name in _asked(row)]
    if not asked:
        return
    image, truth = picture(sample), sample.target.numpy()
    looks = {name: _look(model, sample, asked, threshold) for name, model in comparison.models.items()}
    for place, class_index in enumerate(asked):
        mask = truth == class_index + 1
        answers = {}
        for name, look in looks.items():
            found = float(look.probabilities[place])
            answers[name] = Answer(
                outlined(attention_overlay(image, look.maps[place].numpy()), mask),
                segmentation_overlay(image, look.prediction.numpy()),
                found,
                float(look.ious[place]) if mask.any() else None,
                (found >= DECISION) == there,
            )
        yield Exhibit(
            split,
            row.image_id,
            names[class_index],
            there,
            sizes.get((index, class_index), ""),
            outlined(image, mask),
            segmentation_overlay(image, truth),
            answers,
        )


def _asked(row: ManifestRow) -> Sequence[str]:
    if isinstance(row, MadeImage):
        return (row.object,)
    return row.contexts if row.split in WITHOUT_OBJECT else row.classes


@dataclass(frozen=True)
class _Look:
    probabilities: Tensor  # (N,) of the classes asked for
    maps: Tensor  # (N, H, W) in [0, 1]
    ious: Tensor  # (N,)
    prediction: Tensor  # (H, W) class values


@torch.no_grad()
def _look(model: FCN8s, sample: Sample, asked: Sequence[int], threshold: float) -> _Look:
    view = View.of(model, as_batch(model, sample))
    maps, _ = normalise_attention(class_attention(model, view.features.conv5_3)[0, list(asked)])
    shown = view.attention(maps).float().cpu()
    masks = torch.stack([sample.target == class_index + 1 for class_index in asked])
    valid = (sample.target != IGNORE_INDEX).expand(masks.shape)
    ious = attention_scores(shown, masks, valid, threshold)["attention_iou"]
    probabilities = view.class_logits().sigmoid()[0, list(asked)].float().cpu()
    return _Look(probabilities, shown, ious, view.seg_logits().argmax(dim=1)[0].cpu())
