import math
import subprocess
import sys
from itertools import pairwise

import matplotlib
import numpy as np
import pytest

from pipeline.report.charts import class_bars, confusion_chart
from pipeline.report.curves import compared_curves, learning_rate_chart, training_curves
from pipeline.report.figures import COLOURS, FAINT
from pipeline.report.study_charts import interval_chart, label_count_curve

ROWS = [
    {
        "epoch": epoch,
        "loss/segmentation": 1 / epoch,
        "loss/attention_mining": 0.7 - 0.01 * epoch,
        "loss/total": 1.5 / epoch,
        "train/learning_rate": 1e-3 / epoch,
        "train/gradient_norm": 4 / epoch,
        "train/gradient_norm/trunk": 3 / epoch,
        "val/mean_iou": 0.6 - 0.3 / epoch,
        "val/macro_f1": 0.9 - 0.3 / epoch,
        "val/attention_iou": 0.4 - 0.1 / epoch,
        "val/pointing_game": 0.9 - 0.3 / epoch,  # ends where macro_f1 does
    }
    for epoch in range(1, 5)
]
OTHER_ROWS = [row | {"val/mean_iou": row["val/mean_iou"] - 0.05} for row in ROWS]
SERIES = {"control": ROWS, "gain": OTHER_ROWS}
CONFUSION = np.array([[900, 50, 50], [20, 70, 10], [30, 0, 20]])
NAMES = ["background", "boat", "cow"]
BARS = {"control": {"boat": 0.5, "cow": 0.75}, "gain": {"boat": 0.4, "cow": 0.8}}
RATES = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
RAW, SMOOTHED = [2.1, 1.9, 1.2, 0.9, 3.0], [2.1, 2.0, 1.5, 1.0, 2.5]
POINTS = {
    "attention_iou": [(0.01, 0.30, 0.28, 0.33), (0.1, 0.40, 0.39, 0.42), (0.5, 0.45, 0.4, 0.5)],
    "mean_iou": [(0.01, 0.6, 0.6, 0.6)],
}
INTERVALS = {
    "mean_iou": {"control": (0.60, 0.58, 0.62), "gain": (0.50, 0.45, 0.55)},
    "macro_f1": {"control": (0.90, 0.89, 0.91), "gain": (0.80, 0.75, 0.85)},
}

CHARTS = {
    "training": lambda: training_curves(ROWS, "title"),
    "compared": lambda: compared_curves(SERIES, ["val/mean_iou", "loss/total", "train/gradient_norm"]),
    "confusion": lambda: confusion_chart(CONFUSION, NAMES, "title"),
    "bars": lambda: class_bars(BARS, "title"),
    "learning rate": lambda: learning_rate_chart(RATES, RAW, SMOOTHED, 2e-3, "title"),
    "label count": lambda: label_count_curve(POINTS, {"attention_iou": 0.35}),
    "interval": lambda: interval_chart(INTERVALS, "title", reference="control"),
}
every_chart = pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS.keys())


def of_colour(image, colour: str) -> np.ndarray:
    """(H, W) bool."""
    return (np.asarray(image) == np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])).all(axis=-1)


def centre(image, colour: str) -> tuple[float, float]:
    rows, columns = np.nonzero(of_colour(image, colour))
    return float(rows.mean()), float(columns.mean())


def without(row: dict[str, float], key: str) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != key}


@every_chart
def test_charts_are_wide_enough_drawn_and_clip_nothing_at_the_border(chart):
    image = chart()
    pixels = np.asarray(image)
    assert image.mode == "RGB"
    assert 1000 <= image.width <= 1500
    assert 200 <= image.height <= 1500
    assert (pixels < 128).any(axis=-1).sum() > 1000
    for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert (edge == 255).all()


@every_chart
def test_equal_numbers_are_equal_pixels_whatever_the_readers_settings(chart):
    first = chart().tobytes()
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black", "xtick.direction": "in"}):
        before = dict(matplotlib.rcParams)
        assert chart().tobytes() == first
        assert dict(matplotlib.rcParams) == before


@pytest.mark.system
def test_charts_need_neither_pyplot_nor_torch_and_matplotlib_only_to_draw():
    script = (
        "import sys; from pipeline.report.charts import confusion_chart; import numpy as np\n"
        "assert 'matplotlib' not in sys.modules\n"
        "confusion_chart(np.eye(2), ['background', 'cow'], 'title')\n"
        "assert 'matplotlib' in sys.modules\n"
        "assert not {'matplotlib.pyplot', 'torch'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


CHANGED = {
    "training: a loss": lambda: training_curves([*ROWS[:-1], ROWS[-1] | {"loss/total": 1.0}], "title"),
    "training: a norm": lambda: training_curves([*ROWS[:-1], ROWS[-1] | {"train/gradient_norm": 1.2}], "title"),
    "training: a score": lambda: training_curves([*ROWS[:-1], ROWS[-1] | {"val/mean_iou": 0.55}], "title"),
    "training: the title": lambda: training_curves(ROWS, "another title"),
    "compared: a model": lambda: compared_curves(
        SERIES | {"gain": ROWS}, ["val/mean_iou", "loss/total", "train/gradient_norm"]
    ),
    "confusion: a count": lambda: confusion_chart(CONFUSION + np.diag([0, 10, 0]), NAMES, "title"),
    "confusion: transposed": lambda: confusion_chart(CONFUSION.T, NAMES, "title"),
    "bars: a value": lambda: class_bars(BARS | {"gain": {"boat": 0.41, "cow": 0.8}}, "title"),
    "bars: the unit": lambda: class_bars(BARS, "title", "recall, %"),
    "learning rate: a loss": lambda: learning_rate_chart(RATES, [2.3, *RAW[1:]], SMOOTHED, 2e-3, "title"),
    "learning rate: the curve": lambda: learning_rate_chart(RATES, RAW, [2.2, *SMOOTHED[1:]], 2e-3, "title"),
    "label count: a bar": lambda: label_count_curve(
        POINTS | {"mean_iou": [(0.01, 0.6, 0.58, 0.6)]}, {"attention_iou": 0.35}
    ),
    "label count: the control": lambda: label_count_curve(POINTS, {"attention_iou": 0.36}),
    "interval: an end": lambda: interval_chart(
        INTERVALS | {"macro_f1": {"control": (0.90, 0.88, 0.91), "gain": (0.80, 0.75, 0.85)}}, "title", "control"
    ),
    "interval: the reference": lambda: interval_chart(INTERVALS, "title", "gain"),
}


@pytest.mark.parametrize(("name", "changed"), CHANGED.items(), ids=CHANGED.keys())
def test_every_number_shows(name, changed):
    before, after = CHARTS[name.split(":")[0]](), changed()
    assert before.size == after.size
    assert before.tobytes() != after.tobytes()


def test_a_value_that_is_missing_or_no_number_leaves_the_curve_out_there():
    missing = [without(row, "val/mean_iou") if row["epoch"] == 2 else row for row in ROWS]
    for absent in (math.nan, math.inf):
        holed = [row | {"val/mean_iou": absent} if row["epoch"] == 2 else row for row in ROWS]
        assert training_curves(missing, "") == training_curves(holed, "")
    assert training_curves(missing, "") != training_curves(ROWS, "")


def test_a_loss_of_no_row_has_no_axis():
    never = [row | {"loss/attention_mining": math.nan} for row in ROWS]
    fewer = training_curves([without(row, "loss/attention_mining") for row in ROWS], "")
    assert training_curves(never, "") == fewer != training_curves(ROWS, "")


def test_a_frozen_part_has_no_gradient_norm_to_draw():
    frozen = [row | {"train/gradient_norm/trunk": 0.0} for row in ROWS]
    assert training_curves(frozen, "") == training_curves(
        [without(row, "train/gradient_norm/trunk") for row in ROWS], ""
    )


@pytest.mark.parametrize("kept", ["loss/total", "train/gradient_norm", "val/mean_iou"])
def test_one_epoch_of_one_value_is_one_mark(kept):
    image = training_curves([{"epoch": 1, kept: 0.5}], "")
    assert of_colour(image, COLOURS[0])[:, : image.width * 3 // 4].sum() > 20


def test_names_of_lines_that_end_together_are_apart():
    image = training_curves(ROWS, "")
    names = image.crop((image.width - 100, image.height // 2, image.width, image.height))
    places = [np.nonzero(of_colour(names, colour).any(axis=1))[0] for colour in COLOURS[:4]]
    spans = sorted((int(rows.min()), int(rows.max())) for rows in places)
    assert all(upper[1] < lower[0] for upper, lower in pairwise(spans))


def test_a_model_keeps_its_colour_where_another_lacks_the_key():
    lacking = {"control": [without(row, "val/mean_iou") for row in ROWS], "gain": OTHER_ROWS}
    both, alone = (compared_curves(series, ["val/mean_iou"]) for series in (SERIES, lacking))
    legend = 60  # pixels
    body = [of_colour(image, COLOURS[0])[legend:].sum() for image in (both, alone)]
    assert body[0] > 500
    assert body[1] == 0
    assert of_colour(alone, COLOURS[1])[legend:].sum() > 500


def test_a_key_of_no_model_has_no_axis():
    assert compared_curves(SERIES, ["val/mean_iou", "val/unheard_of"]) == compared_curves(SERIES, ["val/mean_iou"])


def test_confusion_is_a_share_of_its_row():
    scaled = CONFUSION * np.array([[1], [7], [3]])
    assert confusion_chart(scaled, NAMES, "title") == CHARTS["confusion"]()


def test_a_class_without_pixels_is_a_grey_row():
    absent = CONFUSION * np.array([[1], [0], [1]])
    image = confusion_chart(absent, NAMES, "title")
    grey = of_colour(image, FAINT)
    assert grey.sum() > 0.15 * grey.size
    assert of_colour(CHARTS["confusion"](), FAINT).sum() < 100  # edges of letters


@pytest.mark.parametrize(("num_classes", "numbered"), [(12, True), (13, False), (21, False)])
def test_cells_hold_numbers_while_they_fit(num_classes, numbered):
    names = ["background", *(f"class number {i}" for i in range(1, num_classes))]
    image = confusion_chart(np.eye(num_classes), names, "title")
    assert (len(image.crop((400, 400, 600, 600)).getcolors(10_000)) > 2) == numbered


def test_an_absent_class_is_not_a_score_of_zero():
    absent, nan, zero = (
        class_bars(BARS | {"gain": {"cow": 0.8, **boat}}, "") for boat in ({}, {"boat": math.nan}, {"boat": 0.0})
    )
    assert absent == nan != zero


def test_bars_are_as_high_as_their_values():
    image = class_bars({"control": {"boat": 0.25, "cow": 0.5}}, "")
    heights = of_colour(image, COLOURS[0])[80:].sum(axis=0)  # without the legend
    boat, cow = heights[: image.width // 2].max(), heights[image.width // 2 :].max()
    assert cow == pytest.approx(2 * boat, abs=3)


def test_twenty_one_classes_of_many_models_fit():
    values = {f"model {i}": {f"a long class name {j}": 0.5 for j in range(21)} for i in range(4)}
    pixels = np.asarray(class_bars(values, "title"))
    assert (pixels[:, :3] == 255).all()
    assert (pixels[-3:] == 255).all()


def test_the_suggested_rate_moves_its_line():
    none, low, high = (learning_rate_chart(RATES, RAW, SMOOTHED, rate, "") for rate in (None, 1e-4, 1e-2))
    assert of_colour(none, COLOURS[1]).sum() == 0
    # The axis runs over four decades and a margin, the two rates are two decades apart.
    assert 0.35 * low.width < centre(high, COLOURS[1])[1] - centre(low, COLOURS[1])[1] < 0.5 * low.width


def test_divergence_does_not_flatten_the_descent():
    image = learning_rate_chart(RATES, [*RAW[:4], math.nan], [*SMOOTHED[:4], 1e6], None, "")
    left = of_colour(image, COLOURS[0])[:, : image.width // 2].any(axis=1)
    assert left.sum() > image.height // 10


def test_points_come_in_any_order_and_the_control_is_optional():
    turned = {name: [of_score[-1], *of_score[:-1]] for name, of_score in POINTS.items()}
    assert label_count_curve(turned, {"attention_iou": 0.35}) == CHARTS["label count"]()
    assert label_count_curve(POINTS, {"attention_iou": math.nan}) == label_count_curve(POINTS, {})
    assert label_count_curve(POINTS, {}) != CHARTS["label count"]()


def test_intervals_stand_in_order_at_their_means():
    image = interval_chart({"mean_iou": INTERVALS["mean_iou"]})
    (control_row, control_column), (gain_row, gain_column) = (centre(image, colour) for colour in COLOURS[:2])
    assert control_row < gain_row
    assert control_column > gain_column
    lengths = [of_colour(image, colour).any(axis=0).sum() for colour in COLOURS[:2]]
    assert lengths[1] == pytest.approx(2.5 * lengths[0], rel=0.05)


def test_a_model_without_a_score_keeps_its_line_free():
    lacking, nan = (
        INTERVALS | {"macro_f1": {"control": (0.90, 0.89, 0.91), **gain}} for gain in ({}, {"gain": (math.nan,) * 3})
    )
    assert interval_chart(lacking, "", "gain") == interval_chart(nan, "", "gain")
    image = interval_chart(lacking)
    right = image.crop((image.width // 2, 0, image.width, image.height))
    assert of_colour(right, COLOURS[0]).any()
    assert not of_colour(right, COLOURS[1]).any()


def test_names_are_taken_letter_for_letter():
    class_bars({"$x_{$": {"$^$": 0.5}}, "a $\\frac$ of")


def test_nothing_to_draw_is_refused(refused):
    assert "no finite number" in refused(training_curves, [], "title")
    assert "title" in refused(training_curves, [{"epoch": 1, "loss/total": math.nan}], "title")
    refused(compared_curves, SERIES, ["val/unheard_of"])
    refused(class_bars, {"control": {}}, "title")
    refused(label_count_curve, {}, {})
    refused(interval_chart, {})
