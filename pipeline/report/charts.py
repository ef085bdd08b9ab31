"""Charts of numbers: curves, bars and intervals in, PIL images out. No torch, no files.

Every score comes in as a fraction in [0, 1] and is drawn in percent. A model keeps its colour from chart to chart as
long as the models come in the same order.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.base.errors import PipelineError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
DPI = 150
WIDTH = 9.5  # inches
# Okabe and Ito's colours, told apart by colour-blind readers; their yellow, too faint on white, is an olive here. The
# last two are for studies of many variants.
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d", "#8a8a00", "#7b3294", "#8c510a",
)  # fmt: skip
INK, MUTED, FAINT = "#333333", "#777777", "#e4e4e4"
STYLE: Mapping[str, object] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same pixels on every machine
    "font.size": 8,
    "text.color": INK,
    "text.parse_math": False,  # names of models and classes may hold a dollar sign
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.labelsize": 8,
    "axes.edgecolor": "#aaaaaa",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.formatter.limits": (-4, 5),
    "axes.formatter.useoffset": False,
    "figure.constrained_layout.wspace": 0.08,  # what stands right of an axis must not seem the next one's label
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": "#aaaaaa",
    "xtick.labelcolor": INK,
    "xtick.labelsize": 7.5,
    "ytick.color": "#aaaaaa",
    "ytick.labelcolor": INK,
    "ytick.labelsize": 7.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 3,
    "legend.frameon": False,
}
MAIN_SCORES = ("val/mean_iou", "val/macro_f1", "val/attention_iou", "val/pointing_game")
GRADIENT_NORM = "train/gradient_norm"  # of the whole network; parts follow a slash
SPELLING = {"iou": "IoU", "f1": "F1"}
MAX_MARKED = 30  # points up to which each is marked; beyond, the line is enough
MAX_NUMBERED_CLASSES = 12
MAX_NUMBERED_BARS = 48
ABSENT = "\u2013"


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
    with _style():
        figure = _figure(len(bands), 2.1, title)
        parts = figure.subfigures(len(bands), squeeze=False).flat
        axes = {k: v for part, names in zip(parts, bands, strict=True) for k, v in part.subplot_mosaic([names]).items()}
        for key in losses:
            _draw_epochs(axes[key], {key: curves[key]}, _title(key))
        for name, keys in shared.items():
            lines = {_part(key): curves[key] for key in keys}
            _draw_epochs(axes[name], lines, name, log=name == "gradient norm")
            ends = {label: (points[-1][1], colour) for (label, points), colour in zip(lines.items(), cycle(COLOURS))}
            _label_ends(axes[name], ends)
        figure.supxlabel("epoch", fontsize=8)
        return _image(figure)


def compared_curves(series: Mapping[str, Sequence[Row]], keys: Sequence[str] = COMPARED) -> Image.Image:
    """One axis per key, one line per model; a key that no model has is left out.

    Args:
        series: model to its rows, as in `training_curves`.
    """
    curves = {key: {name: _curve(rows, key) for name, rows in series.items()} for key in keys}
    present = [key for key, lines in curves.items() if any(lines.values())]
    with _style():
        figure, axes = _grid(present, 2.3)
        for key in present:
            _draw_epochs(axes[key], curves[key], _title(key), log=key.startswith(GRADIENT_NORM))
        _legend(figure, list(series), loc="outside upper left")
        figure.supxlabel("epoch", fontsize=8)
        return _image(figure)


def confusion_chart(confusion: NDArray[Any], class_names: Sequence[str], title: str) -> Image.Image:
    """Share of each true class's pixels by predicted class, in percent; a class without pixels is a grey row.

    Args:
        confusion: (N, N) counts, rows = truth.
        class_names: N, background first.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    percent = 100 * counts / np.where(totals > 0, totals, np.nan)
    with _style():
        from matplotlib import colormaps
        from matplotlib.colors import PowerNorm

        figure = _figure(1, 6.6, title, width=7.5)
        axis = figure.subplots()
        axis.grid(visible=False)
        # A square root on the colours: confusions of a few percent, the ones to look for, would be white otherwise.
        colours = colormaps["Blues"].with_extremes(bad=FAINT)
        picture = axis.imshow(
            percent, cmap=colours, norm=PowerNorm(0.5, 0, 100), interpolation="nearest", aspect="auto"
        )
        bar = figure.colorbar(picture, ax=axis, aspect=50, pad=0.02, ticks=(0, 1, 5, 10, 25, 50, 75, 100))
        bar.outline.set_visible(False)
        _name_ticks(axis, class_names)
        axis.set_yticks(range(len(class_names)), class_names)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set(xlabel="predicted", ylabel="truth, % of its pixels")
        if len(counts) <= MAX_NUMBERED_CLASSES:
            for (row, column), value in np.ndenumerate(percent):
                text = "" if math.isnan(value) else "0" if value == 0 else f"{value:.1f}"
                colour = "white" if value > 35 else MUTED if value == 0 else INK
                axis.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour)
        return _image(figure)


def class_bars(values: Mapping[str, Mapping[str, float]], title: str, y_label: str = "IoU, %") -> Image.Image:
    """A group of bars per class, a bar per model; a dash where a model has no number.

    Args:
        values: model to class to a fraction; NaN or no entry = absent.
    """
    classes = list(dict.fromkeys(name for of_model in values.values() for name in of_model))
    width = 0.84 / max(len(values), 1)
    numbered = len(values) * len(classes) <= MAX_NUMBERED_BARS
    with _style():
        figure = _figure(min(len(classes), 1), 3.6, title)
        axis = figure.subplots()
        for number, (of_model, colour) in enumerate(zip(values.values(), cycle(COLOURS))):
            heights = 100 * np.array([of_model.get(name, math.nan) for name in classes])
            places = np.arange(len(classes)) + (number - (len(values) - 1) / 2) * width
            axis.bar(places, heights, width=0.92 * width, color=colour)
            for place, height in zip(places, heights, strict=True):
                text = ABSENT if math.isnan(height) else f"{height:.0f}" if numbered else ""
                y = 0 if math.isnan(height) else height
                axis.annotate(
                    text, (place, y), (0, 1.5), textcoords="offset points", ha="center", fontsize=6.5, color=MUTED
                )
        _name_ticks(axis, classes)
        axis.tick_params(axis="x", length=0)
        axis.grid(visible=False, axis="x")
        axis.set(xlim=(-0.5, len(classes) - 0.5), ylim=(0, 104), ylabel=y_label)
        _legend(axis, list(values), loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
        return _image(figure)


def learning_rate_chart(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], suggestion: float | None, title: str
) -> Image.Image:
    """Loss over a rising learning rate (log axis): each step faint, smoothed strong, the suggested rate marked.

    Args:
        rates: > 0, one per step, as `losses` and `smoothed`; a loss that is not finite is a gap.
    """
    with _style():
        figure = _figure(1, 3.6, title)
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
        return _image(figure)


def label_count_curve(
    points: Mapping[str, Sequence[tuple[float, float, float, float]]], baselines: Mapping[str, float]
) -> Image.Image:
    """One axis per score: the score over the share of training images with masks, and the control's as a dashed line.

    Args:
        points: score to (share in (0, 1], mean, low, high); low and high are the spread over seeds.
        baselines: score to the control's value.
    """
    with _style():
        figure, axes = _grid(list(points), 2.6)
        for name, of_score in points.items():
            axis, columns = axes[name], 100 * np.array(sorted(of_score)).reshape(-1, 4).T
            shares, means, lows, highs = columns
            axis.vlines(shares, lows, highs, color=COLOURS[0], alpha=0.45, linewidth=3)
            axis.plot(shares, means, color=COLOURS[0], marker="o", markersize=4)
            axis.set_xscale("log")
            axis.minorticks_off()
            axis.set_xticks(shares, [f"{share:.3g}" for share in shares])
            axis.set_title(_words(name) + ", %")
            control = 100 * baselines.get(name, math.nan)
            if math.isfinite(control):
                axis.axhline(control, color=MUTED, linestyle="--", linewidth=1)
                _label_ends(axis, {"control": (control, MUTED)})
        figure.supxlabel("training images with masks, %", fontsize=8)
        return _image(figure)


def interval_chart(
    values: Mapping[str, Mapping[str, tuple[float, float, float]]], title: str = "", reference: str | None = None
) -> Image.Image:
    """One axis per score, one line per model: dot = mean, whisker = low to high, the mean as a number at the right.

    Args:
        values: score to model to (mean, low, high), fractions; NaN or no entry = absent.
        reference: model whose mean runs down each axis as a dashed line.
    """
    models = list(dict.fromkeys(name for of_score in values.values() for name in of_score))
    with _style():
        figure, axes = _grid(list(values), 0.6 + 0.19 * len(models), title, columns=3, sharey=True)
        for score, of_score in values.items():
            axis = axes[score]
            for place, (name, colour) in enumerate(zip(models, cycle(COLOURS))):
                mean, low, high = (100 * value for value in of_score.get(name, (math.nan,) * 3))
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
            axis.set_title(_words(score) + ", %")
        return _image(figure)


def _curve(rows: Sequence[Row], key: str) -> Points:
    """(epoch, value) where the value is there and finite."""
    scale = 100 if key.startswith("val/") else 1
    points = [(row["epoch"], scale * row[key]) for row in rows if math.isfinite(row.get(key, math.nan))]
    # A frozen part's norm is 0 and has no place on a log axis.
    return [(epoch, value) for epoch, value in points if value > 0] if key.startswith(GRADIENT_NORM) else points


def _draw_epochs(axis: "Axes", lines: Mapping[str, Points], title: str, *, log: bool = False) -> None:
    from matplotlib.ticker import MaxNLocator

    for points, colour in zip(lines.values(), cycle(COLOURS)):
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


def _label_ends(axis: "Axes", ends: Mapping[str, tuple[float, str]], gap: float = 0.1) -> None:
    """Name lines right of the axis; ends maps a name to (y, colour), gap is the least distance over the height."""
    low, high = axis.get_ylim()
    axis.set_ylim(low, high)  # the places below hold for these limits only
    to_axes = axis.transScale + axis.transLimits
    places = sorted((float(to_axes.transform((axis.get_xlim()[1], y))[1]), name) for name, (y, _) in ends.items())
    place = -gap
    for number, (wanted, name) in enumerate(places):
        room_above = 1 - gap * (len(places) - 1 - number)
        place = max(place + gap, min(wanted, room_above))
        axis.annotate(
            name, (1, place), (5, 0), xycoords="axes fraction", textcoords="offset points", va="center",
            color=ends[name][1], fontsize=7.5,
        )  # fmt: skip


def _name_ticks(axis: "Axes", names: Sequence[str]) -> None:
    level = len(names) * max(map(len, names)) <= 80
    axis.set_xticks(range(len(names)), names)
    if not level:
        axis.tick_params(axis="x", rotation=45)
        for label in axis.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


def _legend(owner: "Figure | Axes", names: Sequence[str], **place: object) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=colour, linewidth=3) for _, colour in zip(names, cycle(COLOURS))]
    columns = max(1, 130 // (max(map(len, names)) + 8))  # characters of the line height that fit the width
    owner.legend(lines, names, ncols=columns, handlelength=1.2, **place)


def _title(key: str) -> str:
    group, _, name = key.partition("/")
    return _words(name or group) + {"loss": " loss", "val": ", %"}.get(group, "")


def _part(key: str) -> str:
    return "whole network" if key == GRADIENT_NORM else _words(key.rpartition("/")[2])


def _words(name: str) -> str:
    return " ".join(SPELLING.get(word, word) for word in name.replace("/", ", ").replace("_", " ").split())


def _gaps(values: Sequence[float]) -> list[float]:
    return [value if math.isfinite(value) else math.nan for value in values]


@contextmanager
def _style() -> Iterator[None]:
    """STYLE over matplotlib's defaults, whatever the reader's own settings; those are back on leaving."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def _figure(num_rows: int, row_height: float, title: str = "", *, width: float = WIDTH) -> "Figure":
    """An empty figure for rows of axes; row_height and width in inches.

    Raises:
        PipelineError: there is no row.
    """
    from matplotlib.figure import Figure

    if not num_rows:
        raise PipelineError(f"chart {title!r} has no finite number to draw; pass at least one epoch, class or score")
    figure = Figure(figsize=(width, 0.5 + num_rows * row_height), dpi=DPI, layout="constrained")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def _grid(
    names: Sequence[str], row_height: float, title: str = "", *, columns: int = 4, sharey: bool = False
) -> "tuple[Figure, dict[str, Axes]]":
    """A figure with an axis per name, in rows as even as they can be."""
    num_rows = math.ceil(len(names) / columns)
    figure = _figure(num_rows, row_height, title)
    width = math.ceil(len(names) / num_rows)
    cells = [*names, *["."] * (num_rows * width - len(names))]  # the mosaic's sign for no axis
    mosaic = [cells[i : i + width] for i in range(0, len(cells), width)]
    return figure, figure.subplot_mosaic(mosaic, sharey=sharey)


def _image(figure: "Figure") -> Image.Image:
    """(H, W) RGB at DPI."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
