"""Sends spools (tracking.py) to MLflow, in a process of its own: whatever a server does, the training goes on.

`gain sync` sends everything that waits. A stage starts this file with a pipe to its standard input: each
line names a spool to send from now on, and the end of input says that the stage is gone.
"""

import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from pipeline.files import write_json
from pipeline.tracking import SPOOLS, WAITING, WEIGHTS_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "gain"
DEFAULT_URI = "sqlite:///mlflow.db"  # what a bare `mlflow ui` in the repository root shows
RETRY_SECONDS = 5.0
POLL_SECONDS = 0.1
# MLflow's own defaults let an unreachable server block a call for four minutes.
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the database in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def local_database() -> Path | None:
    """The SQLite file that the tracking URI names, absolute; None with a server."""
    uri = tracking_uri()
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def connect() -> tuple["MlflowClient", str]:
    """A client and the id of this project's experiment, created if need be."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    from filelock import FileLock
    from mlflow import MlflowClient, set_tracking_uri

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    set_tracking_uri(tracking_uri())
    SPOOLS.mkdir(exist_ok=True)
    database = local_database()
    # Artifacts lie beside a database on disk, wherever the first process to use it runs: in the checkout or in a clone.
    artifacts = (database.parent / "mlruns").as_uri() if database else None
    # Two processes that create the database at the same time break each other.
    with FileLock(f"{database}.lock" if database else SPOOLS / "connect.lock"):
        client = MlflowClient()
        experiment = client.get_experiment_by_name(EXPERIMENT)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT, artifacts)
    return client, experiment_id


def find_run(client: "MlflowClient", experiment_id: str, weights_sha256: str) -> str | None:
    """Id of the newest run that produced these weights, or None."""
    runs = client.search_runs(
        [experiment_id], f"tags.{WEIGHTS_TAG} = '{weights_sha256}'", max_results=1, order_by=["start_time DESC"]
    )
    return runs[0].info.run_id if runs else None


class Spool:
    """One spool on its way, from where an earlier sender stopped. Methods raise whatever MLflow raises.

    Raises:
        filelock.Timeout: another sender still has the spool, as after kill -9 of the stage that it served.
    """

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock

        self._lock = FileLock(folder / "sender.lock")
        self._lock.acquire(timeout=0)
        self.folder = folder
        self.header = json.loads((folder / "header.json").read_text(encoding="utf-8"))
        state = folder / "state.json"
        self.state: dict[str, Any] = {"run_id": None, "reopened": False, "sent": 0}
        if state.exists():
            self.state = json.loads(state.read_text(encoding="utf-8"))
        self.finished = False
        self._opened = False
        self._monitor: Any = None

    def send(self, client: "MlflowClient", experiment_id: str) -> None:
        """Send every event that has not been sent."""
        if not self._opened:
            self._open_run(client, experiment_id)
        lines = (self.folder / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        for line in lines[self.state["sent"] :]:
            if not line.endswith("\n"):
                break
            self._send_event(client, json.loads(line))
            self._save(sent=self.state["sent"] + 1)

    def close(self, client: "MlflowClient") -> None:
        """Mark the run finished, or killed until it is resumed; a finished spool is deleted."""
        if self._monitor is not None:
            self._monitor.finish()
        if not self.state["reopened"]:
            client.set_terminated(self.state["run_id"], "FINISHED" if self.finished else "KILLED")
        if self.finished:
            shutil.rmtree(self.folder)
        self._lock.release()

    def _open_run(self, client: "MlflowClient", experiment_id: str) -> None:
        weights_sha256 = self.header["weights_sha256"]
        if self.state["run_id"] is None:
            run_id = find_run(client, experiment_id, weights_sha256) if weights_sha256 else None
            self._save(run_id=run_id or self._create_run(client, experiment_id), reopened=run_id is not None)
        elif not self.state["reopened"]:
            client.update_run(self.state["run_id"], status="RUNNING")
        if not self.state["reopened"]:
            self._monitor = start_system_metrics(self.state["run_id"])
        self._opened = True

    def _create_run(self, client: "MlflowClient", experiment_id: str) -> str:
        from mlflow.entities import Param

        tags = dict(self.header["tags"])
        if self.header["weights_sha256"]:
            tags[WEIGHTS_TAG] = self.header["weights_sha256"]
        run_id: str = client.create_run(experiment_id, tags=tags, run_name=self.header["run_name"]).info.run_id
        client.log_batch(run_id, params=[Param(key, value) for key, value in self.header["params"].items()])
        if self.header["dataset"]:
            log_dataset(client, run_id, self.header["dataset"])
        print(f"MLflow: run {self.header['run_name']} is {run_id}", flush=True)
        return run_id

    def _send_event(self, client: "MlflowClient", event: dict[str, Any]) -> None:
        from mlflow.entities import Metric, RunTag

        run_id, kind = self.state["run_id"], event["kind"]
        if kind == "metrics":
            metrics = [Metric(name, value, event["time"], event["step"]) for name, value in event["values"].items()]
            client.log_batch(run_id, metrics=metrics)
        elif kind == "image":
            with Image.open(self.folder / "files" / event["file"]) as image:
                client.log_image(run_id, image, key=event["key"], step=event["step"], timestamp=event["time"])
        elif kind == "artifact":
            client.log_artifact(run_id, str(self.folder / "files" / event["file"]), event["folder"] or None)
        elif kind == "tags":
            client.log_batch(run_id, tags=[RunTag(name, value) for name, value in event["values"].items()])
        elif kind == "finish":
            self.finished = True

    def _save(self, **changes: Any) -> None:
        self.state |= changes
        write_json(self.folder / "state.json", self.state)


def start_system_metrics(run_id: str) -> Any:
    """CPU, memory, disk, network and GPU use of this machine, logged to the run every 10 s."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=True)
    monitor.start()
    return monitor


def log_dataset(client: "MlflowClient", run_id: str, dataset: Mapping[str, str]) -> None:
    """Name and digest of the data that a run saw, as an MLflow dataset input."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    # MLflow keeps 36 characters of a digest.
    meta = MetaDataset(CodeDatasetSource(tags={}), name=dataset["name"], digest=dataset["digest"][:36])
    context = InputTag("mlflow.data.context", dataset["context"])
    client.log_inputs(run_id, [DatasetInput(meta._to_mlflow_entity(), [context])])


class Inbox:
    """Names of spools that arrive on standard input, and whether the writer is gone."""

    def __init__(self) -> None:
        self.gone = threading.Event()
        self._names: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def take(self) -> list[str]:
        """Names that arrived since the last call."""
        names, self._names = self._names, []
        return names

    def _read(self) -> None:
        for line in sys.stdin:
            self._names.append(line.strip())
        self.gone.set()


def send_all(inbox: Inbox) -> bool:
    """Send spools as they are named and written, until the writer is gone; True if everything arrived."""
    from filelock import Timeout

    client: Any = None
    experiment_id = ""
    named: list[str] = []
    spools: list[Spool] = []
    warned = False
    while True:
        last = inbox.gone.is_set()
        named += inbox.take()
        try:
            if client is None:
                client, experiment_id = connect()
            while named:
                spools.append(Spool(SPOOLS / named[0]))
                del named[0]
            for spool in list(spools):
                spool.send(client, experiment_id)
                if spool.finished or last:
                    spool.close(client)
                    spools.remove(spool)
        except Timeout:
            time.sleep(POLL_SECONDS)
            continue
        except Exception as error:  # a tracking server can fail in any way
            if not warned:
                _warn(error)
                warned = True
            if last:
                return False
            inbox.gone.wait(RETRY_SECONDS)
            continue
        if last:
            return True
        time.sleep(POLL_SECONDS)


def num_waiting() -> int:
    """Number of finished records that wait to be sent."""
    return len(_finished_spools())


def _finished_spools() -> list[Path]:
    return [path for path in sorted(SPOOLS.glob("*/events.jsonl")) if '"kind": "finish"' in path.read_text("utf-8")]


def send_waiting() -> bool:
    """Send the finished spools that earlier senders could not; those that another sender has are left to it."""
    from filelock import Timeout

    finished = _finished_spools()
    if not finished:
        return True
    try:
        client, experiment_id = connect()
        for events in finished:
            try:
                spool = Spool(events.parent)
            except Timeout:
                continue
            spool.send(client, experiment_id)
            spool.close(client)
    except Exception as error:  # a tracking server can fail in any way
        _warn(error)
        return False
    return True


def main() -> int:
    """Send what is named on standard input, then what waits from earlier."""
    if not sys.stdin.isatty():
        # Whoever ends a stage ends its process group. The record is closed first; the end of input ends this process.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    return 0 if send_all(Inbox()) and send_waiting() else 1


def _warn(error: Exception) -> None:
    reason = " ".join(str(error).split())[:200]
    print(f"warning: MLflow at {tracking_uri()}: {reason}; {WAITING}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
