"""Charts of one evaluation: confusions and scores by class in, PIL images out. No torch, no files.

Every score comes in as a fraction in [0, 1] and is drawn in percent.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.report.figures import (
    ABSENT,
    FAINT,
    INK,
    MUTED,
    add_legend,
    model_colours,
    name_ticks,
    new_figure,
    rendered,
    style,
)

MAX_NUMBERED_CLASSES = 12
MAX_NUMBERED_BARS = 48


def confusion_chart(confusion: NDArray[Any], class_names: Sequence[str], title: str) -> Image.Image:
    """Share of each true class's pixels by predicted class, in percent; a class without pixels is a grey row.

    Args:
        confusion: (N, N) counts, rows = truth.
        class_names: N, background first.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    percent = 100 * counts / np.where(totals > 0, totals, np.nan)
    with style():
        from matplotlib import colormaps
        from matplotlib.colors import PowerNorm

        figure = new_figure(1, 6.6, title, width=7.5)
        axis = figure.subplots()
        axis.grid(visible=False)
        # A square root on the colours: confusions of a few percent, the ones to look for, would be white otherwise.
        colours = colormaps["Blues"].with_extremes(bad=FAINT)
        picture = axis.imshow(
            percent, cmap=colours, norm=PowerNorm(0.5, 0, 100), interpolation="nearest", aspect="auto"
        )
        bar = figure.colorbar(picture, ax=axis, aspect=50, pad=0.02, ticks=(0, 1, 5, 10, 25, 50, 75, 100))
        bar.outline.set_visible(False)
        name_ticks(axis, class_names)
        axis.set_yticks(range(len(class_names)), class_names)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set(xlabel="predicted", ylabel="truth, % of its pixels")
        if len(counts) <= MAX_NUMBERED_CLASSES:
            for (row, column), value in np.ndenumerate(percent):
                text = "" if math.isnan(value) else "0" if value == 0 else f"{value:.1f}"
                colour = "white" if value > 35 else MUTED if value == 0 else INK
                axis.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour)
        return rendered(figure)


def class_bars(values: Mapping[str, Mapping[str, float]], title: str, y_label: str = "IoU, %") -> Image.Image:
    """A group of bars per class, a bar per model; a dash where a model has no number.

    Args:
        values: model to class to a fraction; NaN or no entry = absent.
    """
    classes = list(dict.fromkeys(name for of_model in values.values() for name in of_model))
    width = 0.84 / max(len(values), 1)
    numbered = len(values) * len(classes) <= MAX_NUMBERED_BARS
    colours = model_colours(values)
    with style():
        figure = new_figure(min(len(classes), 1), 3.6, title)
        axis = figure.subplots()
        for number, (of_model, colour) in enumerate(zip(values.values(), colours.values(), strict=True)):
            heights = 100 * np.array([of_model.get(name, math.nan) for name in classes])
            places = np.arange(len(classes)) + (number - (len(values) - 1) / 2) * width
            axis.bar(places, heights, width=0.92 * width, color=colour)
            for place, height in zip(places, heights, strict=True):
                text = ABSENT if math.isnan(height) else f"{height:.0f}" if numbered else ""
                y = 0 if math.isnan(height) else height
                axis.annotate(
                    text, (place, y), (0, 1.5), textcoords="offset points", ha="center", fontsize=6.5, color=MUTED
                )
        name_ticks(axis, classes)
        axis.tick_params(axis="x", length=0)
        axis.grid(visible=False, axis="x")
        axis.set(xlim=(-0.5, len(classes) - 0.5), ylim=(0, 104), ylabel=y_label)
        if any(math.isnan(of_model.get(name, math.nan)) for of_model in values.values() for name in classes):
            axis.set_xlabel(f"{ABSENT} nothing to score")
        add_legend(axis, colours, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
        return rendered(figure)
