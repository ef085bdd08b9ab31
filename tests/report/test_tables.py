"""The results as Markdown."""

from pipeline.report.tables import (
    HEADLINES,
    best_guided,
    difference_table,
    reference_model,
    results_table,
    tracked_metrics,
)
from pipeline.tracking import saved_views


def scores(mean_iou: float, macro_f1: float, precision: float) -> dict[str, dict[str, float]]:
    classification = {"macro_f1": macro_f1, "mean_average_precision": precision}
    return {"segmentation": {"mean_iou": mean_iou}, "classification": classification}


METRICS = {
    "pretrained": scores(0.382, 0.5, 0.6),
    "control": scores(0.380, 0.581, 0.711),
    "gain_ext": scores(0.381, 0.52, 0.702),
}


def test_differences_stand_below_the_scores():
    assert results_table(METRICS).splitlines() == [
        "| model | mean IoU | macro F1 | mAP |",
        "|---|---|---|---|",
        "| pretrained | 38.2 | 50.0 | 60.0 |",
        "| control | 38.0 | 58.1 | 71.1 |",
        "| gain_ext | 38.1 | 52.0 | 70.2 |",
        "",
        "| minus pretrained / control | mean IoU | macro F1 | mAP |",
        "|---|---|---|---|",
        "| control | -0.2 / 0 | +8.1 / 0 | +11.1 / 0 |",
        "| gain_ext | -0.1 / +0.1 | +2.0 / -6.1 | +10.2 / -0.9 |",
    ]


def test_models_without_a_reference_have_no_differences():
    assert "minus" not in results_table({"gain": METRICS["gain_ext"]})
    assert "minus" not in results_table({"control": METRICS["control"]})
    assert "minus control" in results_table({name: METRICS[name] for name in ("control", "gain_ext")})
    assert difference_table({}, []) == ""


def test_scores_that_a_model_lacks_are_left_out():
    old = {"segmentation": {"mean_iou": 0.4}, "classification": {"macro_f1": 0.5}}
    header = results_table({"old": old, "new": METRICS["control"]}).splitlines()[0]
    assert header == "| model | mean IoU | macro F1 |"


def test_metrics_of_a_run_are_all_scores_and_the_first_ones_in_percent():
    groups = {
        "segmentation": {"mean_iou": 0.81749, "pixel_accuracy": 0.9},
        "counterfactual": {"background_gap": -0.0249},
        "context_bias": {"object_without_context": 0.5},
    }
    assert tracked_metrics(groups) == {
        "test/mean_iou": 0.81749,
        "test/background_gap": -0.0249,
        "test/pixel_accuracy": 0.9,
        "test/object_without_context": 0.5,
        "mean IoU": 81.7,
        "background gap": -2.5,
    }


def test_columns_of_the_saved_view_are_metrics_of_a_run():
    assert set(saved_views.SCORES) <= set(HEADLINES.values())
    assert max(map(len, saved_views.SCORES)) <= 13  # characters that a column of MLflow shows


def test_control_is_the_reference_and_else_the_network_before():
    assert reference_model(("pretrained", "control", "gain")) == "control"
    assert reference_model(("pretrained", "gain")) == "pretrained"


def test_best_guided_is_chosen_on_validation_images():
    models = {"pretrained": {"attention_iou": 0.9}, "control": {"attention_iou": 0.8}}
    assert best_guided(models) == "control"
    models |= {"gain": {"attention_iou": 0.1}, "gain_ext": {"attention_iou": 0.2}, "unscored": {}}
    assert best_guided(models) == "gain_ext"
