"""The study in one table: every variant over the seeds, against the control."""

from pipeline.base.files import read_numbers, write_csv, write_text
from pipeline.base.profile import Params
from pipeline.base.workspace import Workspace
from pipeline.report.curves import compared_curves
from pipeline.report.figures import write_pictures
from pipeline.report.study import (
    charted_scores,
    label_counts,
    label_fractions,
    per_seed_rows,
    read_seeds,
    study_means,
    study_rows,
    study_table,
)
from pipeline.report.study_charts import interval_chart, label_count_curve
from pipeline.report.tables import CONTROL
from stages.run import run_stage


def summarise(params: Params, space: Workspace) -> None:
    """The reports of every seed to results: results.csv, per_seed.csv, table.md and figures.

    Args:
        space: of one of the seeds; the folders of the others lie beside it.
    """
    study = space.folder.parent
    seeds, results = read_seeds(study), study / "results"
    rows = study_rows(seeds)
    write_csv(results / "results.csv", rows)
    write_csv(results / "per_seed.csv", per_seed_rows(seeds))
    write_text(results / "table.md", study_table(rows) + "\n")
    drawn = charted_scores(seeds)
    means = study_means(rows, drawn)
    points = label_counts(seeds, label_fractions(params), drawn)
    first = Workspace(study / f"seed{min(seeds)}")
    curves = {name: read_numbers(first.training_report(name) / "curves.csv") for name in params.variants}
    pictures = {
        "scores": interval_chart(means, reference=CONTROL),
        "label_count": label_count_curve(points, {score: means[score][CONTROL].mean for score in drawn}),
        "curves": compared_curves(curves),
    }
    write_pictures(results, pictures, optimize=True)
    print(study_table(rows), flush=True)


if __name__ == "__main__":
    run_stage("summarise", summarise)
