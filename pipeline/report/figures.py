"""What all charts share: style, colours, axes in a grid, legends and labels. No torch."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipeline.base.errors import PipelineError
from pipeline.base.files import atomic_file
from pipeline.base.workspace import PRETRAINED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("style.mplstyle")
DPI = 150
WIDTH = 9.5  # inches
# Okabe and Ito's colours, told apart by colour-blind readers; their yellow, too faint on white, is an olive here, and
# their black became the grey of the pretrained network. The last three are for studies of many variants.
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a00", "#7b3294", "#8c510a", "#882255",
)  # fmt: skip
PRETRAINED_COLOUR = "#7a7a7a"  # in between, since pages are also dark
INK, MUTED, FAINT = "#333333", "#777777", "#e4e4e4"
SPELLING = {"iou": "IoU", "f1": "F1"}
ABSENT = "\u2013"  # in place of a number


@contextmanager
def style() -> Iterator[None]:
    """style.mplstyle over matplotlib's defaults; the reader's own settings do not count, and are back on leaving."""
    import matplotlib.style

    with matplotlib.style.context(STYLE, after_reset=True):
        yield


def new_figure(num_rows: int, row_height: float, title: str = "", *, width: float = WIDTH) -> "Figure":
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


def axes_grid(
    names: Sequence[str], row_height: float, title: str = "", *, columns: int = 4, sharey: bool = False
) -> "tuple[Figure, dict[str, Axes]]":
    """A figure with an axis per name, in rows as even as they can be."""
    num_rows = math.ceil(len(names) / columns)
    figure = new_figure(num_rows, row_height, title)
    width = math.ceil(len(names) / num_rows)
    cells = [*names, *["."] * (num_rows * width - len(names))]  # the mosaic's sign for no axis
    mosaic = [cells[i : i + width] for i in range(0, len(cells), width)]
    return figure, figure.subplot_mosaic(mosaic, sharey=sharey)


def rendered(figure: "Figure") -> Image.Image:
    """(H, W) RGB at DPI."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def label_ends(axis: "Axes", ends: Mapping[str, tuple[float, str]], gap: float = 0.1) -> None:
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


def name_ticks(axis: "Axes", names: Sequence[str]) -> None:
    """Name the places 0, 1, ... of the x axis; long names are tilted."""
    level = len(names) * max(map(len, names)) <= 80
    axis.set_xticks(range(len(names)), names)
    if not level:
        axis.tick_params(axis="x", rotation=45)
        for label in axis.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


def model_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour per model, the same in every chart, view and page of a run, with or without the pretrained network."""
    colours = cycle(COLOURS)
    return {name: PRETRAINED_COLOUR if name == PRETRAINED else next(colours) for name in names}


def add_legend(owner: "Figure | Axes", colours: Mapping[str, str], **place: object) -> None:
    """A legend with a stroke per name in its colour; place goes to matplotlib's `legend`."""
    from matplotlib.lines import Line2D

    names = list(colours)
    lines = [Line2D([], [], color=colour, linewidth=3) for colour in colours.values()]
    columns = max(1, 130 // (max(map(len, names)) + 8))  # characters of the line height that fit the width
    owner.legend(lines, names, ncols=columns, handlelength=1.2, **place)


def words(name: str) -> str:
    """The name of a score or a loss as it is written in a title."""
    return " ".join(SPELLING.get(word, word) for word in name.replace("/", ", ").replace("_", " ").split())


def write_pictures(folder: Path, pictures: Mapping[str, Image.Image], *, optimize: bool = False) -> None:
    """NAME.png in `folder`, each whole or not at all.

    Args:
        optimize: smaller files that take longer to write.
    """
    for name, picture in pictures.items():
        with atomic_file(folder / f"{name}.png") as partial:
            picture.save(partial, "PNG", optimize=optimize)
