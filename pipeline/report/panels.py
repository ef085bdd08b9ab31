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
from pipeline.report.grid import TRUTH, attention_entry, class_entries, panel, tiles
from pipeline.report.overlays import Picture, attention_overlay, feature_maps, outlined, segmentation_overlay

EVOLUTION_COLUMNS = 9  # of attention in an evolution panel
GRID_COLUMNS = 3  # of attention in MLflow's image grid
READABLE = 256  # screen pixels of a picture's longer side, at least


def attention_panel(
    samples: Sequence[Sample], maps: Tensor, class_names: Sequence[str], *, model: str, layer: str
) -> Image.Image:
    """Each sample under its map from `attention_maps`, with its true mask outlined.

    Args:
        model, layer: whose attention it is, and where.
    """
    captions = [f"{model}: {class_names[first_class(sample)]}" for sample in samples]
    pictures = _overlays(samples, maps)
    return tiles(pictures, captions, GRID_COLUMNS, _readable(pictures), (attention_entry(layer), TRUTH))


def evolution_panel(
    samples: Sequence[Sample], snapshots: Tensor, class_names: Sequence[str], *, layer: str
) -> Image.Image:
    """How attention moves: samples as rows; image, attention before training, and after epochs up to the last.

    Args:
        snapshots: (1 + epochs, n, H, W) uint8 from `attention_maps`; at most EVOLUTION_COLUMNS of them are shown.
        layer: where attention is taken.
    """
    shown = np.unique(np.linspace(0, len(snapshots) - 1, EVOLUTION_COLUMNS).round().astype(int)).tolist()
    titles = ["image", *("before" if epoch == 0 else f"epoch {epoch}" for epoch in shown)]
    columns = [[picture(sample) for sample in samples], *(_overlays(samples, snapshots[epoch]) for epoch in shown)]
    labels = [class_names[first_class(sample)] for sample in samples]
    return panel(list(zip(*columns, strict=True)), titles, labels, key=(attention_entry(layer), TRUTH))


@torch.no_grad()
def comparison_panel(
    models: Mapping[str, FCN8s], samples: Sequence[Sample], class_names: Sequence[str], scale: int
) -> Image.Image:
    """Samples as rows; image, truth, then attention of every model, and prediction and features of the last.

    Args:
        models: name to model in eval mode; the first is the "before" of the comparison.
        scale: screen pixels per image pixel.
    """
    name, last = list(models.items())[-1]
    titles = ["image", "truth", f"prediction of {name}", *(f"attention of {model}" for model in models)]
    titles.append(f"strongest maps of {name} at conv5_3")
    rows, labels, masks = [], [], []
    for sample in samples:
        image, truth = picture(sample), sample.target.numpy()
        overlays = [attention_overlay(image, sample_attention(model, sample)) for model in models.values()]
        view = View.of(last, as_batch(last, sample))
        predicted = view.seg_logits().argmax(dim=1)[0].cpu().numpy()
        rows.append(
            [
                image,
                segmentation_overlay(image, truth),
                segmentation_overlay(image, predicted),
                *(outlined(overlay, truth == first_class(sample) + 1) for overlay in overlays),
                feature_maps(view.features.conv5_3[0].float().cpu().numpy(), (image.shape[0], image.shape[1])),
            ]
        )
        labels.append(class_names[first_class(sample)])
        masks += [truth, predicted]
    key = (attention_entry(last.attention_layer), TRUTH, *class_entries(masks, class_names))
    return panel(rows, titles, labels, scale, key)


def picture(sample: Sample) -> Picture:
    """The sample's image as (H, W, 3) uint8."""
    return np.ascontiguousarray(denormalise(sample.image).permute(1, 2, 0).numpy())


def _overlays(samples: Sequence[Sample], maps: Tensor) -> list[Picture]:
    return [
        outlined(
            attention_overlay(picture(sample), found[: sample.image.shape[1], : sample.image.shape[2]].numpy() / 255),
            sample.target.numpy() == first_class(sample) + 1,
        )
        for sample, found in zip(samples, maps, strict=True)
    ]


def _readable(pictures: Sequence[Picture]) -> int:
    """Screen pixels per image pixel."""
    longer: int = max(max(found.shape) for found in pictures)
    return max(1, round(READABLE / longer))
