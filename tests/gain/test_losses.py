import math

import pytest
import torch
from sections import attention_section

from pipeline.data.samples import Sample
from pipeline.gain.losses import (
    LOSS_NAMES,
    Criterion,
    attention_mining_loss,
    classification_loss,
    external_supervision_loss,
    pixel_supervision,
    segmentation_loss,
)
from pipeline.gain.network import GuidedNetwork, GuidedOutput, Pairs, class_pairs
from pipeline.model.fcn8s import AttentionGrid

CONV5_3 = AttentionGrid(stride=16, padding=1)
ALL_WEIGHTS = dict.fromkeys(LOSS_NAMES, 1.0)
GUIDED = {"external_supervision": 1.0}


def losses_of(model, batch, weights, grid=CONV5_3):
    criterion = Criterion(weights, grid, attention_section())
    return criterion(
        GuidedNetwork(model, attention_section())(batch.image, class_pairs(batch.image_labels, 4), criterion.needs),
        batch,
    )


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
    assert float(external_supervision_loss(attention, mask, weight, selected, "mean", "squared")) == pytest.approx(
        (0.5 + 0.25) / 2
    )
    assert (
        float(external_supervision_loss(attention, mask, weight, torch.zeros(3, dtype=torch.bool), "mean", "squared"))
        == 0.0
    )


def test_external_supervision_does_not_depend_on_the_image_size():
    small = external_supervision_loss(
        torch.full((1, 2, 2), 0.5), torch.zeros(1, 2, 2), torch.ones(1, 2, 2), torch.tensor([True]), "mean", "squared"
    )
    large = external_supervision_loss(
        torch.full((1, 8, 8), 0.5), torch.zeros(1, 8, 8), torch.ones(1, 8, 8), torch.tensor([True]), "mean", "squared"
    )
    assert float(small) == float(large) == 0.25


def test_external_supervision_sums_over_the_cells_on_request():
    attention, mask = torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]]), torch.tensor([[[0.0, 0.0]], [[1.0, 0.5]]])
    weight, selected = torch.tensor([[[1.0, 1.0]], [[1.0, 0.0]]]), torch.tensor([True, True])
    # First pair: 1 + 0. Second: 0.25, its second cell being void. The mean over pairs stays.
    loss = external_supervision_loss(attention, mask, weight, selected, "sum", "squared")
    assert float(loss) == pytest.approx((1.0 + 0.25) / 2)


def test_external_supervision_counts_faint_attention_on_request():
    """Ten faint cells weigh as much as one strong cell by absolute, a tenth of it by squared difference."""
    faint, strong = torch.full((1, 1, 10), 0.1), torch.tensor([[[1.0] + 9 * [0.0]]])
    mask, weight, selected = torch.zeros(1, 1, 10), torch.ones(1, 1, 10), torch.tensor([True])

    def loss(attention, distance):
        return float(external_supervision_loss(attention, mask, weight, selected, "mean", distance))

    assert loss(faint, "absolute") == pytest.approx(loss(strong, "absolute")) == pytest.approx(0.1)
    assert loss(faint, "squared") == pytest.approx(0.1 * loss(strong, "squared"))
    assert loss(1 - faint, "absolute") == pytest.approx(0.9)


def test_pixel_supervision_by_hand():
    guidance = torch.zeros(1, 32, 48, dtype=torch.uint8)
    guidance[0, :16, :8] = 1  # half of cell (0, 0)
    guidance[0, 16:20, 16:32] = 1  # a quarter of cell (1, 1)
    guidance[0, 16:32, 32:48] = 255
    pairs = Pairs(torch.tensor([0]), torch.tensor([0]))
    mask, weight = pixel_supervision(guidance, pairs, CONV5_3, 1.0)
    assert mask.tolist() == [[[1.0, 0.0, 0.0], [0.0, 0.5, 0.0]]]
    assert weight.tolist() == [[[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]]
    mask, sharp_weight = pixel_supervision(guidance, pairs, CONV5_3, sharpness=2.0)
    assert mask.tolist() == [[[1.0, 0.0, 0.0], [0.0, 0.25, 0.0]]]
    assert torch.equal(sharp_weight, weight)


def test_pixel_supervision_at_stride_32_by_hand():
    guidance = torch.zeros(1, 32, 48, dtype=torch.uint8)
    guidance[0, :, :16] = 1  # half of cell (0, 0)
    guidance[0, :4, 32:] = 1  # an eighth of what the image has of cell (0, 1), whose other half is beyond it
    mask, weight = pixel_supervision(guidance, Pairs(torch.tensor([0]), torch.tensor([0])), AttentionGrid(32, 1), 1.0)
    assert mask.tolist() == [[[1.0, 0.25]]]
    assert weight.tolist() == [[[1.0, 0.5]]]


@pytest.mark.parametrize("sharpness", [1.0, 2.0])
def test_void_pixels_lower_the_weight_and_not_the_target(sharpness):
    guidance = torch.ones(1, 32, 32, dtype=torch.uint8)
    guidance[0, :8, :16] = 255  # half of cell (0, 0), whose other half is the object's
    guidance[0, 16:24, 16:32], guidance[0, 24:28, 16:32] = 255, 0  # cell (1, 1): half void, a quarter ground
    guidance[0, 16:, :16] = 255
    pairs = Pairs(torch.tensor([0]), torch.tensor([0]))
    mask, weight = pixel_supervision(guidance, pairs, CONV5_3, sharpness)
    assert mask.tolist() == [[[1.0, 1.0], [0.0, 0.5**sharpness]]]
    assert weight.tolist() == [[[0.5, 1.0], [0.0, 0.5]]]


@pytest.mark.parametrize("padding", [1, 100])
@pytest.mark.parametrize("stride", [16, 32])
@pytest.mark.parametrize("sharpness", [1.0, 2.0])
def test_object_that_fills_the_image_is_1_up_to_its_edges(padding, stride, sharpness):
    """375 x 500, the size of most of VOC's images, fills neither the last row nor the last column of cells."""
    guidance = torch.ones(1, 375, 500, dtype=torch.uint8)
    pairs = Pairs(torch.tensor([0]), torch.tensor([0]))
    mask, weight = pixel_supervision(guidance, pairs, AttentionGrid(stride, padding), sharpness)
    assert torch.equal(mask, (weight > 0).float())
    assert float(weight.sum()) * stride**2 == pytest.approx(375 * 500)


@pytest.mark.parametrize("layer", ["conv5_3", "pool5"])
@pytest.mark.parametrize("padding", [1, 100])
def test_pixel_supervision_lies_on_the_grid_of_the_attention(tiny_model, padding, layer):
    model = tiny_model(padding=padding, attention_layer=layer)
    guidance = torch.ones(1, 50, 77, dtype=torch.uint8)
    pairs = Pairs(torch.tensor([0]), torch.tensor([0]))
    mask, weight = pixel_supervision(guidance, pairs, model.attention_grid, 1.0)
    labels, needs = torch.tensor([[1.0, 0, 0]]), frozenset({"external_supervision"})
    output = GuidedNetwork(model, attention_section())(torch.zeros(1, 3, 50, 77), class_pairs(labels, 4), needs)
    assert mask.shape == weight.shape == output.attention.shape
    assert float(weight.sum()) * model.attention_grid.stride**2 == pytest.approx(50 * 77)


# ---- what guides, and where ------------------------------------------------------------------------------------------


def hand_made(attention, guidance, alive=None):
    """Pairs of one 32 x 32 image, one for each given map, of the classes 1, 2, ...: output and batch."""
    attention, count = torch.tensor(attention).requires_grad_(), len(attention)
    pairs = Pairs(torch.zeros(count, dtype=torch.int64), torch.arange(count))
    alive = torch.ones(count, dtype=torch.bool) if alive is None else torch.tensor(alive)
    labels = torch.ones(1, count)
    batch = Sample(torch.zeros(1, 3, 32, 32), guidance.long(), guidance, labels, torch.tensor([0]))
    return GuidedOutput(pairs=pairs, attention=attention, alive=alive), batch


def corner(side):
    guidance = torch.zeros(1, 32, 32, dtype=torch.uint8)
    guidance[0, :side, :side] = 1
    return guidance


def supervision(output, batch, **options):
    return Criterion(GUIDED, CONV5_3, attention_section(**options))(output, batch)["external_supervision"]


ONES, HALVES = [[1.0, 1.0], [1.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize("resolution", ["grid", "image"])
def test_guidance_that_knows_nothing_supervises_nothing(resolution):
    output, batch = hand_made([ONES, HALVES], torch.full((1, 32, 32), 255, dtype=torch.uint8))
    loss = supervision(output, batch, guidance_resolution=resolution, guidance_reduction="sum")
    loss.backward()
    assert loss.item() == 0.0
    assert not output.attention.grad.any()


@pytest.mark.parametrize("resolution", ["grid", "image"])
def test_image_without_guidance_does_not_dilute_the_others(resolution):
    """Both images are of class 1; the mean is over the pair of the first alone."""
    guidance = torch.cat([corner(16), torch.full((1, 32, 32), 255, dtype=torch.uint8)])
    pairs = Pairs(torch.tensor([0, 1]), torch.tensor([0, 0]))
    output = GuidedOutput(pairs=pairs, attention=torch.tensor([HALVES, ONES]), alive=torch.tensor([True, True]))
    batch = Sample(torch.zeros(2, 3, 32, 32), guidance.long(), guidance, torch.ones(2, 1), torch.arange(2))
    assert supervision(output, batch, guidance_resolution=resolution).item() == pytest.approx(0.25)


@pytest.mark.parametrize("resolution", ["grid", "image"])
def test_class_without_a_pixel_of_guidance_is_skipped(resolution):
    """The second class is in the image, but nobody has said where; it neither counts nor dilutes the first."""
    output, batch = hand_made([HALVES, ONES], corner(16))
    loss = supervision(output, batch, guidance_resolution=resolution)
    loss.backward()
    assert loss.item() == pytest.approx(0.25)
    assert output.attention.grad[0].any()
    assert not output.attention.grad[1].any()


@pytest.mark.parametrize("resolution", ["grid", "image"])
def test_dead_map_is_not_supervised(resolution):
    output, batch = hand_made([ONES], corner(16), alive=[False])
    assert supervision(output, batch, guidance_resolution=resolution).item() == 0.0


@pytest.mark.parametrize(
    ("resolution", "reduction", "expected"),
    [
        # H is 1 in the cell that the object touches: 3 of 4 cells are wrong.
        ("grid", "mean", 3 / 4),
        ("grid", "sum", 3.0),
        # 8 x 8 pixels are the object's: all others are wrong.
        ("image", "mean", (32**2 - 8**2) / 32**2),
        ("image", "sum", 32.0**2 - 8**2),
    ],
)
def test_resolution_and_reduction_by_hand(resolution, reduction, expected):
    output, batch = hand_made([ONES], corner(8))
    loss = supervision(output, batch, guidance_resolution=resolution, guidance_reduction=reduction)
    assert loss.item() == pytest.approx(expected)


def test_void_pixels_are_left_out_at_the_resolution_of_the_image():
    guidance = corner(8)
    guidance[0, 16:] = 255
    output, batch = hand_made([ONES], guidance)
    loss = supervision(output, batch, guidance_resolution="image")
    assert loss.item() == pytest.approx((16 * 32 - 8**2) / (16 * 32))


def test_supervision_at_the_resolution_of_the_image_leaves_the_padding_out():
    """With padding 100 the map reaches 99 pixels beyond the image; what it says there is compared with nothing."""
    grid = AttentionGrid(16, 100)
    attention = torch.zeros(grid.shape((32, 32)))
    attention[5:10, 5:10] = 1.0  # all cells that upsampling mixes into pixels 99 to 130 of the canvas
    output, batch = hand_made([attention.tolist()], corner(32))
    loss = Criterion(GUIDED, grid, attention_section(guidance_resolution="image"))(output, batch)[
        "external_supervision"
    ]
    assert loss.item() == 0.0


@pytest.mark.parametrize(("sharpness", "expected"), [(1.0, 0.5), (2.0, 0.25), (3.0, 0.125)])
def test_sharpness_lowers_what_partly_covered_cells_ask_for(sharpness, expected):
    guidance = corner(16)
    guidance[0, :16, 16:24] = 1  # half of cell (0, 1)
    output, batch = hand_made([[[1.0, expected], [0.0, 0.0]]], guidance)
    assert supervision(output, batch, guidance_sharpness=sharpness).item() == pytest.approx(0.0, abs=1e-12)
    assert supervision(output, batch, guidance_sharpness=sharpness + 1).item() > 1e-4


def test_distance_reaches_the_loss():
    output, batch = hand_made([HALVES], corner(16))
    squared, absolute = (supervision(output, batch, guidance_distance=d).item() for d in ("squared", "absolute"))
    assert squared == pytest.approx(0.25)
    assert absolute == pytest.approx(0.5)


def test_sharpness_has_no_effect_at_the_resolution_of_the_image():
    output, batch = hand_made([HALVES], corner(8))
    losses = [supervision(output, batch, guidance_resolution="image", guidance_sharpness=s) for s in (1.0, 3.0)]
    assert torch.equal(*losses)


# ---- the criterion ---------------------------------------------------------------------------------------------------


def test_losses_without_weight_are_not_needed():
    weights = {"segmentation": 3.0, "classification": 0.0, "external_supervision": 1e-3}
    assert Criterion(weights, CONV5_3, attention_section()).needs == {"segmentation", "external_supervision"}


def test_only_ground_truth_classes_are_mined(tiny_model, batch):
    """Changing what the network says of absent classes changes nothing."""
    model = tiny_model()
    only_first = batch._replace(image_labels=torch.tensor([[1.0, 0, 0]] * 4))
    losses = []
    for bias in (0.0, 30.0):
        torch.nn.init.constant_(model.classifier.score.bias[1:].data, bias)
        losses.append(losses_of(model, only_first, {"attention_mining": 1.0})["attention_mining"])
    assert torch.equal(*losses)


def test_guidance_supervises_and_the_target_does_not(tiny_model, batch):
    model = tiny_model()
    loss = losses_of(model, batch, GUIDED)["external_supervision"]
    assert loss.item() > 0.0
    blind = batch._replace(target=torch.zeros_like(batch.target))
    assert torch.equal(loss, losses_of(model, blind, GUIDED)["external_supervision"])
    moved = batch._replace(guidance=torch.flip(batch.guidance, dims=(1,)))
    assert not torch.equal(loss, losses_of(model, moved, GUIDED)["external_supervision"])
    unknown = batch._replace(guidance=torch.full_like(batch.guidance, 255))
    assert losses_of(model, unknown, GUIDED)["external_supervision"].item() == 0.0


@pytest.mark.parametrize("resolution", ["grid", "image"])
def test_images_without_a_class_join_the_batch(tiny_model, batch, resolution):
    """No background or void need be present, and an image may hold no object at all."""
    empty = batch._replace(
        target=torch.zeros_like(batch.target),
        guidance=torch.zeros_like(batch.guidance),
        image_labels=torch.zeros(4, 3),
    )
    criterion = Criterion(ALL_WEIGHTS, CONV5_3, attention_section(guidance_resolution=resolution))
    losses = criterion(
        GuidedNetwork(tiny_model(), attention_section())(
            empty.image, class_pairs(empty.image_labels, 4), criterion.needs
        ),
        empty,
    )
    assert losses["attention_mining"].item() == losses["external_supervision"].item() == 0.0
    assert torch.isfinite(criterion.total(losses, 1.0))


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_every_weight_reaches_the_gradient(tiny_model, batch, name):
    """A weight that is parsed and logged but never passed on is a mistake seen in public implementations.

    A factor of four is exact in floating point: the two gradients agree to the last bit.
    """
    model = tiny_model()
    losses = losses_of(model, batch, ALL_WEIGHTS)
    assert tuple(losses) == LOSS_NAMES
    weight = model.trunk.conv1_1.weight
    gradients = [
        torch.autograd.grad(
            Criterion({**dict.fromkeys(LOSS_NAMES, 0.0), name: w}, CONV5_3, attention_section()).total(losses, 1.0),
            weight,
            retain_graph=True,
        )[0]
        for w in (1.0, 4.0)
    ]
    assert gradients[0].abs().max() > 0
    assert torch.equal(4 * gradients[0], gradients[1])


def test_ramp_scales_the_attention_losses_alone():
    losses = {name: torch.tensor(1.0) for name in LOSS_NAMES}
    weights = {"segmentation": 3.0, "classification": 1.0, "attention_mining": 1.0, "external_supervision": 10.0}
    criterion = Criterion(weights, CONV5_3, attention_section())
    assert float(criterion.total(losses, 0.0)) == 4.0
    assert float(criterion.total(losses, 0.5)) == 9.5
    assert float(criterion.total(losses, 1.0)) == 15.0


@pytest.mark.parametrize("resolution", ["grid", "image"])
@pytest.mark.parametrize("layer", ["conv5_3", "pool5"])
def test_guidance_moves_attention_into_the_mask(tiny_model, layer, resolution):
    """A few steps on L_e alone pull the energy of the maps inside the masks."""
    model = tiny_model(attention_layer=layer)
    target = torch.zeros(2, 96, 96, dtype=torch.int64)
    target[0, :40, :40], target[1, 50:, 50:] = 1, 2
    labels = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    image = torch.randn(2, 3, 96, 96) + 2.0 * (target > 0)[:, None]
    batch = Sample(image, target, target.to(torch.uint8), labels, torch.arange(2))
    network, criterion = (
        GuidedNetwork(model, attention_section()),
        Criterion(GUIDED, model.attention_grid, attention_section(guidance_resolution=resolution)),
    )
    pairs = class_pairs(labels, 4)
    mask, _ = pixel_supervision(batch.guidance, pairs, model.attention_grid, 1.0)
    optimizer = torch.optim.AdamW(model.trunk.parameters(), lr=1e-3)  # steps that are too long end in dead maps

    def inside() -> float:
        attention = network(image, pairs, criterion.needs).attention
        return ((attention * mask).sum() / attention.sum()).item()

    before = inside()
    for _ in range(30):
        output = network(image, pairs, criterion.needs)
        criterion(output, batch)["external_supervision"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert inside() > before + 0.1
