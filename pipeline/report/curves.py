"""Curves of trainings: rows of numbers in, PIL images out. No torch, no files.

Every score comes in as a fraction in [0, 1] and is drawn in percent.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipeline.report.figures import (
    COLOURS,
    add_legend,
    axes_grid,
    label_ends,
    model_colours,
    new_figure,
    rendered,
    style,
    words,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, float]  # one epoch: "epoch" and values by name
Points = Sequence[tuple[float, float]]  # (epoch, value)

# What tells variants apart, where they are compared.
COMPARED = (
    "loss/segmentation",
    "loss/classification",
    "loss/attention_mining",
    "loss/external_supervision",
    "val/mean_iou",
    "val/attention_iou",
)
MAIN_SCORES = ("val/mean_iou", "val/macro_f1", "val/attention_iou", "val/pointing_game")
GRADIENT_NORM = "train/gradient_norm"  # of the whole network; parts follow a slash
MAX_MARKED = 30  # points up to which each is marked; beyond, the line is enough


def training_curves(rows: Sequence[Row], title: str) -> Image.Image:
    """Losses above; gradient norms per part and the main validation scores below.

    Args:
        rows: one per epoch, with "epoch" and any of "loss/NAME", "train/gradient_norm[/PART]" and "val/NAME".
    """
    curves = {key: _curve(rows, key) for key in dict.fromkeys(key for row in rows for key in row)}
    losses = [key for key, points in curves.items() if key.startswith("loss/") and points]
    norms = [key for key, points in curves.items() if key.startswith(GRADIENT_NORM) and points]
    scores = [key for key in MAIN_SCORES if curves.get(key)]
    shared = {name: keys for name, keys in (("gradient norm", norms), ("validation, %", scores)) if keys}
    bands = [names for names in (losses, list(shared)) if names]
    with style():
        figure = new_figure(len(bands), 2.1, title)
        parts = figure.subfigures(len(bands), squeeze=False).flat
        axes = {k: v for part, names in zip(parts, bands, strict=True) for k, v in part.subplot_mosaic([names]).items()}
        for key in losses:
            _draw_epochs(axes[key], {key: curves[key]}, _title(key))
        for name, keys in shared.items():
            lines = {_part(key): curves[key] for key in keys}
            _draw_epochs(axes[name], lines, name, log=name == "gradient norm")
            ends = {label: (points[-1][1], colour) for (label, points), colour in zip(lines.items(), cycle(COLOURS))}
            label_ends(axes[name], ends)
        figure.supxlabel("epoch", fontsize=8)
        return rendered(figure)


def compared_curves(series: Mapping[str, Sequence[Row]], keys: Sequence[str] = COMPARED) -> Image.Image:
    """One axis per key, one line per model; a key that no model has is left out.

    Args:
        series: model to its rows, as in `training_curves`.
    """
    curves = {key: {name: _curve(rows, key) for name, rows in series.items()} for key in keys}
    present = [key for key, lines in curves.items() if any(lines.values())]
    colours = model_colours(series)
    with style():
        figure, axes = axes_grid(present, 2.3)
        for key in present:
            _draw_epochs(axes[key], curves[key], _title(key), colours.values(), log=key.startswith(GRADIENT_NORM))
        add_legend(figure, colours, loc="outside upper left")
        figure.supxlabel("epoch", fontsize=8)
        return rendered(figure)


def learning_rate_chart(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], suggestion: float | None, title: str
) -> Image.Image:
    """Loss over a rising learning rate (log axis): each step faint, smoothed strong, the suggested rate marked.

    Args:
        rates: > 0, one per step, as `losses` and `smoothed`; a loss that is not finite is a gap.
    """
    with style():
        figure = new_figure(1, 3.6, title)
        axis = figure.subplots()
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.plot(rates, _gaps(losses), color=COLOURS[0], alpha=0.3, linewidth=0.8)
        axis.plot(rates, _gaps(smoothed), color=COLOURS[0], linewidth=1.8)
        finite = [value for value in smoothed if math.isfinite(value)]
        if finite:
            # Past four times its lowest the loss has diverged; the descent before it is what must be seen.
            low, top = min(finite), min(max(finite), max(finite[0], 4 * min(finite)))
            margin = 0.15 * (top - low) or 0.5
            axis.set_ylim(low - margin, top + margin)
        if suggestion is not None:
            axis.axvline(suggestion, color=COLOURS[1], linewidth=1.2)
            axis.annotate(
                f"suggested: {suggestion:.2g}", (suggestion, 1), (0, 2), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="center", color=COLOURS[1],
            )  # fmt: skip
        axis.set(xlabel="learning rate", ylabel="training loss")
        return rendered(figure)


def _curve(rows: Sequence[Row], key: str) -> Points:
    """(epoch, value) where the value is there and finite."""
    scale = 100 if key.startswith("val/") else 1
    points = [(row["epoch"], scale * row[key]) for row in rows if math.isfinite(row.get(key, math.nan))]
    # A frozen part's norm is 0 and has no place on a log axis.
    return [(epoch, value) for epoch, value in points if value > 0] if key.startswith(GRADIENT_NORM) else points


def _draw_epochs(
    axis: "Axes", lines: Mapping[str, Points], title: str, colours: Iterable[str] = COLOURS, *, log: bool = False
) -> None:
    from matplotlib.ticker import MaxNLocator

    for points, colour in zip(lines.values(), cycle(colours)):
        marker = "o" if len(points) <= MAX_MARKED else None
        axis.plot([x for x, _ in points], [y for _, y in points], color=colour, marker=marker)
    epochs, values = zip(*(point for points in lines.values() for point in points), strict=True)
    axis.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axis.set_title(title)
    if log:
        ticks = _log_ticks(min(values), max(values))
        axis.set_yscale("log")
        axis.minorticks_off()
        axis.set_ylim(0.9 * ticks[0], 1.1 * ticks[-1])  # a mark on the last tick must not be cut
        axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade, or decades alone where those are many, around [low, high]."""
    for mantissas in ((1, 2, 5), (1,)):
        steps = np.outer(10.0 ** np.arange(-20, 21), mantissas).ravel()
        first, last = np.searchsorted(steps, low, side="right") - 1, np.searchsorted(steps, high, side="left")
        ticks: list[float] = steps[max(first, 0) : max(last, first + 1) + 1].tolist()
        if len(ticks) <= 6:
            break
    return ticks


def _title(key: str) -> str:
    group, _, name = key.partition("/")
    return words(name or group) + {"loss": " loss", "val": ", %"}.get(group, "")


def _part(key: str) -> str:
    return "whole network" if key == GRADIENT_NORM else words(key.rpartition("/")[2])


def _gaps(values: Sequence[float]) -> list[float]:
    return [value if math.isfinite(value) else math.nan for value in values]
