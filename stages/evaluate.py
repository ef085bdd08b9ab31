"""Score every model on the same images."""

from pipeline.base.profile import Params
from pipeline.base.workspace import Workspace
from pipeline.tracking.tracker import Tracking
from stages.run import run_stage


def evaluate(params: Params, space: Workspace) -> None:
    """models/ to reports/evaluate; the scores also go to the models' runs."""
    with Tracking() as tracking:
        from stages.score import score  # torch: seconds, in which the sender gets ready

        score(tracking, params, space)


if __name__ == "__main__":
    run_stage("evaluate", evaluate)
