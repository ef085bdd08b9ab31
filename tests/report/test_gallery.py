"""Which images the page shows, and that what it says of them is what the scores say."""

import numpy as np
import pytest
from small_comparisons import comparison_of, params_with

from pipeline.evaluation.metrics import SIZES
from pipeline.report.gallery import OF_OTHER_SETS, chosen_images, exhibits
from pipeline.report.overlays import OUTLINE


@pytest.fixture(scope="module")
def params():
    return params_with(("control", "gain_ext"))


@pytest.fixture(scope="module")
def comparison(params):
    return comparison_of(params, num_images=12)


def test_images_are_the_most_improved_worsened_and_missed_and_then_all_in_turn(comparison):
    guided, before = (comparison.scores[name].test.attention["attention_iou"] for name in ("gain_ext", "control"))
    sought = [int((guided - before).argmax()), int((before - guided).argmax()), int(guided.argmin()), 0]
    expected = list(dict.fromkeys(sought))
    assert chosen_images(comparison, len(expected)) == expected
    assert len(expected) > 2


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (5, 5), (12, 12), (500, 12)])
def test_no_image_is_taken_twice(comparison, count, expected):
    chosen = chosen_images(comparison, count)
    assert len(chosen) == len(set(chosen)) == expected


def test_images_without_a_class_are_chosen_in_order_and_shown_as_nothing(params):
    comparison = comparison_of(params, empty=True)
    assert chosen_images(comparison, 3) == [0, 1, 2]
    assert list(exhibits(comparison, params.evaluate.model_copy(update={"num_page_images": 3}))) == []


def test_exhibits_say_what_the_scores_say(comparison, params):
    # Batches that end within a set, and do not fill their last one.
    shown = list(exhibits(comparison, params.evaluate.model_copy(update={"num_page_images": 12, "batch_size": 5})))
    of_test = [exhibit for exhibit in shown if exhibit.split == "test"]
    assert len(of_test) == 12
    assert {exhibit.size for exhibit in of_test} == set(SIZES)
    for exhibit in of_test:
        index = int(exhibit.image_id[1:])
        for name, answer in exhibit.answers.items():
            result = comparison.scores[name].test
            class_index = comparison.class_names.index(exhibit.class_name)
            assert answer.probability == pytest.approx(float(result.class_probs[index, class_index]), abs=1e-4)
            assert answer.iou == pytest.approx(float(result.attention["attention_iou"][index]), abs=1e-3)
            assert answer.right == (answer.probability >= 0.5)
            assert (answer.attention == OUTLINE).all(axis=2).any()
        assert np.array_equal(exhibit.image.shape, (48, 40, 3))


def test_class_that_was_taken_out_must_not_be_claimed(comparison, params):
    options = params.evaluate.model_copy(update={"num_page_images": 0})
    absent = [exhibit for exhibit in exhibits(comparison, options) if exhibit.split == "no_object_mean"]
    assert len(absent) == OF_OTHER_SETS
    for exhibit in absent:
        assert not exhibit.there
        for answer in exhibit.answers.values():
            assert answer.iou is None
            assert answer.right == (answer.probability < 0.5)
