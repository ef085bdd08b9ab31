import math

import pytest
import torch

from pipeline.gain.attention import GuidedNetwork, Pairs, class_pairs
from pipeline.gain.losses import (
    LOSS_NAMES,
    attention_mining_loss,
    classification_loss,
    compute_losses,
    external_supervision_loss,
    pixel_supervision,
    segmentation_loss,
    weighted_sum,
)

ALL_LOSSES = frozenset(LOSS_NAMES)


def test_segmentation_loss_by_hand_leaves_void_out():
    logits = torch.zeros(1, 2, 1, 3)
    logits[0, 1, 0, 0] = math.log(3.0)  # probabilities 1/4 and 3/4
    target = torch.tensor([[[1, 0, 255]]])
    assert float(segmentation_loss(logits, target)) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert float(segmentation_loss(logits, torch.full((1, 1, 3), 255))) == 0.0


def test_classification_loss_takes_logits_once():
    logits = torch.tensor([[0.0, math.log(3.0)]])
    expected = (math.log(2) - math.log(3 / 4)) / 2
    assert float(classification_loss(logits, torch.tensor([[1.0, 1.0]]))) == pytest.approx(expected)


def test_attention_mining_by_hand_leaves_dead_maps_out():
    logits = torch.tensor([0.0, math.log(3.0), 50.0])
    assert float(attention_mining_loss(logits, torch.tensor([True, True, False]))) == pytest.approx((0.5 + 0.75) / 2)
    assert float(attention_mining_loss(logits, torch.zeros(3, dtype=torch.bool))) == 0.0
    assert float(attention_mining_loss(torch.zeros(0), torch.zeros(0, dtype=torch.bool))) == 0.0


def test_external_supervision_by_hand():
    attention = torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]], [[1.0, 1.0]]])
    mask = torch.tensor([[[0.0, 0.0]], [[1.0, 0.5]], [[0.0, 0.0]]])
    weight = torch.tensor([[[1.0, 1.0]], [[1.0, 0.0]], [[1.0, 1.0]]])
    selected = torch.tensor([True, True, False])
    # First pair: mean of 1 and 0. Second: its second cell is void, so 0.25 alone. Third is not selected.
    assert float(external_supervision_loss(attention, mask, weight, selected)) == pytest.approx((0.5 + 0.25) / 2)
    assert float(external_supervision_loss(attention, mask, weight, torch.zeros(3, dtype=torch.bool))) == 0.0


def test_external_supervision_does_not_depend_on_the_image_size():
    small = external_supervision_loss(
        torch.full((1, 2, 2), 0.5), torch.zeros(1, 2, 2), torch.ones(1, 2, 2), torch.tensor([True])
    )
    large = external_supervision_loss(
        torch.full((1, 8, 8), 0.5), torch.zeros(1, 8, 8), torch.ones(1, 8, 8), torch.tensor([True])
    )
    assert float(small) == float(large) == 0.25


def test_pixel_supervision_by_hand():
    target = torch.zeros(1, 32, 48, dtype=torch.int64)
    target[0, :16, :8] = 1  # half of cell (0, 0)
    target[0, 16:20, 16:32] = 1  # a quarter of cell (1, 1)
    target[0, 16:32, 32:48] = 255
    mask, weight = pixel_supervision(target, Pairs(torch.tensor([0]), torch.tensor([0])), padding=1)
    assert mask.tolist() == [[[1.0, 0.0, 0.0], [0.0, 0.5, 0.0]]]
    assert weight.tolist() == [[[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]]


@pytest.mark.parametrize("padding", [1, 100])
def test_pixel_supervision_lies_on_the_grid_of_the_features(tiny_model, padding):
    model = tiny_model(padding=padding)
    target = torch.ones(1, 50, 77, dtype=torch.int64)
    mask, weight = pixel_supervision(target, Pairs(torch.tensor([0]), torch.tensor([0])), padding)
    conv5_3 = model.features(torch.zeros(1, 3, 50, 77)).conv5_3
    assert mask.shape == weight.shape == (1, *conv5_3.shape[2:])
    assert float(weight.sum()) * 256 == pytest.approx(50 * 77)


def test_only_ground_truth_classes_are_mined(tiny_model, batch):
    """Changing what the network says of absent classes changes nothing."""
    model = tiny_model()
    only_first = batch._replace(image_labels=torch.tensor([[1.0, 0, 0]] * 4))
    losses = []
    for bias in (0.0, 30.0):
        torch.nn.init.constant_(model.classifier.score.bias[1:].data, bias)
        output = GuidedNetwork(model)(only_first.image, only_first.image_labels, frozenset({"attention_mining"}))
        losses.append(compute_losses(output, only_first, frozenset({"attention_mining"}), 1)["attention_mining"])
    assert torch.equal(*losses)


def test_only_images_with_pixel_labels_are_supervised(tiny_model, batch):
    model = tiny_model()
    needs = frozenset({"external_supervision"})
    output = GuidedNetwork(model)(batch.image, batch.image_labels, needs)
    loss = compute_losses(output, batch, needs, 1)["external_supervision"]
    other = batch.target.clone()
    other[2:] = torch.flip(other[2:], dims=(1,))
    assert torch.equal(loss, compute_losses(output, batch._replace(target=other), needs, 1)["external_supervision"])
    none = batch._replace(pixel_label=torch.zeros(4, dtype=torch.bool))
    assert compute_losses(output, none, needs, 1)["external_supervision"].item() == 0.0


def test_images_without_a_class_join_the_batch(tiny_model, batch):
    """No background or void need be present, and an image may hold no object at all."""
    empty = batch._replace(target=torch.zeros_like(batch.target), image_labels=torch.zeros(4, 3))
    output = GuidedNetwork(tiny_model())(empty.image, empty.image_labels, ALL_LOSSES)
    losses = compute_losses(output, empty, ALL_LOSSES, 1)
    assert losses["attention_mining"].item() == losses["external_supervision"].item() == 0.0
    assert torch.isfinite(weighted_sum(losses, dict.fromkeys(LOSS_NAMES, 1.0), 1.0))


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_every_weight_reaches_the_gradient(tiny_model, batch, name):
    """A weight that is parsed and logged but never passed on is a mistake seen in public implementations."""
    model = tiny_model()
    output = GuidedNetwork(model)(batch.image, batch.image_labels, ALL_LOSSES)
    losses = compute_losses(output, batch, ALL_LOSSES, 1)
    assert tuple(losses) == LOSS_NAMES
    weight = model.trunk.conv1_1.weight
    gradients = [
        torch.autograd.grad(
            weighted_sum(losses, {**dict.fromkeys(LOSS_NAMES, 0.0), name: w}, 1.0), weight, retain_graph=True
        )[0]
        for w in (1.0, 3.0)
    ]
    assert gradients[0].abs().max() > 0
    assert torch.allclose(3 * gradients[0], gradients[1], rtol=1e-4)


def test_ramp_scales_the_attention_losses_alone():
    losses = {name: torch.tensor(1.0) for name in LOSS_NAMES}
    weights = {"segmentation": 3.0, "classification": 1.0, "attention_mining": 1.0, "external_supervision": 10.0}
    assert float(weighted_sum(losses, weights, 0.0)) == 4.0
    assert float(weighted_sum(losses, weights, 0.5)) == 9.5
    assert float(weighted_sum(losses, weights, 1.0)) == 15.0


def test_guidance_moves_attention_into_the_mask(tiny_model, batch):
    """A few steps on L_e alone pull the energy of the maps inside the masks."""
    model = tiny_model()
    network, needs = GuidedNetwork(model), frozenset({"external_supervision"})
    supervised = batch._replace(pixel_label=torch.ones(4, dtype=torch.bool))
    pairs = class_pairs(batch.image_labels, 4)
    mask, _ = pixel_supervision(batch.target, pairs, 1)
    optimizer = torch.optim.AdamW(model.trunk.parameters(), lr=1e-2)

    def inside() -> float:
        attention = network(batch.image, batch.image_labels, needs).attention
        return ((attention * mask).sum() / attention.sum()).item()

    before = inside()
    for _ in range(30):
        output = network(batch.image, batch.image_labels, needs)
        compute_losses(output, supervised, needs, 1)["external_supervision"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert inside() > before + 0.1
