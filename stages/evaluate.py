"""Score every model on the same images."""

from pipeline.base.files import digest_file, write_text
from pipeline.base.finished import remove_committed
from pipeline.base.profile import Params
from pipeline.base.workspace import PRETRAINED, Workspace
from pipeline.report.figures import write_pictures
from pipeline.report.tables import CONTROL, results_table, tracked_metrics
from pipeline.tracking.progress import progress_bar
from pipeline.tracking.tracker import Tracker, Tracking
from stages.run import run_stage


def evaluate(params: Params, space: Workspace) -> None:
    """models/ to reports/evaluate; the scores also go to the models' runs."""
    remove_committed(space)
    with Tracking() as tracking:
        from pipeline.report.comparison import compare  # torch: seconds, in which the sender gets ready
        from pipeline.report.page.evaluation import evaluation_page
        from pipeline.report.pictures import draw_comparison, draw_model
        from pipeline.report.score_files import write_scores

        folder, scale = space.reports / "evaluate", params.evaluate.panel_scale
        comparison = compare(params, space, progress_bar)
        metrics = {name: scores.estimates for name, scores in comparison.scores.items()}
        write_scores(folder, comparison.scores, params.doubts)
        page = folder / "index.html"
        write_text(page, evaluation_page(comparison, params))
        of_all = draw_comparison(comparison, space, scale)
        write_pictures(folder / "pictures", of_all)
        for name, groups in metrics.items():
            of_model = draw_model(comparison, space, name, scale)
            write_pictures(folder / "pictures" / name, of_model)
            weights, run_name = digest_file(space.weights(name)), f"{name}-seed{params.seed}"
            with Tracker(tracking, f"evaluate-{weights[:16]}", run_name=run_name, weights_sha256=weights) as tracker:
                tracker.log_metrics(tracked_metrics(groups), step=0)
                for key, picture in {**of_model, **of_all}.items():
                    tracker.log_image(key, picture, step=0)
                for table in ("per_class.csv", "intervals.csv"):
                    tracker.log_artifact(folder / "tables" / table, "evaluate")
                tracker.log_artifact(page, "evaluate")
                tracker.set_tags({"test_data_digest": comparison.data_digest})
                compared = {key: metrics[key] for key in metrics if key in (PRETRAINED, CONTROL, name)}
                tracker.describe(results_table(compared))
        print(results_table(metrics), flush=True)


if __name__ == "__main__":
    run_stage("evaluate", evaluate)
