"""FLOPs against sums by hand, and the share of a device's peak that they make."""

import math

import pytest
import torch
from sections import attention_section, training_section

from pipeline.gain.losses import Criterion
from pipeline.gain.network import GuidedNetwork
from pipeline.model.trunk import VGG16_BLOCKS
from pipeline.model.weights import state_digest
from pipeline.tracking import throughput
from pipeline.tracking.throughput import Peak, TrainingFlops, peak_flops, training_flops, utilisation
from pipeline.training.loop import freeze

MINING = {"classification": 1.0, "attention_mining": 1.0}


def trunk_flops(model, side):
    """2 x multiplications of the 3x3 convolutions for one image: of a forward pass, and of the first convolution."""
    total, first, channels = 0, 0, 3
    for block, (num_convs, _) in enumerate(VGG16_BLOCKS, start=1):
        for conv in range(1, num_convs + 1):
            out = model.trunk.get_submodule(f"conv{block}_{conv}").out_channels
            flops = 2 * 9 * channels * out * math.ceil(side / 2 ** (block - 1)) ** 2
            first = first or flops
            total, channels = total + flops, out
    return total, first


def flops_of(model, weights, side=64, frozen=(), **options):
    freeze(model, training_section(frozen=list(frozen)))
    criterion = Criterion(weights, model.attention_grid, attention_section())
    return training_flops(GuidedNetwork(model, attention_section(**options)), criterion, (side, side))


def test_pass_of_the_trunk_costs_three_times_its_convolutions(tiny_model):
    """Forward, gradient of the input (of none for the image itself), gradient of the weights."""
    model = tiny_model()
    forward, first = trunk_flops(model, 64)
    found = flops_of(model, {"classification": 1.0})
    assert found.per_image == pytest.approx(3 * forward - first, rel=0.01)  # the head's matrices are the rest
    assert found.per_pair == 0


@pytest.mark.parametrize(
    ("masked_gradient", "factor"), [("shared", 3), ("attention_only", 2)], ids=["weights learn", "weights stand still"]
)
@pytest.mark.parametrize("stride", [1, 2])
def test_masked_pass_is_one_of_the_trunk_at_its_resolution(tiny_model, masked_gradient, factor, stride):
    model = tiny_model()
    forward, _ = trunk_flops(model, 64 // stride)
    found = flops_of(model, MINING, masked_gradient=masked_gradient, masked_stride=stride)
    assert found.per_pair == pytest.approx(factor * forward, rel=0.02)


def test_frozen_trunk_has_no_backward_pass(tiny_model):
    model = tiny_model()
    forward, _ = trunk_flops(model, 64)
    found = flops_of(model, {"classification": 1.0}, frozen=("trunk", "decoder"))
    assert found.per_image == pytest.approx(forward, rel=0.01)


def test_recomputation_is_no_work_and_counting_changes_nothing(tiny_model):
    model = tiny_model().train()
    before, expected = state_digest(model), flops_of(model, MINING)
    model.trunk.checkpoint_activations = True
    assert flops_of(model, MINING) == expected
    assert state_digest(model) == before
    assert model.training
    assert model.trunk.checkpoint_activations
    assert all(parameter.grad is None for parameter in model.parameters())


def test_utilisation_by_hand():
    flops, peak = TrainingFlops(per_image=100, per_pair=50), Peak(500.0, "data sheet")
    found = utilisation(flops, peak, num_images=10, num_pairs=20, seconds=2.0, num_devices=4)
    assert found == {"mfu": 0.5, "images_per_second": 5.0}


def test_peak_without_a_data_sheet_is_measured():
    peak = peak_flops(torch.device("cpu"), "32-true")
    assert peak.source in ("matrix product of side 1024", "convolution of 512 channels on 64 x 64")
    assert 1e9 < peak.flops < 1e14


def test_peak_is_that_of_the_faster_of_two_kinds_of_work(monkeypatch):
    """A library may be better at convolutions than at products; a share of the slower one could exceed 1."""
    took = {"product": 1.0, "convolution": 0.1}
    kinds = iter(["product"] * 4 + ["convolution"] * 4)
    monkeypatch.setattr(throughput, "_seconds", lambda _: took[next(kinds)])
    peak = peak_flops(torch.device("cpu"), "32-true")
    assert peak == Peak(pytest.approx(2 * 512 * 512 * 9 * 64 * 64 / 0.1), "convolution of 512 channels on 64 x 64")


def test_peak_of_a_known_gpu_is_its_data_sheet(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    assert peak_flops(torch.device("cuda"), "bf16-mixed") == Peak(989e12, "data sheet")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 PCIe")
    assert peak_flops(torch.device("cuda"), "bf16-mixed") == Peak(756e12, "data sheet")
