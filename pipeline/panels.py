"""Pictures of a network at work on fixed samples: attention during training, and models side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.data.loading import Sample, SegmentationDataset, denormalise
from pipeline.gain.attention import attention_to_image, class_attention, normalise_attention
from pipeline.model.fcn8s import FCN8s
from pipeline.visualization import Picture, attention_overlay, feature_maps, panel, segmentation_overlay


def panel_samples(dataset: SegmentationDataset, count: int) -> list[Sample]:
    """The first `count` samples such that each shows, as its first class, one that was shown least so far."""
    classes = [torch.nonzero(sample.image_labels).flatten().tolist() for sample in _samples(dataset)]
    shown: dict[int, int] = {}
    chosen: list[int] = []
    while len(chosen) < count:
        candidates = [i for i, present in enumerate(classes) if present and i not in chosen]
        if not candidates:
            break
        best = min(candidates, key=lambda i: (shown.get(classes[i][0], 0), i))
        shown[classes[best][0]] = shown.get(classes[best][0], 0) + 1
        chosen.append(best)
    return [dataset[i] for i in chosen]


@torch.no_grad()
def attention_panel(model: FCN8s, samples: Sequence[Sample], class_names: Sequence[str]) -> Image.Image:
    """One row: the attention of each sample's first class over its image. The model must be in eval mode."""
    titles = [class_names[_first_class(sample)] for sample in samples]
    overlays = [attention_overlay(picture(sample), _attention(model, sample)) for sample in samples]
    return panel([overlays], titles, [""])


@torch.no_grad()
def comparison_panel(
    models: Mapping[str, FCN8s], samples: Sequence[Sample], class_names: Sequence[str], scale: int
) -> Image.Image:
    """Samples as rows; image, truth, then attention of every model, and prediction and features of the last.

    Args:
        models: name to model in eval mode; the first is the "before" of the comparison.
        scale: screen pixels per image pixel.
    """
    *_, last = models.values()
    titles = ["image", "truth", "prediction", *(f"CAM {name}" for name in models), "features"]
    rows, labels = [], []
    for sample in samples:
        image = picture(sample)
        overlays = [attention_overlay(image, _attention(model, sample)) for model in models.values()]
        features = last.features(_batch(last, sample))
        seg_logits = last.segment(features, (sample.image.shape[1], sample.image.shape[2]))
        rows.append(
            [
                image,
                segmentation_overlay(image, sample.target.numpy()),
                segmentation_overlay(image, seg_logits.argmax(dim=1)[0].cpu().numpy()),
                *overlays,
                feature_maps(features.conv5_3[0].float().cpu().numpy(), (image.shape[0], image.shape[1])),
            ]
        )
        labels.append(class_names[_first_class(sample)])
    return panel(rows, titles, labels, scale)


def picture(sample: Sample) -> Picture:
    """The sample's image as (H, W, 3) uint8."""
    return np.ascontiguousarray(denormalise(sample.image).permute(1, 2, 0).numpy())


def _attention(model: FCN8s, sample: Sample) -> np.ndarray:
    features = model.features(_batch(model, sample))
    maps, _ = normalise_attention(class_attention(model, features.conv5_3)[:, _first_class(sample)])
    return attention_to_image(maps, (sample.image.shape[1], sample.image.shape[2]), model.padding)[0].cpu().numpy()


def _batch(model: FCN8s, sample: Sample) -> Tensor:
    return sample.image[None].to(next(model.parameters()).device)


def _first_class(sample: Sample) -> int:
    return int(torch.nonzero(sample.image_labels)[0])


def _samples(dataset: SegmentationDataset) -> list[Sample]:
    return [dataset[i] for i in range(len(dataset))]
