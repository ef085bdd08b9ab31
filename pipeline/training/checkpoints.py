"""Checkpoints that survive kill -9: written whole or not at all, found again only by the run that wrote them."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.base.errors import PipelineError
from pipeline.base.files import atomic_file

# Rooms that decide what a training computes; editing any other one leaves checkpoints valid.
RESULT_ROOMS = ("base", "data", "model", "gain", "training", "evaluation")


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
        self.path = folder / f"{name}.pt"

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint by `state` in one step.

        Raises:
            PipelineError: it could not be written; the previous one is untouched.
        """
        try:
            with atomic_file(self.path) as partial, partial.open("wb") as file:
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

    def remove(self) -> None:
        """Delete the checkpoint: its run is complete."""
        self.path.unlink(missing_ok=True)

    def _epoch(self) -> int:
        return int(torch.load(self.path, map_location="cpu", weights_only=True)["epoch"])


def _code_files() -> list[Path]:
    package = Path(__file__).parents[1]
    files = [path for room in RESULT_ROOMS for path in sorted((package / room).rglob("*.py"))]
    return [*files, package.parent / "stages" / "train.py"]
