"""Objects cut out, taken out and put on another ground, pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageFilter

from pipeline.data.samples import denormalise
from pipeline.datasets.counterfactual.pixels import (
    NEUTRAL,
    Ground,
    alone,
    filled_by_mean,
    filled_from_around,
    fitted,
    hole_of,
    on_ground,
    without,
)

MASK = np.array([[1, 1, 255, 0, 2], [1, 255, 0, 0, 2]], np.uint8)
MEAN = [124, 116, 104]


def grey(values: list[list[int]]) -> np.ndarray:
    """An image whose channels are a grey value, that plus 1 and that plus 2."""
    return np.stack([np.array(values, np.uint8) + channel for channel in range(3)], axis=-1).astype(np.uint8)


IMAGE = grey([[10, 20, 30, 40, 50], [60, 70, 80, 90, 100]])


def test_neutral_colour_is_the_data_mean():
    import torch

    assert NEUTRAL.tolist() == MEAN == denormalise(torch.zeros(3, 1, 1)).flatten().tolist()


def test_object_alone_keeps_its_pixels_and_has_void_where_the_mask_has():
    image, mask = alone(IMAGE, MASK, 1)
    assert mask.tolist() == [[1, 1, 255, 0, 0], [1, 255, 0, 0, 0]]
    assert image[0].tolist() == [[10, 11, 12], [20, 21, 22], MEAN, MEAN, MEAN]
    assert image[1].tolist() == [[60, 61, 62], MEAN, MEAN, MEAN, MEAN]
    assert image.dtype == mask.dtype == np.uint8


def test_object_on_a_ground_covers_what_was_invented_there():
    invented = np.array([[True, False, False, False, True], [False, False, False, True, False]])
    ground = Ground(grey([[1, 2, 3, 4, 5], [6, 7, 8, 9, 0]]), invented)
    image, mask = on_ground(IMAGE, MASK, 2, ground)
    assert image[..., 0].tolist() == [[1, 2, 3, 4, 50], [6, 7, 8, 9, 100]]
    assert image[..., 2].tolist() == [[3, 4, 5, 6, 52], [8, 9, 10, 11, 102]]
    # Void: what the ground had invented, and what the source left unlabelled. The other object is not there.
    assert mask.tolist() == [[255, 0, 255, 0, 2], [0, 255, 0, 255, 2]]


def test_void_is_taken_out_with_the_object_and_other_objects_stay():
    hole = hole_of(MASK, MASK == 1, margin=0.0)
    assert hole.tolist() == [[True, True, True, False, False], [True, True, False, False, False]]
    assert without(MASK, hole).tolist() == [[255, 255, 255, 0, 2], [255, 255, 0, 0, 2]]
    assert not (without(MASK, hole) == 1).any()


@pytest.mark.parametrize(
    ("margin", "row"),
    [
        (0.0, "__##____"),
        (0.124, "__##____"),  # of 8 pixels: less than one
        (0.125, "_####___"),
        (0.25, "######_o"),
        (0.4, "#######o"),  # other objects are not background
    ],
)
def test_ring_of_background_goes_with_an_object(margin, row):
    mask = np.array([[0, 0, 1, 1, 0, 0, 0, 2]], np.uint8)
    assert (hole_of(mask, mask == 1, margin)[0]).tolist() == [cell == "#" for cell in row.replace("o", "_")]


def test_ring_that_would_leave_nothing_to_fill_from_is_left_out():
    mask = np.array([[0, 1, 1, 0]], np.uint8)
    assert hole_of(mask, mask == 1, 0.5)[0].tolist() == [False, True, True, False]


def test_void_alone_has_no_ring():
    mask = np.array([[0, 0, 255, 0]], np.uint8)
    assert hole_of(mask, mask == 1, 0.5)[0].tolist() == [False, False, True, False]


def test_hole_is_filled_by_the_mean():
    hole = np.array([[True, False, False, False, False], [False, False, False, False, True]])
    filled = filled_by_mean(IMAGE, hole)
    assert filled[0, 0].tolist() == filled[1, 4].tolist() == MEAN
    assert np.array_equal(filled[~hole], IMAGE[~hole])


def test_hole_is_filled_with_the_nearest_colours():
    image = grey([[10, 99, 99, 99, 99, 90]])
    hole = np.array([[False, True, True, True, True, False]])
    assert filled_from_around(image, hole, 0.0)[..., 0].tolist() == [[10, 10, 10, 90, 90, 90]]


def test_what_is_filled_in_is_smooth_and_the_rest_is_as_it_was():
    image = grey([[10, 99, 99, 99, 99, 90]])
    hole = np.array([[False, True, True, True, True, False]])
    filled = filled_from_around(image, hole, 1 / 6)[0, :, 0].tolist()  # a Gaussian of one pixel
    # Weights of a Gaussian at 0, 1, 2, ...: 0.399, 0.242, 0.054, 0.0044; the ends go on as they are.
    step = np.array([10, 10, 10, 90, 90, 90], float)
    padded = np.pad(step, 4, mode="edge")
    kernel = np.exp(-0.5 * np.arange(-4, 5) ** 2)
    expected = np.convolve(padded, kernel / kernel.sum(), mode="valid").round()
    assert filled == [10, *expected[1:5].tolist(), 90]
    assert filled[1] < filled[2] < filled[3] < filled[4]


@pytest.mark.parametrize("blur", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("box", [(20, 30, 25, 40), (0, 3, 0, 5), (55, 60, 70, 80), (0, 60, 10, 12)])
def test_hole_is_filled_as_if_all_of_the_image_were_looked_at(blur, box):
    from scipy.ndimage import distance_transform_edt

    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    hole = np.zeros((60, 80), bool)
    hole[box[0] : box[1], box[2] : box[3]] = True
    nearest = image[tuple(distance_transform_edt(hole, return_distances=False, return_indices=True))]
    smooth = Image.fromarray(nearest).filter(ImageFilter.GaussianBlur(80 * blur))
    expected = np.where(hole[..., None], np.asarray(smooth), image)
    assert np.array_equal(filled_from_around(image, hole, blur), expected)


def test_image_without_a_hole_stays_as_it_is():
    assert np.array_equal(filled_from_around(IMAGE, np.zeros(MASK.shape, bool), 0.1), IMAGE)


def test_ground_is_cut_around_its_centre():
    invented = np.array([[True, False, False, True, False, True]] * 2)
    ground = fitted(Ground(grey([[0, 10, 20, 30, 40, 50]] * 2), invented), (2, 2))
    assert ground.image[..., 0].tolist() == [[20, 30], [20, 30]]
    assert ground.invented.tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize(
    ("size", "shape", "side"),
    [((8, 24), (4, 12), 4), ((8, 12), (8, 24), 4), ((3, 3), (9, 9), 1), ((4, 4), (16, 8), 2), ((16, 16), (24, 8), 8)],
)
def test_ground_of_another_size_is_resized_without_distortion(size, shape, side):
    """A square around the centre stays one."""
    height, width = shape
    rows, columns = np.mgrid[:height, :width] + 0.5
    reach = min(shape) / 4
    square = (abs(rows - height / 2) < reach) & (abs(columns - width / 2) < reach)
    image = np.repeat(np.where(square, 200, 0).astype(np.uint8)[..., None], 3, axis=2)
    ground = fitted(Ground(image, square), size)
    assert ground.image.shape == (*size, 3)
    high, wide = ground.invented.any(axis=1), ground.invented.any(axis=0)
    assert (high.sum(), wide.sum(), ground.invented.sum()) == (side, side, side**2)
    for inside in (high, wide):
        assert np.flatnonzero(inside).mean() == (len(inside) - 1) / 2
    assert np.array_equal(ground.image[..., 0] > 100, ground.invented)


def test_ground_of_the_same_size_is_the_same():
    ground = Ground(IMAGE, MASK == 0)
    assert fitted(ground, MASK.shape) is ground


MASKS = arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 0, 1, 2, 255]))


@given(MASKS, st.integers(0, 2**32 - 1), st.floats(0, 0.5))
def test_object_is_whole_where_it_is_wanted_and_gone_where_it_is_not(mask, seed, margin):
    rng = np.random.default_rng(seed)
    image, other = (rng.integers(0, 256, (*mask.shape, 3), dtype=np.uint8) for _ in range(2))
    own, ground = mask == 1, Ground(other, rng.random(mask.shape) < 0.2)
    for picture, target in (alone(image, mask, 1), on_ground(image, mask, 1, ground)):
        assert np.array_equal(picture[own], image[own])
        assert np.array_equal(target == 1, own)
        assert set(np.unique(target)) <= {0, 1, 255}
        assert (target[mask == 255] == 255).all()
    hole = hole_of(mask, own, margin)
    if hole.all():
        return
    assert hole[own].all()
    assert hole[mask == 255].all()
    assert not hole[mask == 2].any()
    target = without(mask, hole)
    assert not (target == 1).any()
    assert np.array_equal(target == 2, mask == 2)
    marked = image.copy()
    marked[hole] = 255 - image[hole]  # what was there must not show
    for filled, again in (
        (filled_by_mean(image, hole), filled_by_mean(marked, hole)),
        (filled_from_around(image, hole, 0.1), filled_from_around(marked, hole, 0.1)),
    ):
        assert np.array_equal(filled[~hole], image[~hole])
        assert np.array_equal(filled, again)
