"""What a run of the flow `train` shows in Prefect: its progress, then a summary and a table of scores."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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

from pipeline.base.errors import PipelineError
from pipeline.base.profile import Params
from pipeline.base.secrets import cleaned, without_secrets
from pipeline.base.workspace import Workspace
from pipeline.flows.dag import StagePlan
from pipeline.flows.display import Display
from pipeline.flows.flow_run import record_device
from pipeline.flows.output import Listener
from pipeline.release.registry import find_runs, select_variant
from pipeline.report.tables import Scores, flat_scores, results_table
from pipeline.tracking.server import tracking_uri

LOCAL_UI = "http://127.0.0.1:5000"  # where a bare `mlflow ui` shows a local database
PAGE = "evaluate/index.html"  # artifact of every run that was evaluated
UPDATE_SECONDS = 1.0  # between two updates of the progress artifact


@dataclass(frozen=True)
class _Finished:
    """One line of the summary."""

    outcome: str
    completed: bool
    seconds: float
    device: str

    def __str__(self) -> str:
        return f"{self.outcome} | {self.seconds:.1f} | {self.device}"


@dataclass
class _Running:
    """A stage at work."""

    report: "Report"
    started: float
    fraction: float = 0.0
    device: str = ""

    def advance(self, fraction: float) -> None:
        """The stage is done to this fraction, in [0, 1]."""
        self.fraction = fraction
        self.report.show_progress()

    def see_device(self, device: str) -> None:
        """The stage has chosen its device, which becomes a tag of the run."""
        self.device = device
        self.report.show_device(device)


class Report:
    """Collects what the stages of one run say, and publishes it as artifacts.

    Args:
        folder: the checkout or clone in which they run.
        experiment: name of the DVC experiment, if the run is one.
    """

    def __init__(self, folder: Path, params: Params, plan: list[StagePlan], *, experiment: str = "") -> None:
        self.folder = folder
        self.params = params
        self.plan = plan
        self.experiment = experiment
        self._space = Workspace(folder)
        self._finished: dict[str, _Finished] = {}
        self._running: dict[str, _Running] = {}
        self._artifact: UUID | None = None
        self._display = Display()
        self._updated = 0.0

    @contextmanager
    def published(self) -> Iterator[None]:
        """Shows the progress while the block runs, and the rest at its end, also if a stage fails."""
        self._show(0.0, last=True)
        try:
            with self._display.running():
                yield
                self._show(100.0, last=True)
        except PipelineError:
            self._publish()
            raise
        self._publish()

    def starts(self, stage: str) -> None:
        """A stage begins, others may be at work; its time is measured from here."""
        self._running[stage] = _Running(self, time.monotonic())

    def running(self, stage: str) -> Listener:
        """What hears of a stage that is at work."""
        return self._running[stage]

    def finished(self, stage: str, state: State[Any]) -> None:
        """A stage has ended in this state."""
        running = self._running.pop(stage)
        seconds = 0.0 if state.name == "Unchanged" else time.monotonic() - running.started
        self._finished[stage] = _Finished(state.name or "", state.is_completed(), seconds, running.device)
        self.show_progress()

    def show_progress(self) -> None:
        """Stages that have ended, and the fractions of those at work."""
        done = len(self._finished) + sum(running.fraction for running in list(self._running.values()))
        self._show(100.0 * done / len(self.plan))

    def show_device(self, device: str) -> None:
        """As a tag of the run."""
        self._display.show(f"device {device}", lambda: record_device(device))

    def sentence(self) -> str:
        """How many stages ran, and the name of the experiment."""
        names = [stage.outcome for stage in self._finished.values()]
        text = f"{names.count('Completed')} of {len(names)} stages ran, {names.count('Restored')} restored"
        return f"{text}; experiment {self.experiment}" if self.experiment else text

    def _show(self, percent: float, *, last: bool = False) -> None:
        if not last and time.monotonic() - self._updated < UPDATE_SECONDS:
            return
        self._updated = time.monotonic()
        self._display.show("progress", lambda: self._send(min(percent, 100.0)))

    def _send(self, percent: float) -> None:
        if self._artifact is None:
            description = "Stages done, epochs included"
            self._artifact = create_progress_artifact(percent, key="progress", description=description)  # type: ignore[assignment]
        else:
            update_progress_artifact(self._artifact, progress=percent)

    def _publish(self) -> None:
        """The summary and, if the models were evaluated, their scores."""
        metrics = self._metrics()
        if metrics:
            register = self.params.register_
            validation = self._scores("validation.json")
            best, chosen_by = select_variant(validation, register.candidates, register.metric), f"val/{register.metric}"
            rows = [
                {
                    "model": name,
                    "best": name == best,
                    chosen_by: validation[name][register.metric],
                    **flat_scores(groups),
                }
                for name, groups in metrics.items()
            ]
            description = f"Every test score of every model, as fractions; the best candidate is chosen by {chosen_by}"
            create_table_artifact(cleaned(rows), key="scores", description=description)
        summary = self._summary(metrics)
        create_markdown_artifact(without_secrets(summary), key="summary", description="Stages, scores and MLflow runs")

    def _metrics(self) -> dict[str, Scores]:
        """Scores of each model, as fractions; empty unless the models were evaluated."""
        evaluate = self._finished.get("evaluate")
        if evaluate is None or not evaluate.completed:
            return {}
        metrics: dict[str, Scores] = self._scores("metrics.json")
        return metrics

    def _scores(self, name: str) -> Any:
        return json.loads((self._space.reports / "evaluate" / name).read_text(encoding="utf-8"))

    def _summary(self, metrics: dict[str, Scores]) -> str:
        title = f"# {self.params.profile}, seed {self.params.seed}"
        lines = [title, "", "| stage | outcome | seconds | device |", "|---|---|---|---|"]
        lines += [f"| {stage} | {finished} |" for stage, finished in self._finished.items()]
        if metrics:
            lines += ["", "## Scores, percent", "", results_table(metrics)]
            lines += ["", "## MLflow", "", *self._links(list(metrics))]
        if self.experiment:
            lines += ["", f"DVC experiment: `dvc exp apply {self.experiment}` brings it to the checkout."]
        return "\n".join(lines)

    def _links(self, models: list[str]) -> list[str]:
        uri = tracking_uri()
        base = without_secrets(uri.rstrip("/")) if uri.startswith("http") else LOCAL_UI
        experiment_id, runs = find_runs({name: self._space.weights(name) for name in models})
        pages = {name: f"{base}/#/experiments/{experiment_id}/runs/{run_id}" for name, run_id in runs.items()}
        return [f"- [{name}]({page}), [what it attends to]({page}/artifacts/{PAGE})" for name, page in pages.items()]
