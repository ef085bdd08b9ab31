"""What a page shows of single images: for each (image, class) pair, what every model sees and answers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, zip_longest

import numpy as np
import torch
from torch import Tensor

from pipeline.base.sections import Evaluate
from pipeline.data.manifest import ManifestRow
from pipeline.data.samples import Sample
from pipeline.data.voc import IGNORE_INDEX
from pipeline.datasets.counterfactual.table import GROUND_SETS, MadeImage
from pipeline.evaluation.metrics import DECISION, SIZES, area_thirds, attention_scores
from pipeline.gain.attention import class_attention, normalise_attention
from pipeline.gain.view import View
from pipeline.model.fcn8s import FCN8s
from pipeline.report.comparison import Comparison
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


def exhibits(comparison: Comparison, options: Evaluate) -> Iterator[Exhibit]:
    """The pairs of `num_page_images` test images, and of some images of every other set; those of an image in a row."""
    sizes = _sizes(comparison)
    for split, dataset in comparison.sets.items():
        if split == "test":
            chosen = chosen_images(comparison, options.num_page_images)
        else:
            chosen = np.unique(np.linspace(0, len(dataset) - 1, OF_OTHER_SETS).round().astype(int)).tolist()
        asked = ((index, _asked(dataset.rows[index], comparison.class_names)) for index in chosen)
        subjects = (_Subject(split, dataset.rows[i], dataset[i], classes) for i, classes in asked if classes)
        for batch in _batches(subjects, options.batch_size):
            yield from _answered(comparison, batch, options.attention_threshold, sizes)


def chosen_images(comparison: Comparison, count: int) -> list[int]:
    """Indices of test images to look at, at most `count`.

    In turn the one whose attention improved most from the reference to the best guided variant, the one that worsened
    most, the one that the variant misses most, and the next one of all, which nobody chose.
    """
    dataset = comparison.sets["test"]
    scores = comparison.scores
    guided, reference = (scores[name].test.attention for name in (comparison.best_guided, comparison.reference))
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


@dataclass(frozen=True)
class _Subject:
    """An image that is shown, and the classes that are asked for in it."""

    split: str
    row: ManifestRow
    sample: Sample
    asked: Sequence[int]  # indices of foreground classes


def _asked(row: ManifestRow, class_names: Sequence[str]) -> list[int]:
    if isinstance(row, MadeImage):
        names: Sequence[str] = (row.object,)
    else:
        names = row.contexts if row.split in WITHOUT_OBJECT else row.classes
    return [class_names.index(name) for name in names]


def _batches(subjects: Iterable[_Subject], batch_size: int) -> Iterator[list[_Subject]]:
    """Neighbours of one size together; the order stays."""
    for _, of_size in groupby(subjects, key=lambda subject: subject.sample.image.shape):
        while batch := list(islice(of_size, batch_size)):
            yield batch


def _answered(
    comparison: Comparison, batch: Sequence[_Subject], threshold: float, sizes: Mapping[tuple[int, int], str]
) -> Iterator[Exhibit]:
    looks = {name: _look(model, batch, threshold) for name, model in comparison.models.items()}
    first = 0  # pair of the image among those of the batch
    for place, subject in enumerate(batch):
        split, row, truth = subject.split, subject.row, subject.sample.target.numpy()
        image, there = picture(subject.sample), split not in WITHOUT_OBJECT
        overlay = segmentation_overlay(image, truth)
        predictions = {
            name: segmentation_overlay(image, look.predictions[place].numpy()) for name, look in looks.items()
        }
        for pair, class_index in enumerate(subject.asked, start=first):
            mask = truth == class_index + 1
            answers = {}
            for name, look in looks.items():
                found = float(look.probabilities[pair])
                answers[name] = Answer(
                    outlined(attention_overlay(image, look.maps[pair].numpy()), mask),
                    predictions[name],
                    found,
                    float(look.ious[pair]) if mask.any() else None,
                    (found >= DECISION) == there,
                )
            size = sizes.get((int(subject.sample.sample_index), class_index), "") if split == "test" else ""
            class_name = comparison.class_names[class_index]
            yield Exhibit(split, row.image_id, class_name, there, size, outlined(image, mask), overlay, answers)
        first += len(subject.asked)


@dataclass(frozen=True)
class _Look:
    """What a model makes of B images and of their N pairs, one image after the other."""

    probabilities: Tensor  # (N,) of the classes asked for
    maps: Tensor  # (N, H, W) in [0, 1]
    ious: Tensor  # (N,)
    predictions: Tensor  # (B, H, W) class values


@torch.no_grad()
def _look(model: FCN8s, batch: Sequence[_Subject], threshold: float) -> _Look:
    image = torch.stack([subject.sample.image for subject in batch]).to(next(model.parameters()).device)
    view = View.of(model, image.contiguous(memory_format=torch.channels_last))
    pairs = [(place, class_index) for place, subject in enumerate(batch) for class_index in subject.asked]
    images, classes = (list(indices) for indices in zip(*pairs, strict=True))
    maps, _ = normalise_attention(class_attention(model, view.features.conv5_3)[images, classes])
    shown = view.attention(maps).float().cpu()
    target = torch.stack([batch[place].sample.target for place in images])
    masks = target == torch.tensor(classes)[:, None, None] + 1
    ious = attention_scores(shown, masks, target != IGNORE_INDEX, threshold)["attention_iou"]
    probabilities = view.class_logits().sigmoid()[images, classes].float().cpu()
    return _Look(probabilities, shown, ious, view.seg_logits().argmax(dim=1).cpu())
