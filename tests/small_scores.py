"""What the tests of scores share: options, batches, images with random predictions, scores as plain numbers."""

import torch

from pipeline.data.samples import Sample
from pipeline.evaluation.passes import Scoring

CPU = torch.device("cpu")
SCORING = Scoring(attention_threshold=0.2, mask_threshold=0.5, mask_slope=10.0)


def split(batch: Sample, size: int) -> list[Sample]:
    """The same images in batches of `size`."""
    parts = zip(*(tensor.split(size) for tensor in batch), strict=True)
    return [Sample(*tensors) for tensors in parts]


def numbers(scores: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    return {name: values.flatten().tolist() for name, values in scores.items()}


def ones(num_images: int) -> torch.Tensor:
    return torch.ones(1, num_images, dtype=torch.float64)


def only_row(scores: dict[str, torch.Tensor]) -> dict[str, float]:
    """The scores under one row of weights."""
    assert {(values.dtype, tuple(values.shape)) for values in scores.values()} <= {(torch.float64, (1,))}
    return {name: float(values) for name, values in scores.items()}


def random_images(seed: int, num_images: int = 9) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "confusions": torch.randint(0, 9, (num_images, 4, 4), generator=generator),
        "probs": torch.rand(num_images, 3, generator=generator),
        "labels": (torch.rand(num_images, 3, generator=generator) < 0.4).float(),
    }


def random_weights(num_rows: int, num_images: int) -> torch.Tensor:
    """(num_rows, num_images) float64 of 0 to 3; the first row is ones."""
    weights = torch.randint(4, (num_rows, num_images), generator=torch.Generator().manual_seed(0)).double()
    weights[0] = 1
    return weights
