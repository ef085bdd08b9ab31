"""Pictures of a network at work on fixed samples: attention during training, and models side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.data.samples import Sample, denormalise
from pipeline.evaluation.snapshots import as_batch, first_class, sample_attention
from pipeline.gain.view import View
from pipeline.model.fcn8s import FCN8s
from pipeline.report.overlays import Picture, attention_overlay, feature_maps, panel, segmentation_overlay

EVOLUTION_COLUMNS = 9  # of attention in an evolution panel


def attention_panel(samples: Sequence[Sample], maps: Tensor, class_names: Sequence[str]) -> Image.Image:
    """One row: each sample under its map from `attention_maps`."""
    titles = [class_names[first_class(sample)] for sample in samples]
    return panel([_overlays(samples, maps)], titles, [""])


def evolution_panel(samples: Sequence[Sample], snapshots: Tensor, class_names: Sequence[str]) -> Image.Image:
    """How attention moves: samples as rows; image, attention before training, and after epochs up to the last.

    Args:
        snapshots: (1 + epochs, n, H, W) uint8 from `attention_maps`; at most EVOLUTION_COLUMNS of them are shown.
    """
    shown = np.unique(np.linspace(0, len(snapshots) - 1, EVOLUTION_COLUMNS).round().astype(int)).tolist()
    titles = ["image", *("before" if epoch == 0 else f"epoch {epoch}" for epoch in shown)]
    columns = [[picture(sample) for sample in samples], *(_overlays(samples, snapshots[epoch]) for epoch in shown)]
    labels = [class_names[first_class(sample)] for sample in samples]
    return panel(list(zip(*columns, strict=True)), titles, labels)


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
        overlays = [attention_overlay(image, sample_attention(model, sample)) for model in models.values()]
        view = View.of(last, as_batch(last, sample))
        rows.append(
            [
                image,
                segmentation_overlay(image, sample.target.numpy()),
                segmentation_overlay(image, view.seg_logits().argmax(dim=1)[0].cpu().numpy()),
                *overlays,
                feature_maps(view.features.conv5_3[0].float().cpu().numpy(), (image.shape[0], image.shape[1])),
            ]
        )
        labels.append(class_names[first_class(sample)])
    return panel(rows, titles, labels, scale)


def picture(sample: Sample) -> Picture:
    """The sample's image as (H, W, 3) uint8."""
    return np.ascontiguousarray(denormalise(sample.image).permute(1, 2, 0).numpy())


def _overlays(samples: Sequence[Sample], maps: Tensor) -> list[Picture]:
    pairs = zip(samples, maps, strict=True)
    return [attention_overlay(picture(s), m[: s.image.shape[1], : s.image.shape[2]].numpy() / 255) for s, m in pairs]
