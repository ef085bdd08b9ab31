"""The MLflow server or database that records go to, and the one health check of this project's servers."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.base.errors import PipelineError
from pipeline.base.secrets import without_secrets
from pipeline.tracking.address import unusable_server, unusable_tracking
from pipeline.tracking.saved_views import experiment_tags
from pipeline.tracking.schema import unusable_schema
from pipeline.tracking.tracker import SPOOLS, WEIGHTS_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "gain"
DEFAULT_URI = "sqlite:///mlflow.db"  # what a bare `mlflow ui` in the repository root shows
ANSWER_SECONDS = 5.0  # within which a server must answer its health check
# MLflow's own defaults let an unreachable server block a call for four minutes.
CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the database in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def local_database() -> Path | None:
    """Absolute path of the SQLite file that the tracking URI names; None if it names anything else."""
    uri = tracking_uri()
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def problem_with(url: str) -> str | None:
    """Why a server fails its health check, in a few words without credentials; None if it passes.

    Args:
        url: base address of an MLflow server or of Prefect's API; both answer below it under /health.
    """
    import requests

    if (unusable := unusable_server(url)) is not None:
        return unusable
    address = f"{url.rstrip('/')}/health"
    try:
        with requests.get(address, timeout=ANSWER_SECONDS, stream=True) as response:
            return None if response.ok else f"HTTP {response.status_code}"
    except requests.exceptions.Timeout:
        return f"no answer within {ANSWER_SECONDS:.0f} s"
    except requests.exceptions.RequestException:
        return f"{urlsplit(address).netloc.rpartition('@')[2]} cannot be reached"


def connect() -> tuple["MlflowClient", str]:
    """A client and the id of this project's experiment, which is created if it does not exist.

    Raises:
        PipelineError: MLFLOW_TRACKING_URI cannot be an address, or its database has the tables of another MLflow.
        MlflowException: the server does not answer or refuses; other errors of a database are passed on too.
    """
    if (problem := unusable_tracking(tracking_uri())) is not None:
        raise PipelineError(f"MLFLOW_TRACKING_URI: {without_secrets(tracking_uri())} {problem}")
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    from filelock import FileLock
    from mlflow import MlflowClient, set_tracking_uri

    for name in ("mlflow", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)  # the sender gives one warning for a server that fails
    set_tracking_uri(tracking_uri())
    SPOOLS.mkdir(exist_ok=True)
    database = local_database()
    # Two processes that create the database at the same time break each other.
    with FileLock(f"{database}.lock" if database else SPOOLS / "connect.lock"):
        if (problem := unusable_schema(tracking_uri(), DEFAULT_URI)) is not None:
            raise PipelineError(f"MLflow's database cannot be used: {problem}")
        client = MlflowClient()
        return client, _experiment(client, database)


def _experiment(client: "MlflowClient", database: Path | None) -> str:
    """Id of the experiment, with the saved views of its page in the UI."""
    # Artifacts lie beside a local database, whichever checkout or clone uses it first.
    artifacts = (database.parent / "mlruns").as_uri() if database else None
    experiment = client.get_experiment_by_name(EXPERIMENT)
    experiment_id: str = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT, artifacts)
    present = experiment.tags if experiment else {}
    for name, value in experiment_tags().items():
        if name not in present:  # a user may have changed a view that is present
            client.set_experiment_tag(experiment_id, name, value)
    return experiment_id


def find_run(client: "MlflowClient", experiment_id: str, weights_sha256: str) -> str | None:
    """Id of the newest run that produced these weights, or None.

    Args:
        weights_sha256: of the safetensors file, in hexadecimal.
    """
    runs = client.search_runs(
        [experiment_id], f"tags.{WEIGHTS_TAG} = '{weights_sha256}'", max_results=1, order_by=["start_time DESC"]
    )
    return runs[0].info.run_id if runs else None
