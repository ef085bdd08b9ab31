"""Runs that MLflow has lost, made again from what a training left in models/ and reports/."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.files import read_numbers
from pipeline.tracking.tracker import DESCRIPTION_TAG, WEIGHTS_TAG, flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient

REBUILT_TAG = "rebuilt_from"
DESCRIPTION = (
    "MLflow had lost this run. It was made again from models/ and reports/: losses and scores are those of the "
    "training; its times, speed, commit, device and the pictures of its epochs are lost."
)
FILES = ("curves.csv", "summary.json")


@dataclass(frozen=True)
class Remains:
    """What is left of a training."""

    run_name: str
    weights_sha256: str
    report: Path  # folder with `FILES`, of which some may be missing
    pictures: Sequence[Path]  # PNG files that the stage evaluate drew
    tags: Mapping[str, str]
    params: Mapping[str, Any]  # nested
    scores: Mapping[str, float]  # test score to fraction; empty where it was not evaluated


def rebuild_run(client: "MlflowClient", experiment_id: str, remains: Remains) -> str:
    """Make the run again; its id. The tag by which it is found comes last, so that half a run is never taken for it.

    Raises:
        MlflowException: the server does not answer or refuses.
    """
    from mlflow.entities import Metric, Param, RunTag
    from PIL import Image

    tags = {**remains.tags, REBUILT_TAG: "reports", DESCRIPTION_TAG: DESCRIPTION}
    run = client.create_run(experiment_id, run_name=remains.run_name, tags=tags)
    run_id, now = run.info.run_id, run.info.start_time
    client.log_batch(run_id, params=[Param(key, value) for key, value in flatten(remains.params).items()])
    for row in _epochs(remains.report / "curves.csv"):
        step = int(row.pop("epoch"))
        client.log_batch(run_id, metrics=[Metric(name, value, now, step) for name, value in row.items()])
    client.log_batch(run_id, metrics=[Metric(f"test/{name}", value, now, 0) for name, value in remains.scores.items()])
    for name in FILES:
        if (remains.report / name).exists():
            client.log_artifact(run_id, str(remains.report / name))
    for picture in remains.pictures:
        with Image.open(picture) as image:
            client.log_image(run_id, image, key=picture.stem, step=0)
    client.log_batch(run_id, tags=[RunTag(WEIGHTS_TAG, remains.weights_sha256)])
    client.set_terminated(run_id, "FINISHED")
    return str(run_id)


def _epochs(curves: Path) -> list[dict[str, float]]:
    return read_numbers(curves) if curves.exists() else []
