"""Where a panel puts its pictures, what it writes beside them, and what its key says."""

import numpy as np
import pytest

from pipeline.report.grid import (
    LEAST_LETTERS,
    MARGIN,
    TRUTH,
    Entry,
    attention_entry,
    class_entries,
    letter_size,
    panel,
    tiles,
)
from pipeline.report.overlays import OUTLINE, class_colours, heat

GREY = np.full((6, 9, 3), 120, np.uint8)


def picture(colour: tuple[int, int, int]) -> np.ndarray:
    return np.tile(np.array(colour, np.uint8), (6, 9, 1))


def places_of(canvas: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of the pixels of a colour."""
    rows, columns = np.nonzero((canvas == colour).all(axis=2))
    return rows.min(), columns.min(), rows.max(), columns.max()


def test_panel_puts_every_picture_into_its_cell():
    colours = [[(255, 0, 0), (0, 255, 0), (0, 0, 255)], [(9, 9, 90), (99, 99, 9), (199, 9, 199)]]
    canvas = np.asarray(panel([[picture(c) for c in row] for row in colours], ["a", "b", "c"], ["", ""], scale=2))
    top, left, _, _ = places_of(canvas, colours[0][0])
    for row, row_colours in enumerate(colours):
        for column, colour in enumerate(row_colours):
            y, x = top + row * (12 + MARGIN), left + column * (18 + MARGIN)
            assert places_of(canvas, colour) == (y, x, y + 11, x + 17)
            assert ((canvas == colour).all(axis=2)).sum() == 12 * 18


def test_panel_has_room_for_the_largest_picture_and_distorts_none():
    small, large = np.full((6, 10, 3), 50, np.uint8), np.full((20, 15, 3), 90, np.uint8)
    drawn = np.asarray(panel([[small], [large]], [""], ["", ""]))
    assert (drawn == 50).all(axis=2).sum() == 60
    assert (drawn == 90).all(axis=2).sum() == 300


def test_panel_writes_titles_and_labels_and_enlarges_without_blur():
    ramp = np.arange(6 * 9, dtype=np.uint8).reshape(6, 9, 1).repeat(3, axis=2)
    bare = np.asarray(panel([[ramp]], [""], [""], scale=3))
    written = np.asarray(panel([[ramp]], ["title"], ["label"], scale=3))
    enlarged = ramp.repeat(3, axis=0).repeat(3, axis=1)
    for canvas in (bare, written):
        corner = canvas[canvas.shape[0] - MARGIN - 18 : canvas.shape[0] - MARGIN, canvas.shape[1] - MARGIN - 27 :]
        assert np.array_equal(corner[:, :27], enlarged)
    assert written.shape[0] > bare.shape[0]
    assert written.shape[1] > bare.shape[1]
    assert (written[: LEAST_LETTERS // 2 + MARGIN] < 255).any()
    assert (written[-18:, : 2 * LEAST_LETTERS] < 128).any()


def test_long_titles_are_broken_between_words():
    """The height grows with the number of lines, the width of the panel does not."""
    one, three = (panel([[np.zeros((9, 60, 3), np.uint8)]], [t], [""]) for t in ("attention", "attention of gain_ext"))
    assert three.width == one.width
    assert three.height > one.height


@pytest.mark.parametrize(("side", "letters"), [(6, 11), (128, 11), (256, 14), (500, 28), (1000, 55)])
def test_letters_grow_with_the_pictures(side, letters):
    assert letter_size(side) == letters


def test_panel_needs_a_label_for_each_row():
    with pytest.raises(ValueError, match="zip"):
        panel([[GREY], [GREY]], ["title"], ["label"])


def test_key_says_what_colours_mean():
    masks = [np.array([[0, 1, 1], [2, 255, 0]])]
    entries = class_entries(masks, ("cat", "dog", "fox"))
    assert [entry.text for entry in entries] == ["cat", "dog", "void, not scored"]
    assert [entry.colour for entry in entries] == [tuple(class_colours()[value].tolist()) for value in (1, 2, 255)]
    canvas = np.asarray(panel([[np.zeros((60, 400, 3), np.uint8)]], [""], [""], key=(TRUTH, *entries)))
    for colour in (OUTLINE, *(entry.colour for entry in entries)):
        assert (canvas == colour).all(axis=2).sum() > 50


def test_key_of_attention_is_a_bar_from_none_to_the_maximum():
    entry = attention_entry("pool5")
    assert "pool5" in entry.text
    canvas = np.asarray(panel([[np.full((60, 500, 3), 255, np.uint8)]], [""], [""], key=(entry,)))
    low, high = (heat(np.array([[value]]))[0, 0] for value in (0.0, 1.0))
    assert (canvas == low).all(axis=2).any()
    assert (canvas == high).all(axis=2).any()


def test_key_that_is_too_long_for_a_line_takes_several():
    key = [Entry(f"class number {i}", (i, 200, 0)) for i in range(20)]
    canvas = np.asarray(panel([[GREY]], ["x"], [""], scale=20, key=key))
    tops = {places_of(canvas, entry.colour)[0] for entry in key}
    assert len(tops) > 5


def test_tiles_stand_in_rows_below_their_captions():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 90, 90)]
    canvas = np.asarray(tiles([picture(c) for c in colours], ["a", "b c d", "e", "f"], 3, scale=4))
    places = [places_of(canvas, colour) for colour in colours]
    assert places[0][0] == places[1][0] == places[2][0] < places[3][0]
    assert places[0][1] == places[3][1] < places[1][1] < places[2][1]
