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
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from PIL import Image

from pipeline.base.errors import without_credentials
from pipeline.base.files import write_json
from pipeline.tracking.saved_views import experiment_tags
from pipeline.tracking.system_metrics import SystemMetrics
from pipeline.tracking.tracker import DESCRIPTION_TAG, SPOOLS, WAITING, WEIGHTS_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "gain"
DEFAULT_URI = "sqlite:///mlflow.db"  # what a bare `mlflow ui` in the repository root shows
RECORD_TAG = "mlflow.gain.record"  # names the spool that a run is made of; MLflow's UI hides tags that begin so
EVENTS, SYSTEM = "events.jsonl", "system.jsonl"
RETRY_SECONDS = 5.0
POLL_SECONDS = 0.1
NICENESS = 5  # beside a training that uses every core
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

    for name in ("mlflow", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)  # a failing server has one warning, written here
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
        known = experiment.tags if experiment else {}
        for name, value in experiment_tags().items():
            if name not in known:  # a view that somebody has changed since is theirs
                client.set_experiment_tag(experiment_id, name, value)
    return client, experiment_id


def find_run(client: "MlflowClient", experiment_id: str, weights_sha256: str) -> str | None:
    """Id of the newest run that produced these weights, or None."""
    runs = client.search_runs(
        [experiment_id], f"tags.{WEIGHTS_TAG} = '{weights_sha256}'", max_results=1, order_by=["start_time DESC"]
    )
    return runs[0].info.run_id if runs else None


class Spool:
    """One spool on its way, from where an earlier sender stopped. Methods raise whatever MLflow raises.

    Everything arrives once: what was under way when a sender or a server died is looked for before it is sent again.

    Args:
        watch: log this machine's use to the run meanwhile.

    Raises:
        filelock.Timeout: another sender still has the spool, as after kill -9 of the stage that it served.
    """

    def __init__(self, folder: Path, *, watch: bool) -> None:
        from filelock import FileLock

        self._lock = FileLock(folder / "sender.lock")
        self._lock.acquire(timeout=0)
        self.folder = folder
        self.header = json.loads((folder / "header.json").read_text(encoding="utf-8"))
        state = folder / "state.json"
        self.state: dict[str, Any] = {"run_id": None, "reopened": False, EVENTS: 0, SYSTEM: 0}
        if state.exists():
            self.state |= json.loads(state.read_text(encoding="utf-8"))
        self.finished = False
        self._in_doubt = {EVENTS, SYSTEM} if state.exists() else set()  # files whose next event may have arrived
        self._opened = False
        self._watch = watch
        self._system_metrics: SystemMetrics | None = None

    def send(self, client: "MlflowClient", experiment_id: str) -> None:
        """Send every event that has not been sent."""
        if not self._opened:
            self._open_run(client, experiment_id)
        self._send_file(client, SYSTEM)
        self._send_file(client, EVENTS)

    def close(self, client: "MlflowClient") -> None:
        """Mark the run finished, or killed until it is resumed; a finished spool is deleted."""
        if self._system_metrics is not None:
            self._system_metrics.stop()
            self._send_file(client, SYSTEM)
        if not self.state["reopened"]:
            client.set_terminated(self.state["run_id"], "FINISHED" if self.finished else "KILLED")
        if self.finished:
            shutil.rmtree(self.folder)
        self.release()

    def release(self) -> None:
        """Leave the spool to other senders."""
        self._lock.release()

    def _open_run(self, client: "MlflowClient", experiment_id: str) -> None:
        weights_sha256 = self.header["weights_sha256"]
        if self.state["run_id"] is None:
            run_id = find_run(client, experiment_id, weights_sha256) if weights_sha256 else None
            self._save(run_id=run_id or self._create_run(client, experiment_id), reopened=run_id is not None)
        elif not self.state["reopened"]:
            client.update_run(self.state["run_id"], status="RUNNING")
        if self._watch and not self.state["reopened"] and self._system_metrics is None:
            self._system_metrics = SystemMetrics(self.folder / SYSTEM)
        self._opened = True

    def _create_run(self, client: "MlflowClient", experiment_id: str) -> str:
        from mlflow.entities import Param

        record = self.header["record"]
        tags = {**self.header["tags"], RECORD_TAG: record}
        if self.header["weights_sha256"]:
            tags[WEIGHTS_TAG] = self.header["weights_sha256"]
        # The answer to an earlier request for the same run may have been lost.
        begun = client.search_runs([experiment_id], f"tags.`{RECORD_TAG}` = '{record}'", max_results=1)
        run = begun[0] if begun else client.create_run(experiment_id, tags=tags, run_name=self.header["run_name"])
        run_id: str = run.info.run_id
        client.log_batch(run_id, params=[Param(key, value) for key, value in self.header["params"].items()])
        if self.header["dataset"]:
            log_dataset(client, run_id, self.header["dataset"])
        print(f"MLflow: run {self.header['run_name']} is {run_id}", flush=True)
        return run_id

    def _send_file(self, client: "MlflowClient", name: str) -> None:
        path = self.folder / name
        if not path.exists():
            return
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True)[self.state[name] :]:
            if not line.endswith("\n"):
                break
            event = json.loads(line)
            if name not in self._in_doubt or not self._has_arrived(client, event):
                self._in_doubt.add(name)
                self._send_event(client, event)
            self._save(**{name: self.state[name] + 1})
            self._in_doubt.discard(name)

    def _send_event(self, client: "MlflowClient", event: dict[str, Any]) -> None:
        from mlflow.entities import Metric, RunTag

        run_id, kind = self.state["run_id"], event["kind"]
        if kind == "metrics":
            metrics = [Metric(name, value, event["time"], event["step"]) for name, value in event["values"].items()]
            client.log_batch(run_id, metrics=metrics)
        elif kind == "image":
            with self._image(event) as image:
                client.log_image(run_id, image, key=event["key"], step=event["step"], timestamp=event["time"])
        elif kind == "artifact":
            client.log_artifact(run_id, str(self.folder / "files" / event["file"]), event["folder"] or None)
        elif kind == "tags":
            client.log_batch(run_id, tags=[RunTag(name, value) for name, value in event["values"].items()])
        elif kind == "describe":
            # Who scores a run that another experiment trained keeps the commands that made it.
            commands = client.get_run(run_id).data.tags.get(DESCRIPTION_TAG, "").rpartition("\n\n")[2]
            client.set_tag(run_id, DESCRIPTION_TAG, f"{event['result']}\n\n{commands}")
        elif kind == "finish":
            self.finished = True

    def _has_arrived(self, client: "MlflowClient", event: Mapping[str, Any]) -> bool:
        """Whether the run has an event already; tags and artifacts may go twice, since they replace themselves."""
        run_id = self.state["run_id"]
        if event["kind"] == "metrics":
            history = client.get_metric_history(run_id, next(iter(event["values"])))  # a batch arrives whole
            return any((metric.timestamp, metric.step) == (event["time"], event["step"]) for metric in history)
        if event["kind"] == "image":
            with self._image(event) as image:
                return complete_image(client, run_id, event, image)
        return False

    def _image(self, event: Mapping[str, Any]) -> Image.Image:
        return Image.open(self.folder / "files" / event["file"])

    def _save(self, **changes: Any) -> None:
        self.state |= changes
        write_json(self.folder / "state.json", self.state)


def complete_image(client: "MlflowClient", run_id: str, event: Mapping[str, Any], image: Image.Image) -> bool:
    """Send the rest of a picture whose first part has arrived; False if nothing of it has.

    MLflow keeps a picture as KEY+step+N+timestamp+MS+ID.png, then a small copy of it, then a tag of the run.
    """
    from mlflow.tracking.multimedia import compress_image_size
    from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES

    start = f"{event['key'].replace('/', '~')}+step+{event['step']}+timestamp+{event['time']}+"
    names = [Path(file.path).name for file in client.list_artifacts(run_id, "images")]
    name = next((name for name in names if name.startswith(start) and name.endswith(".png")), None)
    if name is None:
        return False
    with TemporaryDirectory() as folder:
        copy = Path(folder) / f"{Path(name).stem}+compressed.webp"
        compress_image_size(image).save(copy)
        client.log_artifact(run_id, str(copy), "images")
    client.set_tag(run_id, MLFLOW_LOGGED_IMAGES, True)
    return True


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
                spools.append(Spool(SPOOLS / named[0], watch=True))
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
    return [path for path in sorted(SPOOLS.glob(f"*/{EVENTS}")) if '"kind": "finish"' in path.read_text("utf-8")]


def send_waiting() -> bool:
    """Send the finished spools that earlier senders could not; those that another sender has are left to it.

    A record that MLflow refuses, as when its run was deleted, stays where it is and does not hold up the others.
    """
    from filelock import Timeout

    finished = _finished_spools()
    if not finished:
        return True
    done = True
    try:
        client, experiment_id = connect()
        for events in finished:
            try:
                spool = Spool(events.parent, watch=False)
            except Timeout:
                continue
            try:
                spool.send(client, experiment_id)
                spool.close(client)
            except Exception as error:
                if not is_refusal(error):
                    raise
                _warn(error, events.parent)
                done = False
            finally:
                spool.release()
    except Exception as error:  # a tracking server can fail in any way
        _warn(error)
        return False
    return done


def is_refusal(error: Exception) -> bool:
    """Whether MLflow answered and said no, so that asking again is no use."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException) and 400 <= error.get_http_status_code() < 500


def main() -> int:
    """Send what is named on standard input, then what waits from earlier."""
    os.nice(NICENESS)
    if not sys.stdin.isatty():
        # Whoever ends a stage ends its process group. The record is closed first; the end of input ends this process.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    return 0 if send_all(Inbox()) and send_waiting() else 1


def _warn(error: Exception, record: Path | None = None) -> None:
    # Of a request that failed, the cause says most.
    cause = " ".join(str(error).split()).rpartition("Caused by ")[2]
    reason = without_credentials(cause)[:200]
    where = without_credentials(tracking_uri())
    waiting = f"{record} keeps its record; delete it to give it up" if record else WAITING
    print(f"warning: MLflow at {where}: {reason}; {waiting}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # taking MLflow's modules down in order costs a second, for which the stage would wait
