"""Runs that MLflow has lost, made again from what a training left in models/ and reports/."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.files import read_numbers
from pipeline.tracking.server import find_run
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
    scores: Mapping[str, float]  # of the test, by the name of the metric; empty where it was not evaluated


def rebuild_run(client: "MlflowClient", experiment_id: str, remains: Remains) -> bool:
    """Make the run of a training again if MLflow lacks it; whether it did.

    Where the stage evaluate found no run of the weights, it made one with test scores and pictures alone: what the
    training recorded is added to that. Parameters and the tag by which the run is found come last, so that a run that
    was made by half counts as missing.

    Raises:
        MlflowException: the server does not answer or refuses.
    """
    from mlflow.entities import Param, RunTag

    run_id = find_run(client, experiment_id, remains.weights_sha256)
    if run_id is not None and client.get_run(run_id).data.params:
        return False
    tags = {**remains.tags, REBUILT_TAG: "reports", WEIGHTS_TAG: remains.weights_sha256}
    if run_id is None:
        described = {DESCRIPTION_TAG: DESCRIPTION}
        run_id = client.create_run(experiment_id, run_name=remains.run_name, tags=described).info.run_id
        _add_evaluation(client, run_id, remains)
    _add_training(client, run_id, remains)
    client.update_run(run_id, name=remains.run_name)
    params = [Param(key, value) for key, value in flatten(remains.params).items()]
    client.log_batch(run_id, params=params, tags=[RunTag(key, value) for key, value in tags.items()])
    client.set_terminated(run_id, "FINISHED")
    return True


def _add_training(client: "MlflowClient", run_id: str, remains: Remains) -> None:
    from mlflow.entities import Metric

    now, curves = int(time.time() * 1000), remains.report / "curves.csv"
    for row in read_numbers(curves) if curves.exists() else []:
        step = int(row.pop("epoch"))
        client.log_batch(run_id, metrics=[Metric(name, value, now, step) for name, value in row.items()])
    for path in (remains.report / name for name in FILES):
        if path.exists():
            client.log_artifact(run_id, str(path))


def _add_evaluation(client: "MlflowClient", run_id: str, remains: Remains) -> None:
    from mlflow.entities import Metric
    from PIL import Image

    now = int(time.time() * 1000)
    scores = [Metric(name, value, now, 0) for name, value in remains.scores.items()]
    client.log_batch(run_id, metrics=scores)
    for picture in remains.pictures:
        with Image.open(picture) as image:
            client.log_image(run_id, image, key=picture.stem, step=0)
