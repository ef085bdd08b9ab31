import math
from itertools import pairwise, permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.gain.attention import attention_to_image, class_attention
from pipeline.gain.view import View
from pipeline.report.faithfulness import deletion_and_insertion


class FirstPixel(torch.nn.Module):
    """The first pixel alone decides: class 0 has probability 3/4 where it is 1, 1/4 where it is -1, 1/2 where gone.

    Class 1 has the opposite logit.
    """

    scale = 1.0

    def forward(self, image: torch.Tensor, *, segmentation: bool) -> tuple[None, torch.Tensor]:
        assert not segmentation
        logit = math.log(3) * image[:, 0, 0, 0]
        return None, torch.stack([logit, -logit], dim=1)


def score(attention: list[list[float]], class_index: int = 0, *, num_steps: int = 4, batch_size: int = 3):
    maps = torch.tensor([attention])
    image = torch.ones(1, 3, *maps.shape[1:])
    deletion, insertion = deletion_and_insertion(
        FirstPixel(), image, maps, torch.tensor([class_index]), num_steps=num_steps, batch_size=batch_size
    )
    assert deletion.shape == insertion.shape == (1,)
    return float(deletion), float(insertion)


@pytest.mark.parametrize("place", range(4))
def test_areas_by_hand(place):
    attention = torch.tensor([0.0, 0.1, 0.2, 0.3])  # three other pixels, of which `place` come before the first one
    attention[0] = 0.35 - 0.1 * place
    # Trapezoids over 0, 25, 50, 75 and 100 %: the step that takes the first pixel is half a step of each level.
    before, after = (place + 0.5) / 4, (3.5 - place) / 4
    deletion, insertion = score(attention.view(2, 2).tolist())
    assert deletion == pytest.approx(before * 3 / 4 + after * 1 / 2)
    assert insertion == pytest.approx(before * 1 / 2 + after * 3 / 4)


def test_each_pair_is_scored_by_its_own_class():
    deletion, insertion = score([[0.9, 0.0], [0.0, 0.0]], class_index=1)
    assert deletion == pytest.approx(1 / 8 * 1 / 4 + 7 / 8 * 1 / 2)
    assert insertion == pytest.approx(1 / 8 * 1 / 2 + 7 / 8 * 1 / 4)


@pytest.mark.parametrize(
    "attention",
    [[0, 0, 0, 0], [0, 9, 0, 0], [5, 9, 5, 5], [5, 5, 9, 9], [9, 9, 5, 5], [9, 0, 0, 0], [5, 9, 5, 0], [1, 2, 3, 4]],
)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 5])
def test_ties_count_as_their_expectation(attention, num_steps):
    """The mean over all orders that the map leaves open, of a score to which each pixel adds by itself."""
    falls = [order for order in permutations(range(4)) if all(attention[a] >= attention[b] for a, b in pairwise(order))]
    expected = [score([[4.0 - order.index(i) for i in range(4)]], num_steps=num_steps) for order in falls]
    found = score([[float(value) for value in attention]], num_steps=num_steps)
    assert found == pytest.approx(torch.tensor(expected).mean(dim=0).tolist(), abs=1e-6)


@torch.no_grad()
def test_ties_do_not_depend_on_where_they_lie(tiny_model, batch):
    """Mirroring image and map changes nothing of a network that sees each mirrored alike."""

    class BothWays(torch.nn.Module):
        scale = 1.0

        def forward(self, image: torch.Tensor, *, segmentation: bool) -> tuple[None, torch.Tensor]:
            return None, sum(model(x, segmentation=segmentation)[1] for x in (image, image.flip(-1)))

    model = tiny_model()
    image, attention, classes = pairs(batch, model)
    attention = attention.clamp(min=float(attention.median()))  # half of all pixels tie
    upright = deletion_and_insertion(BothWays(), image, attention, classes, num_steps=4, batch_size=8)
    mirrored = deletion_and_insertion(
        BothWays(), image.flip(-1), attention.flip(-1), classes, num_steps=4, batch_size=8
    )
    assert torch.allclose(torch.stack(upright), torch.stack(mirrored), atol=1e-6)


def test_steps_that_do_not_divide_the_pixels_are_equal_to_within_a_pixel():
    # Five pixels in two steps: three, then two. The third pixel goes in the first step, the fourth in the second.
    assert score([[0.7, 0.9, 0.8, 0.6, 0.5]], num_steps=2)[0] == pytest.approx(1 / 4 * 3 / 4 + 3 / 4 * 1 / 2)
    assert score([[0.6, 0.9, 0.8, 0.7, 0.5]], num_steps=2)[0] == pytest.approx(3 / 4 * 3 / 4 + 1 / 4 * 1 / 2)


def test_everything_is_gone_at_the_end():
    # In a single step only the two ends count.
    assert score([[0.1, 0.9, 0.3]], num_steps=1) == pytest.approx((5 / 8, 5 / 8))


def pairs(batch, model) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, attention and classes of the five ground-truth pairs of the batch after the first."""
    images, classes = torch.tensor([1, 1, 3, 3, 3]), torch.tensor([1, 2, 0, 1, 2])
    maps = class_attention(model, model.features(batch.image).conv5_3)[images, classes]
    return batch.image[images], attention_to_image(maps, (48, 40), model.attention_grid).detach(), classes


@torch.no_grad()
def test_agrees_with_a_loop_over_pixels(tiny_model, batch):
    model = tiny_model()
    for image, attention, class_index in zip(*pairs(batch, model), strict=True):
        attention = attention + torch.linspace(1e-3, 0, 48 * 40).view(48, 40)  # no ties, as good as ever
        order = sorted(range(48 * 40), key=lambda pixel: -float(attention.flatten()[pixel]))
        deleted, inserted = [], []
        for step in range(6):
            visible = torch.ones(48 * 40)
            visible[order[: step * 48 * 40 // 5]] = 0
            for curve, mask in ((deleted, visible), (inserted, 1 - visible)):
                _, logits = model(image[None] * mask.view(48, 40))
                curve.append(float(logits[0, class_index].sigmoid()))
        scores = deletion_and_insertion(
            model, image[None], attention[None], class_index[None], num_steps=5, batch_size=7
        )
        expected = [sum(curve[1:-1]) / 5 + (curve[0] + curve[-1]) / 10 for curve in (deleted, inserted)]
        assert [float(values) for values in scores] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_scores_do_not_depend_on_the_batch_size(tiny_model, batch, batch_size):
    model = tiny_model()
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    image, attention, classes = pairs(batch, model)
    scores = deletion_and_insertion(model, image, attention, classes, num_steps=3, batch_size=batch_size)
    assert max(seen) == min(batch_size, sum(seen) // 2)
    alone = [
        deletion_and_insertion(model, *(x[i : i + 1] for x in (image, attention, classes)), num_steps=3, batch_size=2)
        for i in range(5)
    ]
    for values, singles in zip(scores, zip(*alone, strict=True), strict=True):
        assert torch.allclose(values, torch.cat(singles), atol=1e-6)


@given(st.integers(0, 1000), st.integers(1, 9))
def test_insertion_is_deletion_in_the_opposite_order_run_backwards(seed, num_steps):
    generator = torch.Generator().manual_seed(seed)
    # Without ties, and in steps that divide the pixels: those to insert first are those to delete last.
    attention = torch.randperm(4 * num_steps, generator=generator).float().view(1, 4, num_steps)
    image = torch.randn(1, 3, 4, num_steps, generator=generator)
    arguments = {"num_steps": num_steps, "batch_size": 5}
    forwards = deletion_and_insertion(FirstPixel(), image, attention, torch.tensor([0]), **arguments)
    backwards = deletion_and_insertion(FirstPixel(), image, -attention, torch.tensor([0]), **arguments)
    assert float(forwards[0]) == pytest.approx(float(backwards[1]))
    assert float(forwards[1]) == pytest.approx(float(backwards[0]))


def test_without_a_pair_there_is_nothing_to_score(tiny_model):
    nothing = (torch.zeros(0, 3, 48, 40), torch.zeros(0, 48, 40), torch.zeros(0, dtype=torch.int64))
    scores = deletion_and_insertion(tiny_model(), *nothing, num_steps=3, batch_size=2)
    assert [values.shape for values in scores] == [(0,), (0,)]


def test_masked_images_are_seen_at_the_scale_of_the_network(batch, tiny_model):
    """Deletion begins with the image as it is, and in one step ends with none."""
    model = tiny_model()
    model.scale = 0.5
    image, attention, classes = pairs(batch, model)
    deletion, _ = deletion_and_insertion(model, image, attention, classes, num_steps=1, batch_size=3)
    ends = [View.of(model, pictures).class_logits().sigmoid() for pictures in (image, torch.zeros_like(image))]
    expected = torch.stack(ends).mean(dim=0).gather(1, classes[:, None])[:, 0]
    assert torch.allclose(deletion, expected, atol=1e-6)
