"""Score every model on the same images."""

from pipeline.config import load_params
from pipeline.tracking import Tracking
from stages import run_stage


def evaluate() -> None:
    """models/ to reports/evaluate; the scores also go to the models' runs."""
    params = load_params()
    with Tracking() as tracking:
        from stages.score import score  # torch: seconds, in which the sender gets ready

        score(tracking, params)


if __name__ == "__main__":
    run_stage("evaluate", evaluate)
