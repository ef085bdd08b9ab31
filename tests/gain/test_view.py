"""Images looked at in another size than their own, and what is said of them at their own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.gain.attention import attention_to_image, class_attention, normalise_attention
from pipeline.gain.view import View, resized, seen_size


def bilinear(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def maps_of(model, features):
    return normalise_attention(class_attention(model, features.conv5_3)[:, 0])[0]


@torch.no_grad()
@pytest.mark.parametrize("padding", [1, 100])
def test_at_scale_one_the_network_alone_speaks(tiny_model, batch, padding):
    model = tiny_model(padding=padding)
    view, features = View.of(model, batch.image), model.features(batch.image)
    maps = maps_of(model, features)
    assert torch.equal(view.class_logits(), model.classify(features.conv5_3))
    assert torch.equal(view.seg_logits(), model.segment(features, (48, 40)))
    assert torch.equal(view.attention(maps), attention_to_image(maps, (48, 40), model.attention_grid))


@torch.no_grad()
@pytest.mark.parametrize(("scale", "seen"), [(0.5, (24, 20)), (1.7, (82, 68)), (0.3, (14, 12)), (0.05, (2, 2))])
def test_the_network_sees_the_resized_image_and_answers_at_the_size_of_the_image(tiny_model, batch, scale, seen):
    model = tiny_model()
    model.scale = scale
    view, features = View.of(model, batch.image), model.features(bilinear(batch.image, seen))
    maps = maps_of(model, features)
    assert torch.equal(view.class_logits(), model.classify(features.conv5_3))
    assert torch.equal(view.seg_logits(), bilinear(model.segment(features, seen), (48, 40)))
    small = attention_to_image(maps, seen, model.attention_grid)
    assert torch.equal(view.attention(maps), bilinear(small[:, None], (48, 40))[:, 0])
    assert view.attention(maps[:0]).shape == (0, 48, 40)
    assert 0 <= view.attention(maps).min() <= view.attention(maps).max() <= 1 + 1e-6


def test_what_is_resized_stays_where_it_was():
    """A step between two halves lies at the same share of the width, whichever way the image is resized."""
    half = torch.zeros(1, 1, 8, 8)
    half[..., 4:] = 1.0
    for size in ((4, 4), (16, 16), (8, 4)):
        there = resized(half, size)
        assert there.mean().item() == pytest.approx(0.5)
        assert torch.allclose(there.flip(-1), 1 - there, atol=1e-6)
        assert torch.allclose(resized(there, (8, 8)).round()[..., [0, 1, 6, 7]], half[..., [0, 1, 6, 7]])


@pytest.mark.parametrize(("scale", "size"), [(1.0, (31, 45)), (0.5, (16, 22)), (0.01, (1, 1)), (2.0, (62, 90))])
def test_seen_size(scale, size):
    assert seen_size(torch.zeros(1, 3, 31, 45), scale) == size
