"""What a run of the flow `train` shows in Prefect: its progress, then a summary and a table of scores."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.objects import State

from pipeline.base.errors import without_credentials
from pipeline.base.profile import Params
from pipeline.flows.dag import StagePlan
from pipeline.release.registry import find_runs, flat_scores, select_variant
from pipeline.tracking.server import tracking_uri

EPOCH = re.compile(r"^\S+: epoch (\d+)/(\d+) ")  # progress.py's line
DEVICE = re.compile(r"^\S+: on (.+) \(asked for: ")  # stages/train.py's and score.py's
EXIT_STATUS = re.compile(r"exited with (-?\d+)$")  # DVC's
LOCAL_UI = "http://127.0.0.1:5000"  # where a bare `mlflow ui` shows a local database
UPDATE_SECONDS = 1.0  # between two updates of the progress artifact


class Report:
    """Collects what the stages say.

    Args:
        folder: the checkout or clone in which they run.
        experiment: name of the DVC experiment, if the run is one.
    """

    def __init__(self, folder: Path, params: Params, plan: list[StagePlan], *, experiment: str = "") -> None:
        self.folder = folder
        self.params = params
        self.plan = plan
        self.experiment = experiment
        self._outcomes: dict[str, tuple[str, float, str]] = {}  # stage to outcome, seconds, device
        self._device = ""
        self._started = time.monotonic()
        self._artifact: UUID | None = None
        self._updated = 0.0

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Shows the progress artifact meanwhile."""
        self._artifact = create_progress_artifact(0.0, key="progress", description="Stages done, epochs included")  # type: ignore[assignment]
        yield
        self._show(100.0, last=True)

    def starts(self) -> None:
        """A stage starts now."""
        self._device = ""
        self._started = time.monotonic()

    def output(self) -> "StageOutput":
        """For the output of a command of the stage."""
        return StageOutput(self)

    def finished(self, stage: str, state: State[Any]) -> None:
        """Note what came of a stage."""
        seconds = time.monotonic() - self._started
        self._outcomes[stage] = (state.name or "", 0.0 if state.name == "Unchanged" else seconds, self._device)
        self.advance(0.0)

    def advance(self, fraction: float) -> None:
        """A running stage is done to this fraction."""
        self._show(100.0 * (len(self._outcomes) + fraction) / len(self.plan))

    def sentence(self) -> str:
        """How many stages ran."""
        names = [name for name, _, _ in self._outcomes.values()]
        text = f"{names.count('Completed')} of {len(names)} stages ran, {names.count('Restored')} restored"
        return f"{text}; experiment {self.experiment}" if self.experiment else text

    def publish(self) -> None:
        """The summary and, if the models were evaluated, their scores."""
        evaluated = any(stage.name == "evaluate" for stage in self.plan) and "evaluate" in self._outcomes
        metrics = self._metrics() if evaluated else {}
        if metrics:
            best = select_variant(metrics, self.params.register_.candidates, self.params.register_.metric)
            rows = [{"model": name, "best": name == best, **flat_scores(groups)} for name, groups in metrics.items()]
            create_table_artifact(rows, key="scores", description="Every score of every model, as fractions")
        create_markdown_artifact(
            self._summary(list(metrics)), key="summary", description="Stages, scores and MLflow runs"
        )

    def see_device(self, device: str) -> None:
        """The stage says what it runs on."""
        self._device = device

    def _show(self, percent: float, *, last: bool = False) -> None:
        if self._artifact is None or (not last and time.monotonic() - self._updated < UPDATE_SECONDS):
            return
        self._updated = time.monotonic()
        update_progress_artifact(self._artifact, progress=min(percent, 100.0))

    def _metrics(self) -> dict[str, dict[str, dict[str, float]]]:
        path = self.folder / "reports" / "evaluate" / "metrics.json"
        metrics: dict[str, dict[str, dict[str, float]]] = json.loads(path.read_text(encoding="utf-8"))
        return metrics

    def _summary(self, models: list[str]) -> str:
        title = f"# {self.params.profile}, seed {self.params.seed}"
        lines = [title, "", "| stage | outcome | seconds | device |", "|---|---|---|---|"]
        for stage, (outcome, seconds, device) in self._outcomes.items():
            lines.append(f"| {stage} | {outcome} | {seconds:.1f} | {device} |")
        if models:
            report = (self.folder / "reports" / "evaluate" / "report.md").read_text(encoding="utf-8")
            lines += ["", "## Scores, percent", "", *(line for line in report.splitlines() if line.startswith("|"))]
            lines += ["", "## MLflow", "", *self._links(models)]
        if self.experiment:
            lines += ["", f"DVC experiment: `dvc exp apply {self.experiment}` brings it to the checkout."]
        return "\n".join(lines)

    def _links(self, models: list[str]) -> list[str]:
        weights = {
            name: self.folder / "models" / ("classify" if name == "pretrained" else f"finetune/{name}")
            for name in models
        }
        uri = tracking_uri()
        base = without_credentials(uri.rstrip("/")) if uri.startswith("http") else LOCAL_UI
        experiment_id, runs = find_runs({name: path.with_suffix(".safetensors") for name, path in weights.items()})
        return [f"- [{name}]({base}/#/experiments/{experiment_id}/runs/{run_id})" for name, run_id in runs.items()]


class StageOutput:
    """What a stage's output says beside its text."""

    def __init__(self, report: Report) -> None:
        self.ran = False
        self._report = report
        self._reasons: list[str] = []
        self._status: int | None = None

    def see(self, line: str) -> str | None:
        """Take note of a line; the device, where the line names it."""
        if line.startswith("Running stage "):
            self.ran = True
        if epoch := EPOCH.match(line):
            self._report.advance(int(epoch[1]) / int(epoch[2]))
        if ": error: " in line or line.startswith("ERROR: "):
            self._reasons.append(line)
        if status := EXIT_STATUS.search(line):
            self._status = int(status[1])
        if device := DEVICE.match(line):
            self._report.see_device(device[1])
            return device[1]
        return None

    def failure(self, status: int) -> str:
        """Why it failed, in one line: what the stage itself said, else what DVC says."""
        own = [reason for reason in self._reasons if not reason.startswith("ERROR: ")]
        if self.killed(status):
            return (
                f"{self._reasons[-1] if self._reasons else 'dvc'}: killed, perhaps for want of memory; a retry resumes"
            )
        return own[-1] if own else self._reasons[-1] if self._reasons else f"dvc ended with exit status {status}"

    def killed(self, status: int) -> bool:
        """Whether a signal ended the stage, or DVC itself."""
        number = status if self._status is None else self._status
        return number < 0 or (number > 128 and number != 255)
