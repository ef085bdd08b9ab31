"""The share of a device's peak that a training uses: model FLOPs utilisation (Chowdhery et al., PaLM, 2022).

Each operation that a step needs counts once; recomputing activations (activation checkpointing) takes time and does
not count.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.data.samples import Sample
from pipeline.gain.losses import Criterion
from pipeline.gain.network import GuidedNetwork, Pairs

# NVIDIA's data sheets: dense bfloat16 or float16 FLOPs per second with float32 accumulation, by a part of the device's
# name. The first that fits counts, so that "H100 PCIe" stands before "H100".
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
# What is timed where no data sheet applies: a matrix product, and a convolution of this many channels each way.
# Libraries differ in which they are better at.
MATRIX_SIDE, MAP_SIDE = {"cpu": 1024, "cuda": 8192, "mps": 2048}, {"cpu": 64, "cuda": 256, "mps": 128}
CHANNELS, KERNEL = 512, 3
ROUNDS = 4  # of each; the fastest counts


class TrainingFlops(NamedTuple):
    """Floating-point operations of a forward and a backward pass; a multiplication and an addition are two."""

    per_image: int
    per_pair: int  # in addition, for each pair (image, class) whose attention is guided


class Peak(NamedTuple):
    """The most floating-point operations per second that one device can do, and where the figure comes from."""

    flops: float
    source: str


def training_flops(network: GuidedNetwork, criterion: Criterion, image_size: tuple[int, int]) -> TrainingFlops:
    """Count the operations on one image, once without a pair and once with one.

    Every rank must call it, since losses are reduced over ranks. Weights, gradients and statistics stay as they are.

    Args:
        network: with its frozen parts frozen: they need no gradients, which is less work.
        image_size: (H, W) in pixels.
    """
    model = network.model
    training, checkpoints = model.training, model.trunk.checkpoint_activations
    model.eval()
    model.trunk.checkpoint_activations = False
    try:
        alone, guided = (_step_flops(network, criterion, image_size, num_pairs) for num_pairs in (0, 1))
    finally:
        model.train(training)
        model.trunk.checkpoint_activations = checkpoints
    return TrainingFlops(alone, guided - alone)


def peak_flops(device: torch.device, precision: str) -> Peak:
    """Of the data sheet where it has one for `precision`, else of the fastest of a few products and convolutions.

    Args:
        precision: as Lightning Fabric names it.
    """
    if device.type == "cuda" and precision != "32-true":
        name = torch.cuda.get_device_name(device)
        for part, flops in DATA_SHEETS.items():
            if part in name:
                return Peak(flops, "data sheet")
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision, torch.float32)
    side, map_side = MATRIX_SIDE[device.type], MAP_SIDE[device.type]
    matrix = torch.ones((side, side), dtype=dtype, device=device)
    image, weight = (
        torch.ones(shape, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
        for shape in ((1, CHANNELS, map_side, map_side), (CHANNELS, CHANNELS, KERNEL, KERNEL))
    )
    with _as_convolutions_multiply(device), torch.no_grad():
        product = min(_seconds(lambda: matrix @ matrix) for _ in range(ROUNDS))
        convolution = min(_seconds(lambda: F.conv2d(image, weight, padding=KERNEL // 2)) for _ in range(ROUNDS))
    of_convolution = 2.0 * (CHANNELS * KERNEL * map_side) ** 2 / convolution
    return max(
        Peak(2.0 * side**3 / product, f"matrix product of side {side}"),
        Peak(of_convolution, f"convolution of {CHANNELS} channels on {map_side} x {map_side}"),
    )


def utilisation(
    flops: TrainingFlops, peak: Peak, *, num_images: int, num_pairs: int, seconds: float, num_devices: int
) -> dict[str, float]:
    """`mfu`, the share in [0, 1] of what all devices could have computed in that time, and `images_per_second`.

    Args:
        num_images, num_pairs: that all devices together have trained on.
        seconds: which that took, more than 0.
    """
    needed = num_images * flops.per_image + num_pairs * flops.per_pair
    return {"mfu": needed / (seconds * peak.flops * num_devices), "images_per_second": num_images / seconds}


def _step_flops(network: GuidedNetwork, criterion: Criterion, image_size: tuple[int, int], num_pairs: int) -> int:
    """Operations of a forward and a backward pass of one image, of which `num_pairs` pairs are guided."""
    model, device = network.model, next(network.parameters()).device
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


def _seconds(compute: Callable[[], Tensor]) -> float:
    begin = time.perf_counter()
    result = compute()
    float(result[(0,) * result.dim()])  # waits for the device
    return time.perf_counter() - begin
