"""The distances of attention from guidance: values by hand, gradients, invariances and edge cases."""

import math
from typing import get_args

import pytest
import torch
from sections import attention_section

from pipeline.base.attention import GuidanceDistance
from pipeline.data.samples import Sample
from pipeline.gain.distances import DISTANCES, FAINTEST
from pipeline.gain.losses import Criterion, external_supervision_loss
from pipeline.gain.network import GuidedNetwork, GuidedOutput, Pairs, class_pairs
from pipeline.model.fcn8s import AttentionGrid

NAMES = list(DISTANCES)
# One map of three cells: the object's, half of it the object's, the ground's; of the ground half is void.
ATTENTION = torch.tensor([[[1.0, 0.5, 0.25]]], dtype=torch.float64)
MASK = torch.tensor([[[1.0, 0.5, 0.0]]], dtype=torch.float64)
WEIGHT = torch.tensor([[[1.0, 1.0, 0.5]]], dtype=torch.float64)
BY_HAND = {  # sum over cells, and what the mean divides it by
    "squared": (0.5 * 0.25**2, 2.5),
    "absolute": (0.5 * 0.25, 2.5),
    "energy": (1 - (1 + 0.25) / (1 + 0.5 + 0.125), 1.0),
    "rrr": (0.5 * 0.5**2 + 0.5 * 0.25**2, 2.5),
    "ppce": (0.5 * math.log(2), 1.5),
}


def test_every_name_of_the_parameters_is_a_distance():
    assert tuple(DISTANCES) == get_args(GuidanceDistance) == tuple(BY_HAND)


@pytest.mark.parametrize("name", NAMES)
def test_values_by_hand(name):
    total, cells = BY_HAND[name]
    assert DISTANCES[name](ATTENTION, MASK, WEIGHT, "sum").tolist() == pytest.approx([total])
    assert DISTANCES[name](ATTENTION, MASK, WEIGHT, "mean").tolist() == pytest.approx([total / cells])


@pytest.mark.parametrize("name", NAMES)
def test_void_cells_count_for_nothing(name):
    void = WEIGHT * torch.tensor([1.0, 1.0, 0.0])
    values = [
        DISTANCES[name](torch.tensor([[[1.0, 0.5, ground]]], dtype=torch.float64), MASK, void, "mean")
        for ground in (0.0, 1.0)
    ]
    assert torch.equal(*values)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", NAMES)
def test_first_and_second_gradients(name, reduction):
    attention = torch.tensor([[[0.9, 0.4], [0.3, 0.2]], [[0.1, 0.8], [0.6, 0.7]]], dtype=torch.float64)
    mask = torch.tensor([[[1.0, 0.5], [0.0, 0.0]], [[0.0, 1.0], [0.25, 0.0]]], dtype=torch.float64)
    weight = torch.tensor([[[1.0, 0.5], [0.25, 0.0]], [[1.0, 1.0], [0.5, 1.0]]], dtype=torch.float64)

    def distance(maps):
        return DISTANCES[name](maps, mask, weight, reduction)

    assert torch.autograd.gradcheck(distance, (attention.requires_grad_(),))
    assert torch.autograd.gradgradcheck(distance, (attention,))


def test_energy_knows_no_scale_and_the_others_do():
    for name, distance in DISTANCES.items():
        alike = torch.allclose(
            distance(ATTENTION, MASK, WEIGHT, "mean"), distance(0.25 * ATTENTION, MASK, WEIGHT, "mean")
        )
        assert alike == (name == "energy")


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", NAMES)
def test_an_object_that_fills_the_image_and_is_attended_everywhere_costs_nothing(name, reduction):
    ones = torch.ones(2, 3, 3)
    assert DISTANCES[name](ones, ones, ones, reduction).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "dead"), [("squared", 1 / 3), ("absolute", 1 / 3), ("energy", 1.0), ("rrr", 0.0), ("ppce", 13.8155)]
)
def test_maps_that_attend_to_nothing_stay_finite(name, dead):
    attention = torch.zeros(1, 1, 3, requires_grad=True)
    loss = DISTANCES[name](attention, torch.tensor([[[1.0, 0.0, 0.0]]]), torch.ones(1, 1, 3), "mean")
    assert loss.item() == pytest.approx(dead, rel=1e-5)
    loss.backward()
    assert torch.isfinite(attention.grad).all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", NAMES)
def test_images_of_void_alone_stay_finite_and_earn_no_gradient(name, reduction):
    attention = torch.tensor([[[1.0, 0.5, 0.0]]], requires_grad=True)
    loss = DISTANCES[name](attention, torch.zeros(1, 1, 3), torch.zeros(1, 1, 3), reduction)
    loss.backward()
    assert loss.item() == (1.0 if name == "energy" else 0.0)
    assert not attention.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_ranges(name):
    generator = torch.Generator().manual_seed(0)
    attention, mask, weight = (torch.rand(200, 4, 4, generator=generator) for _ in range(3))
    attention[:50] = attention[:50].round()
    values = DISTANCES[name](attention, mask, weight, "mean")
    assert values.min() >= 0
    assert values.max() <= (-math.log(FAINTEST) if name == "ppce" else 1.0) * (1 + 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_step_have_the_mean_of_the_step(name):
    """The first part has one supervised pair, the second two: with their shares of the count they add up to it."""
    generator = torch.Generator().manual_seed(1)
    attention, mask, weight = (torch.rand(4, 3, 3, generator=generator) for _ in range(3))
    selected = torch.tensor([True, False, True, True])

    def loss(pairs, count=None):
        return external_supervision_loss(
            attention[pairs], mask[pairs], weight[pairs], selected[pairs], "mean", name, count
        )

    parts = [loss(pairs, torch.tensor(3 / 2)) for pairs in (slice(0, 2), slice(2, 4))]
    assert torch.stack(parts).mean().item() == pytest.approx(loss(slice(0, 4)).item())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("second_order", [False, True])
def test_a_small_step_against_the_gradient_lowers_the_loss(tiny_model, batch, name, second_order):
    """Through the map to the trunk, and with second order to the classifier that makes the map."""
    options = attention_section(guidance_distance=name, second_order=second_order)
    model = tiny_model().double()
    criterion = Criterion({"external_supervision": 1.0}, AttentionGrid(stride=16, padding=1), options)
    pairs = class_pairs(batch.image_labels, 4)

    def loss():
        return criterion(GuidedNetwork(model, options)(batch.image.double(), pairs, criterion.needs), batch)[
            "external_supervision"
        ]

    before = loss()
    before.backward()
    assert before.dtype == torch.float64
    learning = {key: value for key, value in model.named_parameters() if value.grad is not None}
    assert all(torch.isfinite(value.grad).all() for value in learning.values())
    assert any(value.grad.any() for key, value in learning.items() if key.startswith("trunk"))
    assert second_order == any(value.grad.any() for key, value in learning.items() if key.startswith("classifier"))
    slope = sum(float((value.grad**2).sum()) for value in learning.values())
    with torch.no_grad():
        for value in learning.values():
            value -= 1e-6 / slope * value.grad
    if second_order:  # otherwise the classifier's share of the slope is left out on purpose
        assert (before - loss()).item() == pytest.approx(1e-6, rel=0.05)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("resolution", ["grid", "image"])
def test_dead_maps_and_pairs_without_guidance_are_left_out(name, resolution):
    attention = torch.tensor([[[1.0, 0.5], [0.5, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    attention.requires_grad_()
    guidance = torch.zeros(1, 32, 32, dtype=torch.uint8)
    guidance[0, :16, :16], guidance[0, 16:, 16:] = 1, 2  # nothing of class 3
    output = GuidedOutput(
        pairs=Pairs(torch.zeros(3, dtype=torch.int64), torch.arange(3)),
        attention=attention,
        alive=torch.tensor([True, False, True]),
    )
    batch = Sample(torch.zeros(1, 3, 32, 32), guidance.long(), guidance, torch.ones(1, 3), torch.arange(1))
    options = attention_section(guidance_distance=name, guidance_resolution=resolution)
    loss = Criterion({"external_supervision": 1.0}, AttentionGrid(16, 1), options)(output, batch)
    alone = GuidedOutput(
        pairs=Pairs(torch.tensor([0]), torch.tensor([0])), attention=attention[:1], alive=torch.tensor([True])
    )
    of_first = Criterion({"external_supervision": 1.0}, AttentionGrid(16, 1), options)(alone, batch)
    assert loss["external_supervision"].item() == pytest.approx(of_first["external_supervision"].item())
    loss["external_supervision"].backward()
    assert torch.isfinite(attention.grad).all()
    assert not attention.grad[1:].any()
