"""Charts of several seeds: means with their spread or interval in, PIL images out. No torch, no files.

Every score comes in as a fraction in [0, 1] and is drawn in percent.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.report.figures import ABSENT, COLOURS, MUTED, axes_grid, label_ends, model_colours, rendered, style, words


class Mean(NamedTuple):
    """A score and the ends of its whisker, fractions."""

    mean: float
    low: float
    high: float


class ShareMean(NamedTuple):
    """A score at one share of training images with masks; low and high are the spread over seeds."""

    share: float  # in (0, 1]
    mean: float
    low: float
    high: float


MISSING = Mean(math.nan, math.nan, math.nan)


def interval_chart(
    values: Mapping[str, Mapping[str, Mean]], title: str = "", reference: str | None = None
) -> Image.Image:
    """One axis per score, one line per model: dot = mean, whisker = low to high, the mean as a number at the right.

    Args:
        values: score to model to its mean; NaN or no entry = absent.
        reference: model whose mean runs down each axis as a dashed line.
    """
    models = list(dict.fromkeys(name for of_score in values.values() for name in of_score))
    with style():
        figure, axes = axes_grid(list(values), 0.6 + 0.19 * len(models), title, columns=3, sharey=True)
        for score, of_score in values.items():
            axis = axes[score]
            for place, (name, colour) in enumerate(model_colours(models).items()):
                mean, low, high = (100 * value for value in of_score.get(name, MISSING))
                axis.hlines(place, low, high, color=colour, linewidth=1.6)
                axis.plot(mean, place, "o", color=colour, markersize=4.5)
                text = ABSENT if math.isnan(mean) else f"{mean:.1f}"
                axis.annotate(
                    text, (1, place), (21, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                    ha="right", va="center", fontsize=7,
                )  # fmt: skip
                if name == reference:
                    axis.axvline(mean, color=MUTED, linestyle="--", linewidth=0.8, zorder=1)
            axis.set_yticks(range(len(models)), models)
            axis.set_ylim(len(models) - 0.5, -0.5)
            axis.locator_params(axis="x", nbins=5)
            axis.tick_params(axis="y", length=0)
            axis.set_title(words(score) + ", %")
        dashes = f"; dashes: {reference}" if reference in models else ""
        figure.supxlabel(f"dot and number: mean over seeds; line: 95 % interval over images{dashes}", fontsize=8)
        return rendered(figure)


def label_count_curve(points: Mapping[str, Sequence[ShareMean]], baselines: Mapping[str, float]) -> Image.Image:
    """One axis per score: the score over the share of training images with masks, and the control's as a dashed line.

    Args:
        points: score to its mean at each share.
        baselines: score to the control's value.
    """
    with style():
        figure, axes = axes_grid(list(points), 2.6)
        for name, of_score in points.items():
            axis, columns = axes[name], 100 * np.array(sorted(of_score)).reshape(-1, 4).T
            shares, means, lows, highs = columns
            axis.vlines(shares, lows, highs, color=COLOURS[0], alpha=0.45, linewidth=3)
            axis.plot(shares, means, color=COLOURS[0], marker="o", markersize=4)
            axis.set_xscale("log")
            axis.minorticks_off()
            axis.set_xticks(shares, [f"{share:.3g}" for share in shares])
            axis.set_title(words(name) + ", %")
            control = 100 * baselines.get(name, math.nan)
            if math.isfinite(control):
                axis.axhline(control, color=MUTED, linestyle="--", linewidth=1)
                label_ends(axis, {"control": (control, MUTED)})
        figure.supxlabel(
            "training images with masks, % (dot: mean over seeds; bar: lowest and highest seed; dashes: control)",
            fontsize=8,
        )
        return rendered(figure)
