import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.overlays import OUTLINE, attention_overlay, feature_maps, outlined, segmentation_overlay

BLACK, GREY, WHITE = (np.full((6, 9, 3), value, np.uint8) for value in (0, 120, 255))


def picture(colour: tuple[int, int, int]) -> np.ndarray:
    return np.tile(np.array(colour, np.uint8), (6, 9, 1))


def test_attention_is_dark_where_low_and_bright_where_high():
    attention = np.zeros((6, 9), np.float32)
    attention[0, 0], attention[0, 1] = 1.0, 0.5
    overlay = attention_overlay(GREY, attention)
    inferno = matplotlib.colormaps["inferno"]
    for place, value in (((0, 0), 255), ((0, 1), 127), ((5, 8), 0)):
        hot, opacity = 255 * np.array(inferno(value)[:3]), 0.3 + 0.4 * attention[place]
        assert np.abs(overlay[place] - (120 * (1 - opacity) + hot * opacity)).max() <= 1
    brightness = overlay.astype(int).sum(axis=2)
    assert brightness[0, 0] > brightness[0, 1] > brightness[5, 8] == brightness[3, 3]


@given(st.floats(-2, 3, width=32))
def test_attention_overlay_keeps_shape_and_range(value):
    attention = np.full((6, 9), value, np.float32)
    overlay = attention_overlay(GREY, attention)
    assert (overlay.shape, overlay.dtype) == ((6, 9, 3), np.uint8)
    assert np.array_equal(overlay, attention_overlay(GREY, attention.clip(0, 1)))


@pytest.mark.parametrize("image", [BLACK, WHITE])
def test_attention_overlay_does_not_wrap_around(image):
    """0 and 255 stay dark and bright: with uint8 arithmetic they would change places."""
    ramp = np.linspace(0, 1, 54, dtype=np.float64).reshape(6, 9)
    difference = attention_overlay(image, ramp).astype(int) - image
    assert (difference >= 0).all() if image is BLACK else (difference <= 0).all()
    assert np.abs(difference).max() <= 0.7 * 255 + 1


def test_segments_wear_the_colours_of_voc():
    classes = np.array([[0, 1, 2], [3, 4, 255]])
    overlay = segmentation_overlay(np.zeros((2, 3, 3), np.uint8), classes, opacity=1.0)
    assert (overlay.shape, overlay.dtype) == ((2, 3, 3), np.uint8)
    assert overlay.tolist() == [
        [[0, 0, 0], [128, 0, 0], [0, 128, 0]],
        [[128, 128, 0], [0, 0, 128], [224, 224, 192]],
    ]


def test_background_is_covered_half_as_much():
    overlay = segmentation_overlay(np.full((1, 2, 3), 200, np.uint8), np.array([[0, 2]]), opacity=0.5)
    assert overlay.tolist() == [[[150, 150, 150], [100, 164, 100]]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_segmentation_overlay_takes_any_integers(dtype):
    classes = np.arange(256, dtype=dtype).reshape(16, 16)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(segmentation_overlay(image, classes, opacity=0.0), image)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (50, 33), (4, 4), (3, 2)])
@pytest.mark.parametrize("channels", [1, 16, 40])
def test_feature_maps_fill_the_size_asked_for(size, channels):
    features = np.random.default_rng(0).random((channels, 3, 5), dtype=np.float32)
    tiles = feature_maps(features, size)
    assert (tiles.shape, tiles.dtype) == ((*size, 3), np.uint8)


def test_feature_maps_show_the_strongest_channels_first_each_at_its_own_scale():
    features = np.zeros((6, 2, 2), np.float32)
    features[1], features[4] = 0.5, 8.0
    features[2, 0, 0] = 1.0
    tiles = feature_maps(features, (40, 60), columns=2)
    first, second, third, fourth = tiles[:19, :29], tiles[:19, 30:59], tiles[20:39, :29], tiles[20:39, 30:59]
    assert (first == 255).all()  # channel 4
    assert (second == 255).all()  # channel 1: weaker, as bright
    assert (third[0, 0].tolist(), third[-1, -1].tolist()) == ([255, 255, 255], [0, 0, 0])  # channel 2
    assert not fourth.any()
    assert (tiles[19] == 255).all()  # the gap between the rows
    assert (tiles[:, 29] == 255).all()


def test_feature_maps_of_nothing_are_black():
    tiles = feature_maps(np.zeros((16, 2, 2), np.float32), (16, 16))
    assert not tiles[:3, :3].any()


def test_mask_is_outlined_from_within():
    mask = np.zeros((6, 9), bool)
    mask[1:5, 2:8] = True
    drawn = outlined(GREY, mask)
    coloured = (drawn == OUTLINE).all(axis=2)
    expected = mask.copy()
    expected[2:4, 3:7] = False
    assert np.array_equal(coloured, expected)
    assert np.array_equal(drawn[~coloured], GREY[~coloured])
    assert np.array_equal((outlined(GREY, mask, width=2) == OUTLINE).all(axis=2), mask)


def test_outline_runs_along_the_border_of_the_picture_too_and_none_is_drawn_without_a_mask():
    everything = outlined(GREY, np.ones((6, 9), bool))
    assert (everything[0] == OUTLINE).all()
    assert (everything[1:-1, 1:-1] == GREY[1:-1, 1:-1]).all()
    assert np.array_equal(outlined(GREY, np.zeros((6, 9), bool)), GREY)
