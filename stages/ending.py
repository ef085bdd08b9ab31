"""The last line of a stage: what it wrote, its main score, how long it took, and where to look."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.base.profile import Params
from pipeline.base.workspace import Workspace
from pipeline.report.tables import HEADLINES, best_guided, reference_model

TRAINED = ("mean_iou", "macro_f1", "attention_iou")  # of the scores on validation images, those that are said


def last_line(name: str, params: Params, space: Workspace, variant: str, seconds: float) -> str:
    """Of a stage that has ended well.

    Args:
        name: of the stage.
        variant: of finetune; "" for all others.
    """
    label = f"{name}/{variant}" if variant else name
    text = _TEXTS[name](params, space) if name in _TEXTS else _training(space, label)
    return f"{label}: done in {seconds:.0f} s: {text}"


def _download(params: Params, space: Workspace) -> str:
    return f"{space.data}, a data set of source {params.download.source}; look at {space.data / 'JPEGImages'}"


def _prepare(_: Params, space: Workspace) -> str:
    with space.manifest.open(newline="", encoding="utf-8") as file:
        splits = Counter(row["split"] for row in csv.DictReader(file))
    counts = ", ".join(f"{number} {split}" for split, number in splits.items())
    return f"{space.manifest}, {counts}; images by class: {space.reports / 'prepare' / 'classes.csv'}"


def _counterfactual(_: Params, space: Workspace) -> str:
    return f"look at {space.counterfactual / 'JPEGImages'}"


def _training(space: Workspace, label: str) -> str:
    folder = space.reports / label
    summary = _read(folder / "summary.json")
    found = {
        title: summary.get(f"val/{score}", summary.get(score)) for score in TRAINED for title in [HEADLINES[score]]
    }
    scores = ", ".join(f"{title} {100 * value:.1f} %" for title, value in found.items() if value is not None)
    weights, curves = f"{space.models / label}.safetensors", folder / "curves.csv"
    return f"{weights}, {scores or 'no score'} on validation images; curves: {curves}"


def _evaluate(_: Params, space: Workspace) -> str:
    folder = space.reports / "evaluate"
    metrics, validation = _read(folder / "metrics.json"), _read(folder / "validation.json")
    compared = dict.fromkeys((best_guided(validation), reference_model(validation)))
    values = {name: metrics[name]["attention"].get("attention_iou") for name in compared}
    scores = ", ".join(f"{name} {100 * value:.1f} %" for name, value in values.items() if value is not None)
    return f"attention IoU {scores or 'not scored'}; open {folder / 'index.html'}"


def _register(_: Params, space: Workspace) -> str:
    return f"its card: {space.reports / 'register' / 'model_card.md'}; next: gain promote"


def _summarise(_: Params, space: Workspace) -> str:
    return f"look at {space.folder.parent / 'results' / 'table.md'}"


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


_TEXTS: dict[str, Callable[[Params, Workspace], str]] = {
    "configure": lambda _, space: f"look at {space.params}",
    "download": _download,
    "prepare": _prepare,
    "counterfactual": _counterfactual,
    "evaluate": _evaluate,
    "register": _register,
    "summarise": _summarise,
}
