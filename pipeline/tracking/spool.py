"""One spool (tracker.py) on its way to MLflow: every event arrives once, whichever process or server dies."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from PIL import Image

from pipeline.base.files import write_json
from pipeline.tracking.server import find_run
from pipeline.tracking.system_metrics import SystemMetrics
from pipeline.tracking.tracker import DESCRIPTION_TAG, WEIGHTS_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

RECORD_TAG = "mlflow.gain.record"  # names the spool that a run is made of; MLflow's UI hides tags that begin so
EVENTS, SYSTEM = "events.jsonl", "system.jsonl"


class SentError(Exception):
    """Another sender has sent the spool, which is gone."""


class Spool:
    """A spool that this process sends, from where an earlier sender stopped. Methods pass on every error of MLflow.

    An event that was being sent when a sender or a server died is looked up in MLflow before it is sent again.

    Args:
        folder: .tracking/NAME.
        watch: record this machine's use to the run until `close`.

    Raises:
        filelock.Timeout: another sender has the spool, as after kill -9 of the stage that it served.
        SentError: another one had it, and it is gone.
    """

    def __init__(self, folder: Path, *, watch: bool) -> None:
        from filelock import FileLock

        self._lock = FileLock(folder / "sender.lock")
        self.folder = folder
        try:
            self._lock.acquire(timeout=0)
            self.header = json.loads((folder / "header.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            self._leave_nothing()
            raise SentError(folder) from None
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
            with TemporaryDirectory(prefix="sent-", dir=self.folder.parent) as sent:
                # In one step: another sender would take what is half removed for a spool.
                self.folder.rename(Path(sent) / self.folder.name)
        self.release()

    def release(self) -> None:
        """Leave the spool to other senders."""
        self._lock.release()

    def _leave_nothing(self) -> None:
        """Take away what the lock has made in place of a spool that is gone."""
        with suppress(OSError):
            Path(self._lock.lock_file).unlink(missing_ok=True)  # while it is held
            self.folder.rmdir()
        self.release()

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
        # An earlier sender may have created the run and lost the answer.
        begun = client.search_runs([experiment_id], f"tags.`{RECORD_TAG}` = '{record}'", max_results=1)
        run = begun[0] if begun else client.create_run(experiment_id, tags=tags, run_name=self.header["run_name"])
        run_id: str = run.info.run_id
        client.log_batch(run_id, params=[Param(key, value) for key, value in self.header["params"].items()])
        if self.header["dataset"]:
            log_dataset(client, run_id, self.header["dataset"])
        print(f"MLflow: run {self.header['run_name']} is {run_id}", flush=True)
        return run_id

    def _send_file(self, client: "MlflowClient", name: str) -> None:
        for event in self._unsent(name):
            if name not in self._in_doubt or not self._has_arrived(client, event):
                self._in_doubt.add(name)
                self._send_event(client, event)
            self._save(**{name: self.state[name] + 1})
            self._in_doubt.discard(name)

    def _unsent(self, name: str) -> Iterator[dict[str, Any]]:
        """Events of one of the two files that have not been sent; a line that is still being written is left."""
        path = self.folder / name
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        yield from (json.loads(line) for line in lines[self.state[name] :] if line.endswith("\n"))

    def _send_event(self, client: "MlflowClient", event: Mapping[str, Any]) -> None:
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
            # The commands that made a run stay, also where another experiment scores it.
            commands = client.get_run(run_id).data.tags.get(DESCRIPTION_TAG, "").rpartition("\n\n")[2]
            client.set_tag(run_id, DESCRIPTION_TAG, f"{event['result']}\n\n{commands}")
        elif kind == "finish":
            self.finished = True

    def _has_arrived(self, client: "MlflowClient", event: Mapping[str, Any]) -> bool:
        """Whether the run has an event already. Tags and artifacts may be sent twice: the second replaces the first."""
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
    """Send the rest of a picture whose first part has arrived; False if no part has.

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
    """Record name and digest of the data that a run saw, as an MLflow dataset input.

    Args:
        dataset: {"name", "digest", "context"}.
    """
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    # MLflow keeps 36 characters of a digest.
    meta = MetaDataset(CodeDatasetSource(tags={}), name=dataset["name"], digest=dataset["digest"][:36])
    context = InputTag("mlflow.data.context", dataset["context"])
    client.log_inputs(run_id, [DatasetInput(meta._to_mlflow_entity(), [context])])
