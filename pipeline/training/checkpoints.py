"""Checkpoints that survive kill -9: written whole or not at all, found again only by the run that wrote them.

A finished training keeps its checkpoint, marked as finished, until DVC has committed the weights: what DVC fails to
commit, on a full disk or because it was killed, is written again from there.
"""

import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from pipeline.base.errors import PipelineError
from pipeline.base.files import atomic_file, write_text
from pipeline.base.finished import FINISHED

# Rooms that decide what a training computes; editing any other one leaves checkpoints valid.
RESULT_ROOMS = ("base", "data", "model", "gain", "training", "evaluation")
# Loader workers of a trainer that was killed keep its lock for a few seconds more.
LOCK_SECONDS = 15.0


def fingerprint(stage: str, params: Mapping[str, Any], inputs: Iterable[Path]) -> str:
    """Name of a training run: equal only if stage, parameters, input files, code and torch version are equal."""
    digest = hashlib.sha256(json.dumps([stage, params, torch.__version__], sort_keys=True).encode())
    for path in [*inputs, *_code_files()]:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class CheckpointFile:
    """The checkpoint of one training run.

    Args:
        folder: checkpoints/STAGE; outside every DVC output, since DVC deletes those before a stage runs.
        name: fingerprint of the run.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._running, self._finished = folder / f"{name}.pt", folder / f"{name}{FINISHED}"
        self._lock, self._holder = folder / f"{name}.lock", folder / f"{name}.trainer"

    @property
    def path(self) -> Path:
        """Where the state is, or will be."""
        return self._finished if self.is_finished else self._running

    @property
    def is_finished(self) -> bool:
        """Whether the training is complete, its record included, and only its outputs may be missing."""
        return self._finished.exists()

    @contextmanager
    def held(self) -> Iterator[None]:
        """No other process trains from this checkpoint meanwhile; the system gives it free if this process dies.

        Raises:
            PipelineError: another one does.
        """
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self._lock).acquire(timeout=LOCK_SECONDS)
        except Timeout:
            holder = self._holder.read_text(encoding="utf-8") if self._holder.exists() else "another process"
            raise PipelineError(
                f"{holder} is at this training already; wait until it is done, or end it, and rerun"
            ) from None
        with lock:
            since = datetime.now().astimezone().isoformat(" ", "minutes")
            write_text(self._holder, f"process {os.getpid()} on {socket.gethostname()}, started {since},")
            try:
                yield
            finally:
                self._holder.unlink(missing_ok=True)

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint by `state` in one step.

        Raises:
            PipelineError: it could not be written; the previous one is untouched.
        """
        try:
            with atomic_file(self._running) as partial, partial.open("wb") as file:
                torch.save(dict(state), file)
        # torch's zip writer turns a failed write into a RuntimeError.
        except (OSError, RuntimeError) as error:
            kept = f"epoch {self._epoch()} is still in {self.path}" if self.path.exists() else "there is no earlier one"
            failures = [e for e in (error, error.__context__) if isinstance(e, OSError)]
            reason = failures[0] if failures else str(error).split("\n")[0]
            raise PipelineError(
                f"{self.path}: checkpoint could not be written ({reason}); {kept}; "
                "free some disk space and rerun to resume"
            ) from error

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None without a checkpoint.

        Raises:
            PipelineError: the file is damaged.
        """
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise PipelineError(f"{self.path}: checkpoint cannot be read ({error}); delete it to start over") from error
        return state

    def finish(self) -> None:
        """Mark the training as complete; checkpoints of earlier finished trainings of the same name are removed."""
        if self._running.exists():
            self._running.replace(self._finished)
        for path in self._finished.parent.glob(f"*{FINISHED}"):
            if path != self._finished:
                path.unlink(missing_ok=True)

    def _epoch(self) -> int:
        return int(torch.load(self.path, map_location="cpu", weights_only=True)["epoch"])


def _code_files() -> list[Path]:
    package = Path(__file__).parents[1]
    files = [path for room in RESULT_ROOMS for path in sorted((package / room).rglob("*.py"))]
    return [*files, package.parent / "stages" / "train.py"]
