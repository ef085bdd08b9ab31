"""One stage of dvc.yaml as a Prefect task, and the flow run around it: its device, its end with its worker."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.states import Completed, Failed

from pipeline.base.errors import PipelineError
from pipeline.flows import dag
from pipeline.flows.report import Report, StageOutput
from pipeline.flows.supervisor import supervised
from pipeline.tracking.server import local_database, tracking_uri

PARENT_POLL_SECONDS = 1.0
KILLED = "Killed"  # name of the state of a stage that a signal ended, as when memory runs out


def current_flow_run() -> FlowRun:
    """The flow run that this code is part of."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return context.flow_run


def reproduce(stage: dag.StagePlan, report: Report, *, share: bool, force: bool = False) -> State[Any]:
    """One task run of `reproduce_stage`, with the retries that dvc.yaml grants the stage."""

    def is_worth_another_try(_task: Any, _run: Any, state: State[Any]) -> bool:
        return stage.retries > 0 and (state.name == KILLED or stage.retry_on == "any")

    # Prefect logs a refused condition in one line, but exhausted retries with a traceback that is none.
    configured = reproduce_stage.with_options(
        name=stage.name,
        description=stage.description,
        retries=max(stage.retries, 1),
        retry_delay_seconds=stage.retry_delay,
        retry_condition_fn=is_worth_another_try,
    )
    report.starts()
    state: State[Any] = configured(stage.name, report, share, force, return_state=True)
    report.finished(stage.name, state)
    return state


@task(persist_result=False, cache_policy=NO_CACHE)
def reproduce_stage(stage: str, report: Report, share: bool, force: bool) -> State[Any]:
    """`dvc repro --single-item STAGE`, its output in the log.

    The state is named after what happened: Unchanged, Restored (from the cache, without running), Completed, Failed, or
    Killed when a signal ended the stage.
    """
    try:
        if not force and dag.is_up_to_date(report.folder, stage):
            return Completed(name="Unchanged", message="up to date")
    except PipelineError as error:
        return Failed(message=str(error))
    options = [*(["--pull"] if share else []), *(["--force"] if force else [])]
    try:
        outcome = _dvc(["repro", "--single-item", *options, stage], report)
        if share and outcome.ran:
            _dvc(["push", "--run-cache", stage], report)
    except StageError as failure:
        return Failed(name=KILLED if failure.killed else "Failed", message=str(failure))
    return Completed(message="ran") if outcome.ran else Completed(name="Restored", message="restored, not run")


class StageError(Exception):
    """A stage ended with a failure that was reported, or by a signal."""

    def __init__(self, message: str, *, killed: bool) -> None:
        super().__init__(message)
        self.killed = killed


def _dvc(arguments: list[str], report: Report) -> StageOutput:
    """Run DVC under supervision; its output goes to the log and to `report`."""
    logger, output = get_run_logger(), report.output()
    environment = _environment(report)
    with supervised(
        [sys.executable, "-m", "dvc", *arguments], folder=report.folder, environment=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if text := line.rstrip():
                level = "error" if "error: " in text.lower() else "warning" if "warning: " in text.lower() else "info"
                getattr(logger, level)("%s", text)
                if device := output.see(text):
                    record_device(device)
        status = process.wait()
    if status != 0:
        raise StageError(output.failure(status), killed=output.killed(status))
    return output


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


def visible_gpus() -> str:
    """The GPUs that the worker gives its runs, as a tag."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "CUDA_VISIBLE_DEVICES unset" if visible is None else f"CUDA_VISIBLE_DEVICES={visible}"


def record_device(tag: str) -> None:
    """As a tag of the flow run: the GPUs that the worker was given, then the device that a stage says it chose."""
    identity = current_flow_run().id
    with get_client(sync_client=True) as client:
        tags = set(client.read_flow_run(identity).tags)
        if tag not in tags:
            client.update_flow_run(identity, tags=sorted({*tags, tag}))


@contextmanager
def ended_with_parent() -> Iterator[None]:
    """On a worker, a flow ends when its worker does: otherwise the next worker would share the GPU with it."""
    done, parent = threading.Event(), os.getppid()

    def watch() -> None:
        while not done.wait(PARENT_POLL_SECONDS):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    if "PREFECT__FLOW_RUN_ID" in os.environ:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()
