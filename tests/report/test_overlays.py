import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageFont

from pipeline.report.overlays import LABEL_SIZE, MARGIN, attention_overlay, feature_maps, panel, segmentation_overlay

BLACK, GREY, WHITE = (np.full((6, 9, 3), value, np.uint8) for value in (0, 120, 255))


def picture(colour: tuple[int, int, int]) -> np.ndarray:
    return np.tile(np.array(colour, np.uint8), (6, 9, 1))


def test_attention_is_cold_where_low_and_warm_where_high():
    attention = np.zeros((6, 9), np.float32)
    attention[0, 0], attention[0, 1] = 1.0, 0.5
    overlay = attention_overlay(GREY, attention)
    turbo = matplotlib.colormaps["turbo"]
    for place, value in (((0, 0), 255), ((0, 1), 127), ((5, 8), 0)):
        heat, opacity = 255 * np.array(turbo(value)[:3]), 0.25 + 0.5 * attention[place]
        assert np.abs(overlay[place] - (120 * (1 - opacity) + heat * opacity)).max() <= 1
    red, _, blue = overlay[0, 0].astype(int)
    assert red > blue
    assert overlay[5, 8].tolist() == overlay[3, 3].tolist() != overlay[0, 0].tolist()


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
    assert np.abs(difference).max() <= 0.75 * 255 + 1


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


@pytest.mark.parametrize(("num_rows", "num_columns", "scale"), [(1, 1, 1), (2, 3, 1), (3, 2, 4)])
def test_panel_size_is_pictures_margins_title_and_labels(num_rows, num_columns, scale):
    labels = [f"image {'M' * number}" for number in range(num_rows)]
    canvas = panel(num_rows * [num_columns * [GREY]], num_columns * ["title"], labels, scale)
    font = ImageFont.load_default(LABEL_SIZE)
    left = max(int(font.getlength(word)) for label in labels for word in label.split()) + 2 * MARGIN
    top = LABEL_SIZE + 2 * MARGIN
    assert canvas.size == (left + num_columns * (9 * scale + MARGIN), top + num_rows * (6 * scale + MARGIN))
    assert canvas.mode == "RGB"


def test_panel_puts_every_picture_into_its_cell():
    colours = [[(255, 0, 0), (0, 255, 0), (0, 0, 255)], [(9, 9, 9), (99, 99, 99), (199, 199, 199)]]
    canvas = np.asarray(panel([[picture(c) for c in row] for row in colours], ["a", "b", "c"], ["", ""], scale=2))
    left, top = 2 * MARGIN, LABEL_SIZE + 2 * MARGIN
    for row, row_colours in enumerate(colours):
        for column, colour in enumerate(row_colours):
            y, x = top + row * (12 + MARGIN), left + column * (18 + MARGIN)
            assert (canvas[y : y + 12, x : x + 18] == colour).all()
            assert (canvas[y + 12 : y + 12 + MARGIN, x : x + 18] == 255).all()


def test_panel_has_room_for_the_largest_picture_and_distorts_none():
    small, large = np.full((6, 10, 3), 50, np.uint8), np.full((20, 15, 3), 90, np.uint8)
    drawn = np.asarray(panel([[small], [large]], [""], ["", ""]))
    assert (drawn == 50).all(axis=2).sum() == 60
    assert (drawn == 90).all(axis=2).sum() == 300


def test_panel_writes_titles_and_labels_and_enlarges_without_blur():
    ramp = np.arange(6 * 9, dtype=np.uint8).reshape(6, 9, 1).repeat(3, axis=2)
    canvas = np.asarray(panel([[ramp]], ["title"], ["label"], scale=3))
    font = ImageFont.load_default(LABEL_SIZE)
    left, top = int(font.getlength("label")) + 2 * MARGIN, LABEL_SIZE + 2 * MARGIN
    assert np.array_equal(canvas[top : top + 18, left : left + 27], ramp.repeat(3, axis=0).repeat(3, axis=1))
    assert (canvas[:top, left:] < 255).any()
    assert (canvas[top:, :left] < 255).any()
    without = np.asarray(panel([[ramp]], [""], [""], scale=3))
    assert (without[: LABEL_SIZE + 2 * MARGIN] == 255).all()


def test_panel_needs_a_label_for_each_row():
    with pytest.raises(ValueError, match="zip"):
        panel([[GREY], [GREY]], ["title"], ["label"])
