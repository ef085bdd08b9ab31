"""The record of a run, written to disk; it neither talks to a server nor imports mlflow.

A `Tracker` appends events to a folder, its spool. A sender process (sender.py) reads the spools and sends them to
MLflow; it starts first, so that importing mlflow overlaps with importing torch. A server that is down or slow costs one
warning, and what it missed waits in the spool for the next run.

    .tracking/NAME/header.json     run name, tags, parameters, data set
    .tracking/NAME/events.jsonl    one event a line: metrics, image, artifact, tags, describe, finish
    .tracking/NAME/files/          pictures and artifacts
    .tracking/NAME/system.jsonl    written by the sender: CPU, memory, disk, network and GPU use, as events
    .tracking/NAME/state.json      written by the sender: run id, and how many events of each file it has sent
"""

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from PIL import Image

from pipeline.base.errors import warn
from pipeline.base.files import write_json
from pipeline.base.secrets import cleaned, cleaned_file
from pipeline.tracking.provenance import experiment, reproduction, source_tags

SPOOLS = Path(".tracking")
DESCRIPTION_TAG = "mlflow.note.content"  # Markdown that MLflow's UI shows at the top of a run
WEIGHTS_TAG = "weights_sha256"  # of the weights that a run produced; evaluation and registration find the run by it
FINISH_SECONDS = 60.0  # for which a finished stage waits for its sender
WAITING = f"what was missed waits in {SPOOLS} for the next stage or `gain sync`; CSV and JSON are complete"


class Tracking:
    """The sender process of a stage, as a context manager; open it before the slow imports.

    Where MLflow is not installed, one line says so, and what is recorded waits.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        if find_spec("mlflow") is None:
            print(
                f"MLflow is not installed, so tracking is off: the record stays in {SPOOLS} (`gain sync`)", flush=True
            )
        else:
            command = [sys.executable, "-m", "pipeline.tracking.sender"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        try:
            self._process.communicate(timeout=FINISH_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            warn(f"MLflow is slow; {WAITING}")

    def send(self, name: str) -> None:
        """Make the sender send the spool `name` from now on; if the sender has died, warn."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{name}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            warn(f"the MLflow sender has died; {WAITING}")


class Tracker:
    """Record of one MLflow run, as a context manager. A run that was interrupted continues in its old spool.

    Args:
        tracking: sends the spool.
        name: of the spool; the same name continues the same run.
        run_name: as shown in the UI; within a DVC experiment, its name is appended.
        params: nested parameters; logged flat, as "finetune.learning_rate".
        tags: empty ones are left out.
        weights_sha256: of the weights whose run to continue; if the server has no such run, a new one starts.
        dataset: {"name", "digest", "context"} of the data that the run sees.
    """

    def __init__(
        self,
        tracking: Tracking,
        name: str,
        *,
        run_name: str,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        weights_sha256: str | None = None,
        dataset: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = SPOOLS / name
        all_tags = {**source_tags(), DESCRIPTION_TAG: reproduction(), **(tags or {})}
        header = {
            "record": self._record_id(),
            "run_name": "-".join(filter(None, (run_name, experiment()))),
            "params": flatten(params or {}),
            "tags": {key: value for key, value in all_tags.items() if value},
            "weights_sha256": weights_sha256,
            "dataset": dict(dataset) if dataset else None,
        }
        (self.folder / "files").mkdir(parents=True, exist_ok=True)
        # A resumed training repeats the epoch in which it was killed; what it recorded the first time stays.
        self._recorded = {(event["kind"], event.get("key"), event.get("step")) for event in read_events(self.folder)}
        self._failed = False
        self._events: IO[str] = (self.folder / "events.jsonl").open("a", encoding="utf-8")
        write_json(self.folder / "header.json", cleaned(header))
        tracking.send(name)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(finished=error is None)

    def close(self, *, finished: bool) -> None:
        """Record nothing more; a run that is not `finished` goes on when its stage is called again."""
        if finished:
            self._record("finish")
        with suppress(OSError):  # `_record` has warned of a full disk
            self._events.close()

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Record the values of one epoch, or of one test.

        Args:
            step: the epoch, counted from 1; 0 for a test.
        """
        self._record("metrics", step=step, values=dict(metrics))

    def log_image(self, key: str, image: Image.Image, *, step: int) -> None:
        """Record a picture for the UI's image grid, which lines equal keys up by step and across runs.

        Args:
            step: as in `log_metrics`.
        """
        buffer = BytesIO()
        image.save(buffer, "PNG")
        self._record("image", buffer.getvalue(), key=key, step=step, file=f"{key.replace('/', '_')}_{step:04d}.png")

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Record a file, as it is now.

        Args:
            folder: where the run keeps it among its artifacts; "" for their root.
        """
        self._record(
            "artifact", cleaned_file(path.read_bytes()), key=f"{folder}/{path.name}", file=path.name, folder=folder
        )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record tags that are known only after the run has begun, such as the digest of its weights."""
        self._record("tags", values=dict(tags))

    def describe(self, result: str) -> None:
        """Record Markdown to show at the top of the run, above the commands that repeat it."""
        self._record("describe", result=result)

    def _record_id(self) -> str:
        """Unique name of the run, made with its spool and kept from then on."""
        path = self.folder / "header.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return str(before.get("record") or uuid.uuid4().hex)

    def _record(self, kind: str, content: bytes | None = None, **event: Any) -> None:
        identity = (kind, event.get("key"), event.get("step"))
        if self._failed or (kind in ("metrics", "image") and identity in self._recorded):
            return
        self._recorded.add(identity)
        try:
            if content is not None:
                (self.folder / "files" / event["file"]).write_bytes(content)
            self._events.write(json.dumps({"kind": kind, "time": int(time.time() * 1000), **cleaned(event)}) + "\n")
            self._events.flush()
        except OSError as error:
            self._failed = True
            warn(f"{self.folder}: {error}; this run is no longer tracked")


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Events of a spool in the order in which they were recorded. A line cut short by kill -9 is removed from it."""
    path = folder / "events.jsonl"
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    if complete != text:
        path.write_text(complete, encoding="utf-8")
    return [json.loads(line) for line in complete.splitlines()]


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"a": {"b": 1}} to {"a.b": "1"}."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: str(value)}
    return flat
