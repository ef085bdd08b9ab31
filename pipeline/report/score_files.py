"""The scores of all models as files: metrics.json, validation.json, tables, replicates and report.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from safetensors.torch import save_file

from pipeline.base.files import atomic_file, write_csv, write_json, write_text
from pipeline.report.bootstrap import interval
from pipeline.report.model_scores import ModelScores
from pipeline.report.tables import results_table

T = TypeVar("T")


def write_scores(folder: Path, scores: Mapping[str, ModelScores], doubts: Sequence[str] = ()) -> None:
    """metrics.json, validation.json, report.md, tables/*.csv and replicates/MODEL.safetensors in `folder`.

    Args:
        scores: of each model. Only validation.json is of validation images: from model to score to value.
        doubts: `Params.doubts`, which report.md repeats above the scores.
    """
    metrics = {name: of_model.estimates for name, of_model in scores.items()}
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "validation.json", {name: of_model.validation for name, of_model in scores.items()})
    warnings = "".join(f"**Note**: {doubt}.\n\n" for doubt in doubts)
    panels = "![panels](pictures/comparison.png)"
    write_text(folder / "report.md", f"# Results\n\n{warnings}{results_table(metrics)}\n\n{panels}\n")
    per_class = [{"model": name, **row} for name, of_model in scores.items() for row in of_model.class_rows]
    write_csv(folder / "tables" / "per_class.csv", per_class)
    summary = [{"model": name, **_flat(groups)} for name, groups in metrics.items()]
    write_csv(folder / "tables" / "summary.csv", summary)
    write_csv(folder / "tables" / "intervals.csv", _interval_rows(scores))
    for name, of_model in scores.items():
        replicates = {score: values.contiguous() for score, values in _flat(of_model.replicates).items()}
        with atomic_file(folder / "replicates" / f"{name}.safetensors") as partial:
            save_file(replicates, partial)


def _flat(groups: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """Group to name to value, without the groups; a name belongs to one group alone."""
    return {name: value for group in groups.values() for name, value in group.items()}


def _interval_rows(scores: Mapping[str, ModelScores]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for model, of_model in scores.items():
        for name, values in _flat(of_model.replicates).items():
            low, high = interval(values)
            rows.append({"model": model, "score": name, "estimate": float(values[0]), "low_95": low, "high_95": high})
    return rows
