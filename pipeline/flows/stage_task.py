"""One stage of dvc.yaml as a Prefect task: `dvc repro --single-item STAGE`, supervised, its output in the log."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed

from pipeline.base.errors import PipelineError
from pipeline.flows import dag
from pipeline.flows.flow_run import current_flow_run
from pipeline.flows.outcome import KILLED, RunFailedError, failed, require_completed
from pipeline.flows.output import StageOutput
from pipeline.flows.report import Report
from pipeline.flows.supervisor import Commands
from pipeline.tracking.server import local_database, tracking_uri

BUSY_SECONDS = 1.0  # between two looks at a folder that another DVC process has


class Runner:
    """Runs stages of one flow run, each as a task with the retries that dvc.yaml grants it.

    Args:
        report: hears of them.
        share: see the flow `train`.
    """

    def __init__(self, report: Report, *, share: bool) -> None:
        self.report = report
        self.share = share
        self.commands = Commands()
        self.stopped = False  # another stage has failed: none begins, and none is tried again

    def reproduce(self, stage: dag.StagePlan, *, force: bool = False) -> None:
        """Run a stage here, and wait for it.

        Args:
            force: also if DVC finds nothing changed.

        Raises:
            RunFailedError: the stage failed, or was killed, in the last try.
        """
        self.report.starts(stage.name)
        state: State[Any] = self._task(stage)(stage.name, self, force=force, return_state=True)
        self.report.finished(stage.name, state)
        require_completed(state)

    def submit(self, stage: dag.StagePlan, devices: str) -> PrefectFuture[Any]:
        """Run a stage in a thread; the report is to be told of its end.

        Args:
            devices: those of the worker's that it may use, as in CUDA_VISIBLE_DEVICES.
        """
        self.report.starts(stage.name)
        return self._task(stage).submit(stage.name, self, devices=devices)

    def _task(self, stage: dag.StagePlan) -> Task[..., State[Any]]:
        def is_worth_another_try(_task: Any, _run: Any, state: State[Any]) -> bool:
            if stage.meta.retries == 0 or self.stopped or self.commands.ended:
                return False
            return state.name == KILLED or stage.meta.retry_on == "any"

        return reproduce_stage.with_options(
            name=stage.name,
            description=stage.description,
            # Prefect logs a refused condition in one line, but exhausted retries with an empty traceback.
            retries=max(stage.meta.retries, 1),
            retry_delay_seconds=stage.meta.retry_delay,
            retry_condition_fn=is_worth_another_try,
        )


@task(persist_result=False, cache_policy=NO_CACHE)
def reproduce_stage(stage: str, runner: Runner, *, force: bool = False, devices: str | None = None) -> State[Any]:
    """`dvc repro --single-item STAGE`, its output in the log.

    The state is named after what happened: Unchanged, Restored (from the cache, without running), Completed, Failed, or
    Killed when a signal ended the stage.
    """
    folder = runner.report.folder
    if runner.stopped:  # while this one waited for its next try
        return failed(PipelineError("not tried again, as another stage has failed"))
    # With --pull, DVC fetches a stage's outputs instead of running it; register has effects beyond its outputs.
    pull = runner.share and stage != "register"
    options = [*(["--pull"] if pull else []), *(["--force"] if force else [])]
    try:
        if not force and _is_up_to_date(stage, runner):
            return Completed(name="Unchanged", message="up to date")
        ran = _dvc(["repro", "--single-item", *options, stage], stage, runner, devices)
        if runner.share and ran:
            _dvc(["push", "--run-cache", stage], stage, runner, devices)
            dag.push_uncached(folder, stage)
    except PipelineError as error:
        return failed(error)
    except Exception as error:
        get_run_logger().exception("%s", type(error).__name__)
        return failed(error)
    return Completed(message="ran") if ran else Completed(name="Restored", message="restored, not run")


def _is_up_to_date(stage: str, runner: Runner) -> bool:
    """As `dag.is_up_to_date`, once no other DVC process is in the way: a stage at work beside this one, or a user's."""
    said = False
    while True:
        try:
            return dag.is_up_to_date(runner.report.folder, stage)
        except dag.BusyError as error:
            if runner.commands.ended:
                raise
            if not said:
                said = True
                get_run_logger().info("waiting: %s", error)
            time.sleep(BUSY_SECONDS)


def _dvc(arguments: list[str], stage: str, runner: Runner, devices: str | None) -> bool:
    """Run DVC under supervision, its output in the log; whether it ran a stage.

    Raises:
        RunFailedError: DVC or the stage failed, or was killed.
    """
    logger, output = get_run_logger(), StageOutput(runner.report.running(stage))
    # A stage beside this one may hold the folder: while DVC looks at its files or pushes, not while it is at work.
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]
    environment = _environment(runner.report, devices)
    with runner.commands.running(command, folder=runner.report.folder, environment=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if text := line.rstrip():
                level = "error" if "error: " in text.lower() else "warning" if "warning: " in text.lower() else "info"
                getattr(logger, level)("%s", text)
                output.see(text)
        status = process.wait()
    if status != 0 and runner.commands.ended:
        raise RunFailedError("ended with its run; started again, it resumes", KILLED)
    if status != 0:
        raise RunFailedError(output.failure(status), KILLED if output.killed(status) else "Failed")
    return output.ran


def _environment(report: Report, devices: str | None) -> dict[str, str]:
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
    if devices is not None:
        added["CUDA_VISIBLE_DEVICES"] = devices
    return {**os.environ, **added}
