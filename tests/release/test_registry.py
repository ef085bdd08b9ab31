"""Which variant becomes the challenger."""

import pytest

from pipeline.base.errors import PipelineError
from pipeline.release.registry import explain_choice, select_variant

VALIDATION = {"control": {"mean_iou": 0.9}, "gain": {"mean_iou": 0.5, "macro_f1": 0.8}, "gain_ext": {"mean_iou": 0.6}}


def test_challenger_is_the_candidate_with_the_highest_score():
    assert select_variant(VALIDATION, ["gain", "gain_ext"], "mean_iou") == "gain_ext"
    assert select_variant(VALIDATION, ["gain"], "mean_iou") == "gain"
    assert select_variant({"a": {"mean_iou": 0.5}, "b": {"mean_iou": 0.5}}, ["b", "a"], "mean_iou") == "b"
    assert explain_choice(VALIDATION, ["gain", "gain_ext"], "mean_iou") == (
        "mean_iou on validation images: gain 50.0, gain_ext 60.0"
    )


@pytest.mark.parametrize(
    ("validation", "problem"),
    [
        (VALIDATION, "'macro_f1' is unknown for gain_ext, which has mean_iou"),
        ({"gain": {"macro_f1": 0.8}}, "'macro_f1' is unknown for gain_ext, which has nothing; it was not evaluated"),
        ({"gain": {"macro_f1": float("nan")}}, "macro_f1 of gain is nan on the validation images"),
    ],
)
def test_without_a_score_of_every_candidate_nothing_is_chosen(validation, problem):
    with pytest.raises(PipelineError, match=problem):
        select_variant(validation, ["gain", "gain_ext"], "macro_f1")
