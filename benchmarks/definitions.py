"""The scores of others beside ours, on the model that the results in README.md are of.

`python -m benchmarks.definitions`, after `make repro`, prints a table and writes benchmarks/definitions.json.
docs/definitions.md says where the definitions differ. Theirs are torchmetrics itself, and what the sources of torchfcn
(utils.py), TorchRay (benchmark/pointing_game.py), Model-Guidance (metrics.py) and RISE (evaluation.py) compute, written
anew for whole data sets.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torchmetrics.functional.classification as tm
from torch import Tensor
from torchmetrics.segmentation import MeanIoU

from pipeline.base.files import write_json
from pipeline.base.params import load_params
from pipeline.base.workspace import Workspace
from pipeline.data import voc
from pipeline.data.loaders import evaluation_loader
from pipeline.data.samples import SegmentationDataset
from pipeline.evaluation.metrics import (
    attention_metrics,
    attention_scores,
    classification_metrics,
    confusion_matrix,
    segmentation_metrics,
)
from pipeline.evaluation.passes import pair_attention
from pipeline.gain.view import View
from pipeline.model.fcn8s import FCN8s
from pipeline.model.weights import load_weights
from pipeline.report.faithfulness import deletion_and_insertion
from pipeline.report.held_out import read_set

REPOSITORY = Path(__file__).parents[1]
MODEL = "gain_ext"
TOLERANCE = 15  # pixels around the maximum in TorchRay's pointing game
MIN_MAX_THRESHOLD = 0.5  # of Model-Guidance, on maps scaled from their minimum to their maximum
BATCH_SIZE = 32


@dataclass(frozen=True)
class Seen:
    """What a model says of M images of one size with N ground-truth pairs, and the truth."""

    prediction: Tensor  # (M, H, W) int64
    target: Tensor  # (M, H, W) int64, 255 = void
    class_probs: Tensor  # (M, C)
    image_labels: Tensor  # (M, C)
    maps: Tensor  # (N, H, W) in [0, 1]
    class_index: Tensor  # (N,)
    image_index: Tensor  # (N,)
    boxes: Tensor  # (N, H, W) bool, the boxes of each pair's class

    @property
    def masks(self) -> Tensor:
        """(N, H, W) bool, the pixels of each pair's class."""
        return self.target[self.image_index] == self.class_index[:, None, None] + 1

    def part(self, chosen: Tensor) -> "Seen":
        """Some of the images, (M,) bool, alone."""
        of_pairs, place = chosen[self.image_index], chosen.cumsum(dim=0) - 1
        images = (self.prediction, self.target, self.class_probs, self.image_labels)
        pairs = (self.maps, self.class_index, place[self.image_index], self.boxes)
        return Seen(*(tensor[chosen] for tensor in images), *(tensor[of_pairs] for tensor in pairs))


@torch.no_grad()
def look(model: FCN8s, dataset: SegmentationDataset, class_names: tuple[str, ...]) -> Seen:
    """`model`, in eval mode, on images of one size."""
    parts, num_images = [], 0
    for batch in evaluation_loader(dataset, batch_size=BATCH_SIZE, num_workers=0):
        size = (batch.image.shape[2], batch.image.shape[3])
        view = View.of(model, batch.image)
        pairs, maps, _ = pair_attention(view, batch.image_labels)
        names = [dataset.rows[int(index)].image_id for index in batch.sample_index]
        boxes = [
            _boxes(dataset.root, names[int(image)], class_names[int(of_class)], size)
            for image, of_class in zip(pairs.image_index, pairs.class_index, strict=True)
        ]
        prediction = view.seg_logits().argmax(dim=1)
        probs = view.class_logits().sigmoid()
        of_images = (prediction, batch.target.long(), probs, batch.image_labels)
        parts.append(Seen(*of_images, maps, pairs.class_index, pairs.image_index + num_images, torch.stack(boxes)))
        num_images += len(batch.image)
    return Seen(*(torch.cat([getattr(part, name) for part in parts]) for name in Seen.__dataclass_fields__))


def ours(seen: Seen, threshold: float) -> dict[str, float]:
    """The scores of this project, as fractions."""
    num_classes = seen.class_probs.shape[1] + 1
    weights = torch.ones(1, len(seen.target), dtype=torch.float64)
    attention = attention_scores(seen.maps, seen.masks, seen.target[seen.image_index] != voc.IGNORE_INDEX, threshold)
    attention |= {"coverage": seen.maps.mean(dim=(1, 2)), "dead": (seen.maps.amax(dim=(1, 2)) == 0).float()}
    attention |= {"class_index": seen.class_index, "image_index": seen.image_index}
    scores = segmentation_metrics(confusion_matrix(seen.prediction, seen.target, num_classes), weights)
    scores |= classification_metrics(seen.class_probs, seen.image_labels, weights)
    scores |= attention_metrics(attention, weights)
    return {name: float(values) for name, values in scores.items()}


def torchfcn(seen: Seen) -> dict[str, float]:
    """torchfcn.utils.label_accuracy_score: a class that is predicted and not there has IoU 0 and counts."""
    num_classes = seen.class_probs.shape[1] + 1
    counts = confusion_matrix(seen.prediction, seen.target, num_classes).sum(dim=0).double()
    correct, truth = counts.diagonal(), counts.sum(dim=1)
    iou = correct / (truth + counts.sum(dim=0) - correct)
    return {
        "pixel_accuracy": float(correct.sum() / counts.sum()),
        "mean_accuracy": float((correct / truth).nanmean()),
        "mean_iou": float(iou.nanmean()),
        "frequency_weighted_iou": float((truth * iou).nansum() / truth.sum()),
    }


def torchmetrics_scores(seen: Seen) -> dict[str, float]:
    """torchmetrics with its defaults, void left out where it can be; MeanIoU, which cannot, sees void as background."""
    num_classes = seen.class_probs.shape[1] + 1
    pixels, probs, labels = (seen.prediction, seen.target), seen.class_probs, seen.image_labels.long()
    void = seen.target == voc.IGNORE_INDEX
    mean_iou = MeanIoU(num_classes=num_classes, input_format="index")
    mean_iou.update(*(tensor.masked_fill(void, 0) for tensor in pixels))
    found = {
        "segmentation.MeanIoU": mean_iou.compute(),
        "MulticlassJaccardIndex": tm.multiclass_jaccard_index(*pixels, num_classes, ignore_index=voc.IGNORE_INDEX),
        "MulticlassAccuracy": tm.multiclass_accuracy(*pixels, num_classes, ignore_index=voc.IGNORE_INDEX),
        "MulticlassAccuracy, micro": tm.multiclass_accuracy(
            *pixels, num_classes, "micro", ignore_index=voc.IGNORE_INDEX
        ),
        "MultilabelAccuracy": tm.multilabel_accuracy(probs, labels, num_classes - 1),
        "MultilabelExactMatch": tm.multilabel_exact_match(probs, labels, num_classes - 1),
        "MultilabelF1Score": tm.multilabel_f1_score(probs, labels, num_classes - 1),
        "MultilabelAveragePrecision": tm.multilabel_average_precision(probs, labels, num_classes - 1),
    }
    return {name: float(value) for name, value in found.items()}


def torchray_pointing_game(seen: Seen, tolerance: int) -> float:
    """TorchRay's accuracy: a hit where a pixel of the object is nearer than `tolerance` to the peak, mean over classes.

    A class without a pair counts as 0.
    """
    height, width = seen.maps.shape[1:]
    peak = seen.maps.flatten(1).argmax(dim=1)
    rows, columns = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    distance = (rows - (peak // width)[:, None, None]) ** 2 + (columns - (peak % width)[:, None, None]) ** 2
    hit = (seen.masks & (distance < tolerance**2)).any(dim=2).any(dim=1)
    of_class = torch.nn.functional.one_hot(seen.class_index, seen.class_probs.shape[1]).double()
    return float(((of_class * hit[:, None]).sum(dim=0) / of_class.sum(dim=0).clamp(min=1)).mean())


def model_guidance(seen: Seen) -> dict[str, float]:
    """Model-Guidance: boxes, maps scaled from minimum to maximum, means over pairs; F-score over all decisions."""
    low, high = (bound(seen.maps, dim=(1, 2), keepdim=True) for bound in (torch.amin, torch.amax))
    attended = (seen.maps - low) / (high - low).clamp(min=1e-7) > MIN_MAX_THRESHOLD
    union = (attended | seen.boxes).sum(dim=(1, 2))
    iou = (attended & seen.boxes).sum(dim=(1, 2)) / union.clamp(min=1)
    energy = (seen.maps * seen.boxes).sum(dim=(1, 2)) / seen.maps.sum(dim=(1, 2)).clamp(min=1e-7)
    predicted, present = seen.class_probs >= 0.5, seen.image_labels > 0
    f_score = 2 * (predicted & present).sum() / (predicted.sum() + present.sum())
    return {"IoU": float(iou.mean()), "energy": float(energy.mean()), "F-Score": float(f_score)}


def insertion(model: FCN8s, dataset: SegmentationDataset, seen: Seen, num_steps: int) -> dict[str, float]:
    """Mean over pairs of insertion: ties as their expectation, as here, and in reading order or its reverse."""
    image = torch.stack([dataset[index].image for index in range(int(seen.image_index.max()) + 1)])[seen.image_index]
    num_pixels = seen.maps[0].numel()
    order = torch.linspace(0, 1e-6, num_pixels).view_as(seen.maps[0])
    maps = {"expectation": seen.maps, "reading order": seen.maps - order, "the reverse": seen.maps + order}
    found = {}
    for name, ranked in maps.items():
        arguments = (model, image, ranked, seen.class_index)
        found[name] = deletion_and_insertion(*arguments, num_steps=num_steps, batch_size=BATCH_SIZE)[1]
    return {name: float(values.mean()) for name, values in found.items()}


def compared(seen: Seen, threshold: float) -> Iterator[tuple[str, str, float, float]]:
    """Score, who defines it otherwise, our value and theirs."""
    own, fcn, metrics = ours(seen, threshold), torchfcn(seen), torchmetrics_scores(seen)
    for name, value in fcn.items():
        yield name, "torchfcn label_accuracy_score", own[name], value
    for name, other in (
        ("mean_iou", "MulticlassJaccardIndex"),
        ("mean_iou", "segmentation.MeanIoU"),
        ("mean_accuracy", "MulticlassAccuracy"),
        ("pixel_accuracy", "MulticlassAccuracy, micro"),
        ("class_accuracy", "MultilabelAccuracy"),
        ("exact_match", "MultilabelExactMatch"),
        ("macro_f1", "MultilabelF1Score"),
        ("mean_average_precision", "MultilabelAveragePrecision"),
    ):
        yield name, f"torchmetrics {other}", own[name], metrics[other]
    guidance = model_guidance(seen)
    yield "macro_f1", "Model-Guidance F-Score", own["macro_f1"], guidance["F-Score"]
    yield "attention_iou", "Model-Guidance IoU", own["attention_iou"], guidance["IoU"]
    yield "energy_pointing_game", "Model-Guidance EPG", own["energy_pointing_game"], guidance["energy"]
    yield "pointing_game", "TorchRay, 15 px", own["pointing_game"], torchray_pointing_game(seen, TOLERANCE)
    yield "pointing_game", "TorchRay, 1 px", own["pointing_game"], torchray_pointing_game(seen, 1)


def _boxes(root: Path, image_id: str, class_name: str, size: tuple[int, int]) -> Tensor:
    """(H, W) bool: inside a box of the class."""
    inside = torch.zeros(size, dtype=torch.bool)
    for box in voc.read_boxes(root, image_id):
        if box.class_name == class_name:
            inside[max(box.top, 0) : box.bottom, max(box.left, 0) : box.right] = True
    return inside


def main() -> None:
    """Score the test images both ways and report."""
    params, space = load_params(REPOSITORY / "params.yaml"), Workspace(REPOSITORY)
    model, class_names = load_weights(space.weights(MODEL))
    model.eval()
    dataset, options = read_set(space, "test"), params.evaluate
    seen = look(model, dataset, class_names)
    # Without the first class, which the model still predicts here and there.
    without = seen.part(seen.image_labels[:, 0] == 0)
    both = zip(*(compared(images, options.attention_threshold) for images in (seen, without)), strict=True)
    rows = [
        {"score": name, "other": other, "all": {"ours": a, "theirs": b}, "without": {"ours": c, "theirs": d}}
        for (name, other, a, b), (_, _, c, d) in both
    ]
    deleted = seen.part(torch.arange(len(dataset)) < options.num_deletion_images)
    result = {
        "model": MODEL,
        "num_images": len(dataset),
        "left_out": {"class": class_names[0], "num_images": len(without.target)},
        "rows": rows,
        "insertion": insertion(model, dataset, deleted, options.deletion_steps),
    }
    write_json(Path(__file__).with_suffix(".json"), result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
