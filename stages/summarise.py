"""The study in one table: every variant over the seeds, against the control."""

import json
from pathlib import Path

from safetensors.torch import load_file

from pipeline.base.errors import PipelineError
from pipeline.base.files import atomic_file, read_numbers, write_csv, write_text
from pipeline.base.profile import Params
from pipeline.base.workspace import Workspace
from pipeline.report.charts import compared_curves, interval_chart, label_count_curve
from pipeline.report.study import HEADLINES, Seeds, label_counts, study_rows, study_table
from stages.run import run_stage

FIGURE_SCORES = ("mean_iou", "attention_iou", "energy_pointing_game", "pointing_game", "overall", "class_accuracy")


def summarise(params: Params, space: Workspace) -> None:
    """The reports of every seed to results: results.csv, per_seed.csv, table.md and figures.

    Args:
        space: of one of the seeds; the folders of the others lie beside it.
    """
    study = space.folder.parent
    seeds = _read_seeds(study)
    folder = study / "results"
    rows = study_rows(seeds)
    write_csv(folder / "results.csv", rows)
    write_csv(folder / "per_seed.csv", _per_seed(seeds))
    write_text(folder / "table.md", study_table(rows) + "\n")
    means: dict[str, dict[str, tuple[float, float, float]]] = {score: {} for score in FIGURE_SCORES}
    for row in rows:
        if row["score"] in FIGURE_SCORES:
            mean, low, high = (float(str(row[key])) for key in ("mean", "low_95", "high_95"))
            means[str(row["score"])][str(row["model"])] = mean, low, high
    fractions = {
        name: params.attention_of(name).pixel_labels.fraction
        for name, variant in params.variants.items()
        if variant.loss_weights.get("external_supervision") and set(variant.attention) <= {"pixel_labels"}
    }
    points = label_counts(seeds, {name: f for name, f in fractions.items() if f}, FIGURE_SCORES)
    control = {score: values["control"][0] for score, values in means.items()}
    first = study / f"seed{min(seeds)}" / "reports" / "finetune"
    curves = {name: read_numbers(first / name / "curves.csv") for name in params.variants}
    pictures = {
        "scores": interval_chart(means, reference="control"),
        "label_count": label_count_curve(points, control),
        "curves": compared_curves(curves),
    }
    for name, picture in pictures.items():
        with atomic_file(folder / f"{name}.png") as partial:
            picture.save(partial, "PNG", optimize=True)
    print(study_table(rows), flush=True)


def _read_seeds(folder: Path) -> Seeds:
    seeds: Seeds = {}
    for reports in sorted(folder.glob("seed*/reports/evaluate")):
        seed = int(reports.parts[-3].removeprefix("seed"))
        models = json.loads((reports / "metrics.json").read_text(encoding="utf-8"))
        seeds[seed] = {name: load_file(reports / "replicates" / f"{name}.safetensors") for name in models}
    if not seeds:
        raise PipelineError(f"{folder}: no seed*/reports/evaluate; run `make study`")
    return seeds


def _per_seed(seeds: Seeds) -> list[dict[str, object]]:
    return [
        {"model": name, "seed": seed, **{score: float(replicates[score][0]) for score in HEADLINES}}
        for seed, models in seeds.items()
        for name, replicates in models.items()
    ]


if __name__ == "__main__":
    run_stage("summarise", summarise)
