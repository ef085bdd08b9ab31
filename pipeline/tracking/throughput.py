"""How much of what the device can do a training makes use of: model FLOPs utilisation (Chowdhery et al., PaLM, 2022).

FLOPs are those that a step needs, counted once; a recomputation under activation checkpointing is time, not work.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.data.loading import Sample
from pipeline.gain.network import GuidedNetwork, Pairs
from pipeline.gain.losses import Criterion
from pipeline.training.loop import Work

# Dense bfloat16 or float16 FLOPs per second with float32 accumulation, by a part of the device's name; the data sheets.
DATA_SHEETS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10": 125e12,
    "T4": 65e12,
}
MATRIX_SIDE = {"cpu": 1024, "cuda": 8192, "mps": 2048}  # of the product that is timed where there is no data sheet
ROUNDS = 4


class TrainingFlops(NamedTuple):
    """Floating-point operations of a forward and a backward pass; a multiplication and an addition are two."""

    per_image: int
    per_pair: int  # besides, for a pair whose attention is guided


class Peak(NamedTuple):
    """Floating-point operations per second of one device."""

    flops: float
    source: str


def training_flops(network: GuidedNetwork, criterion: Criterion, image_size: tuple[int, int]) -> TrainingFlops:
    """Count on one image, once without a pair and once with one.

    Every rank must call it, since losses are reduced over ranks. Weights, gradients and statistics stay as they are.

    Args:
        network: with its frozen parts frozen: they need no gradients, which is less work.
        image_size: (H, W) in pixels.
    """
    model, device = network.model, next(network.parameters()).device
    training, checkpoints = model.training, model.trunk.checkpoint_activations
    model.eval()
    model.trunk.checkpoint_activations = False

    def count(num_pairs: int) -> int:
        index = torch.zeros(num_pairs, dtype=torch.int64, device=device)
        pixels = torch.zeros((1, *image_size), dtype=torch.int64, device=device)
        labels = torch.zeros((1, model.num_foreground_classes), device=device)
        image = torch.ones((1, 3, *image_size), device=device)
        sample = Sample(image, pixels, pixels.to(torch.uint8), labels, torch.zeros(1, dtype=torch.int64))
        learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
        with FlopCounterMode(display=False) as counter:
            total = criterion.total(criterion(network(image, Pairs(index, index), criterion.needs), sample), 1.0)
            torch.autograd.grad(total, learning, allow_unused=True)
        return int(counter.get_total_flops())

    try:
        per_image = count(0)
        return TrainingFlops(per_image, count(1) - per_image)
    finally:
        model.train(training)
        model.trunk.checkpoint_activations = checkpoints


def peak_flops(device: torch.device, precision: str) -> Peak:
    """From the data sheet where there is one for `precision`, else the fastest of a few large matrix products.

    Args:
        precision: as Lightning Fabric names it.
    """
    if device.type == "cuda" and precision != "32-true":
        name = torch.cuda.get_device_name(device)
        for part, flops in DATA_SHEETS.items():
            if part in name:
                return Peak(flops, "data sheet")
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision, torch.float32)
    side = MATRIX_SIDE[device.type]
    matrix = torch.ones((side, side), dtype=dtype, device=device)
    with _as_convolutions_multiply(device):
        seconds = min(_seconds(matrix) for _ in range(ROUNDS))
    return Peak(2.0 * side**3 / seconds, f"matrix product of side {side}")


def utilisation(work: Work, flops: TrainingFlops, peak: Peak, num_devices: int) -> dict[str, float]:
    """`mfu`, the share in [0, 1] of what all devices could have computed in that time, and `images_per_second`."""
    needed = work.num_images * flops.per_image + work.num_pairs * flops.per_pair
    return {
        "mfu": needed / (work.seconds * peak.flops * num_devices),
        "images_per_second": work.num_images / work.seconds,
    }


@contextmanager
def _as_convolutions_multiply(device: torch.device) -> Iterator[None]:
    """On GPUs, torch lets convolutions round float32 to TensorFloat-32, but not matrix products."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _seconds(matrix: Tensor) -> float:
    begin = time.perf_counter()
    float((matrix @ matrix)[0, 0])  # waits for the device
    return time.perf_counter() - begin
