"""The bootstrap over images: every score again on images drawn with replacement (Efron & Tibshirani, 1993)."""

import torch
from torch import Tensor

CONFIDENCE = 0.95


def resample_weights(num_images: int, num_replicates: int, seed: int) -> Tensor:
    """(1 + num_replicates, M) float64: a row of ones, then how often each bootstrap resample drew each image.

    A resample draws M images with replacement. The random state of the process is left alone.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(num_images, (num_replicates, num_images), generator=generator)
    counts = torch.zeros(drawn.shape, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(counts))
    return torch.cat([torch.ones(1, num_images, dtype=torch.float64), counts])


def interval(values: Tensor) -> tuple[float, float]:
    """95 % percentile interval of one score, or of a difference of two, over its resamples.

    Args:
        values: (1 + R,), the estimate first; resamples that are NaN are left out.
    """
    tail = (1 - CONFIDENCE) / 2
    low, high = values[1:].nanquantile(torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    return low, high
