"""Attention on a few fixed samples, to be compared between epochs and between models."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.samples import Sample, SegmentationDataset
from pipeline.gain.attention import class_attention, normalise_attention
from pipeline.gain.view import View
from pipeline.model.fcn8s import FCN8s


def panel_samples(dataset: SegmentationDataset, class_names: Sequence[str], count: int) -> list[Sample]:
    """The first `count` samples such that each shows, as its first class, one that was shown least so far."""
    first = [min((class_names.index(name) for name in row.classes), default=None) for row in dataset.rows]
    shown: dict[int, int] = {}
    chosen: list[int] = []
    while len(chosen) < count:
        candidates = [(shown.get(c, 0), i, c) for i, c in enumerate(first) if c is not None and i not in chosen]
        if not candidates:
            break
        _, index, class_index = min(candidates)
        shown[class_index] = shown.get(class_index, 0) + 1
        chosen.append(index)
    return [dataset[i] for i in chosen]


def attention_maps(model: FCN8s, samples: Sequence[Sample]) -> Tensor:
    """Attention of each sample's first class at image resolution, (n, H, W) uint8, 255 = the map's maximum.

    (H, W) is the size of the largest sample; beyond a smaller one its map is 0. The model must be in eval mode.
    """
    maps = [torch.from_numpy((sample_attention(model, sample) * 255).round()).to(torch.uint8) for sample in samples]
    height, width = (max((m.shape[axis] for m in maps), default=1) for axis in (0, 1))
    padded = [F.pad(m, (0, width - m.shape[1], 0, height - m.shape[0])) for m in maps]
    return torch.stack(padded) if padded else torch.zeros((0, 1, 1), dtype=torch.uint8)


@torch.no_grad()
def sample_attention(model: FCN8s, sample: Sample) -> NDArray[np.floating]:
    """Attention of the sample's first class at image resolution, (H, W) in [0, 1]."""
    view = View.of(model, as_batch(model, sample))
    maps, _ = normalise_attention(class_attention(model, view.features.conv5_3)[:, first_class(sample)])
    return view.attention(maps)[0].cpu().numpy()


def as_batch(model: FCN8s, sample: Sample) -> Tensor:
    """The sample's image (1, 3, H, W) on the device of the model."""
    return sample.image[None].to(next(model.parameters()).device)


def first_class(sample: Sample) -> int:
    """The class with the lowest index that the sample shows."""
    return int(torch.nonzero(sample.image_labels)[0])
