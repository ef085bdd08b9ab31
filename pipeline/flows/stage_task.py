"""One stage of dvc.yaml as a Prefect task: `dvc repro --single-item STAGE`, supervised, its output in the log."""

import os
import sys
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from pipeline.base.errors import PipelineError
from pipeline.flows import dag
from pipeline.flows.flow_run import current_flow_run
from pipeline.flows.outcome import KILLED, RunFailedError, failed, require_completed
from pipeline.flows.output import StageOutput
from pipeline.flows.report import Report
from pipeline.flows.supervisor import supervised
from pipeline.tracking.server import local_database, tracking_uri


def reproduce(stage: dag.StagePlan, report: Report, *, share: bool, force: bool = False) -> None:
    """One task run of `reproduce_stage`, with the retries that dvc.yaml grants the stage.

    Args:
        share: see the flow `train`.
        force: run the stage, also if DVC finds nothing changed.

    Raises:
        RunFailedError: the stage failed, or was killed, in the last try.
    """

    def is_worth_another_try(_task: Any, _run: Any, state: State[Any]) -> bool:
        return stage.meta.retries > 0 and (state.name == KILLED or stage.meta.retry_on == "any")

    configured = reproduce_stage.with_options(
        name=stage.name,
        description=stage.description,
        # Prefect logs a refused condition in one line, but exhausted retries with an empty traceback.
        retries=max(stage.meta.retries, 1),
        retry_delay_seconds=stage.meta.retry_delay,
        retry_condition_fn=is_worth_another_try,
    )
    report.starts()
    state: State[Any] = configured(stage.name, report, share, force, return_state=True)
    report.finished(stage.name, state)
    require_completed(state)


@task(persist_result=False, cache_policy=NO_CACHE)
def reproduce_stage(stage: str, report: Report, share: bool, force: bool) -> State[Any]:
    """`dvc repro --single-item STAGE`, its output in the log.

    The state is named after what happened: Unchanged, Restored (from the cache, without running), Completed, Failed, or
    Killed when a signal ended the stage.
    """
    # With --pull, DVC fetches a stage's outputs instead of running it; register has effects beyond its outputs.
    pull = share and stage != "register"
    options = [*(["--pull"] if pull else []), *(["--force"] if force else [])]
    try:
        if not force and dag.is_up_to_date(report.folder, stage):
            return Completed(name="Unchanged", message="up to date")
        ran = _dvc(["repro", "--single-item", *options, stage], report)
        if share and ran:
            _dvc(["push", "--run-cache", stage], report)
            dag.push_uncached(report.folder, stage)
    except PipelineError as error:
        return failed(error)
    except Exception as error:
        get_run_logger().exception("%s", type(error).__name__)
        return failed(error)
    return Completed(message="ran") if ran else Completed(name="Restored", message="restored, not run")


def _dvc(arguments: list[str], report: Report) -> bool:
    """Run DVC under supervision, its output in the log; whether it ran a stage.

    Raises:
        RunFailedError: DVC or the stage failed, or was killed.
    """
    logger, output = get_run_logger(), StageOutput(report)
    command = [sys.executable, "-m", "dvc", *arguments]
    with supervised(command, folder=report.folder, environment=_environment(report)) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if text := line.rstrip():
                level = "error" if "error: " in text.lower() else "warning" if "warning: " in text.lower() else "info"
                getattr(logger, level)("%s", text)
                output.see(text)
        status = process.wait()
    if status != 0:
        raise RunFailedError(output.failure(status), KILLED if output.killed(status) else "Failed")
    return output.ran


def _environment(report: Report) -> dict[str, str]:
    """Of a stage's process: this Python first on the path, and one MLflow record for the checkout and its clones."""
    database = local_database()
    added = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "MLFLOW_TRACKING_URI": f"sqlite:///{database}" if database else tracking_uri(),
        "PREFECT__FLOW_RUN_ID": str(current_flow_run().id),
        "DVC_NO_ANALYTICS": "true",
    }
    if report.experiment:
        added["DVC_EXP_NAME"] = report.experiment
    return {**os.environ, **added}
