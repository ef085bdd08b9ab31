"""The model card of a registered version: what it was trained on, how well it does, and what not to use it for."""

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.base.profile import Params
from pipeline.base.sections import Download, EmbeddedData, Voc2012Data

SHOWN = (
    ("mean IoU", "mean_iou"),
    ("pixel accuracy", "pixel_accuracy"),
    ("class accuracy", "class_accuracy"),
    ("macro F1", "macro_f1"),
    ("mean average precision of the classes", "mean_average_precision"),
    ("attention IoU", "attention_iou"),
    ("energy pointing game", "energy_pointing_game"),
    ("pointing game", "pointing_game"),
    ("context bias, overall", "overall"),
    ("context bias, worst group", "worst_group"),
)


Intervals = Mapping[str, tuple[float, float, float]]  # score to estimate and ends of its 95 % interval, fractions


def read_intervals(path: Path, model: str) -> Intervals:
    """Bootstrap intervals of a model's scores over the test images, from the table that the stage evaluate wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == model]
    return {row["score"]: (float(row["estimate"]), float(row["low_95"]), float(row["high_95"])) for row in rows}


def model_card(
    params: Params,
    variant: str,
    class_names: tuple[str, ...],
    num_images: Mapping[str, int],
    intervals: Intervals,
    choice: str,
) -> str:
    """The card of a variant, in Markdown.

    Args:
        num_images: split to number of images.
        choice: by what it was chosen among the candidates, see `registry.explain_choice`.
    """
    splits = ", ".join(f"{count} {split}" for split, count in num_images.items())
    lines = [
        f"# FCN8s with guided attention: {variant}, seed {params.seed}",
        "",
        f"Multi-label classes, segmentation and a Grad-CAM map per class, from RGB images of any size. Classes: "
        f"{', '.join(map(literal, class_names))}.{_seen(params.evaluate.scale)}",
        "",
        f"**Data.** {_data(params.download)} Images: {splits}.",
        "",
        f"**Choice.** By {choice}. No test score was looked at.",
        "",
        "**Scores** on the test data, percent, with 95 % bootstrap intervals over its images:",
        "",
        "| score | estimate | interval |",
        "|---|---|---|",
    ]
    for title, name in SHOWN:
        if name in intervals:
            estimate, low, high = (100 * value for value in intervals[name])
            lines.append(f"| {title} | {estimate:.1f} | {low:.1f} to {high:.1f} |")
    lines += [
        "",
        f"**Limits.** It knows these {len(class_names)} classes and looks at images like those above; one seed, so "
        "the intervals do not cover the spread over trainings. Attention shows what raises a class's score, at a "
        "resolution of 16 pixels; it explains no single pixel and proves no cause. Not for decisions about people.",
        "",
        f"**Licence.** {_licence(params.download)}",
    ]
    return "\n".join(lines)


def literal(text: str) -> str:
    """`text` from a user as Markdown that shows it as it is: no HTML, no markup, no link."""
    marked = re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", text)
    # As numbers, since MLflow's page takes no backslash before these.
    return re.sub(r"[<>@$:\"']|&", lambda found: f"&#{ord(found[0])};", marked)


def _seen(scale: float) -> str:
    if scale == 1.0:
        return ""
    return f" The network sees images resized by {scale:g} and answers at their own size; its weights carry the factor."


def _data(download: Download) -> str:
    if isinstance(download, EmbeddedData):
        return (
            f"Drawings of {download.image_size} pixels in which an object stands on its habitual ground with "
            f"probability {download.context_strength:g}; the counterfactual test sets separate the two."
        )
    if isinstance(download, Voc2012Data):
        return f"PASCAL VOC 2012, trained on {download.train_split}, tested on {download.test_split}, void left out."
    return "A folder of images in VOC layout, not distributed with the project."


def _licence(download: Download) -> str:
    if isinstance(download, EmbeddedData):
        return "Drawings and weights: MIT, as the project."
    if isinstance(download, Voc2012Data):
        return (
            "The images of VOC 2012 are from Flickr, and their use is subject to Flickr's terms; PASCAL VOC asks to be "
            "cited. Check both before you pass the weights on."
        )
    return "Data: ask its owner. Code: MIT."
