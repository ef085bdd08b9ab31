"""Many runs of one deployment, shared by the workers of its pool."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from pipeline.base.errors import PipelineError

POLL_SECONDS = 2.0
UNATTENDED_SECONDS = 60.0  # without a worker, after which the runs are cancelled


def run_on_workers(runs: Sequence[Mapping[str, Any]], deployment: str, max_parallel: int) -> list[FlowRun]:
    """Run all as runs of `deployment` until each has ended; when this flow ends early, so do they.

    Args:
        runs: parameters of each, its name as `experiment` among them.
        max_parallel: runs that have not ended, at most.

    Returns:
        The runs, in the order of `runs`, completed or not.

    Raises:
        PipelineError: deployment or pool do not exist, or no worker has been online for `UNATTENDED_SECONDS`.
    """
    children: list[FlowRun] = []
    with get_client(sync_client=True) as client:
        pool = _pool_of(client, deployment)
        attended = time.monotonic()
        try:
            while len(children) < len(runs) or _unfinished(children):
                while len(children) < len(runs) and len(_unfinished(children)) < max_parallel:
                    children.append(_start(deployment, runs[len(children)]))
                time.sleep(POLL_SECONDS)
                children = [child if _is_final(child) else client.read_flow_run(child.id) for child in children]
                open_runs = _unfinished(children)
                if not open_runs or any(_is_running(child) for child in open_runs) or _has_worker(client, pool):
                    attended = time.monotonic()
                if time.monotonic() - attended > UNATTENDED_SECONDS:
                    raise PipelineError(_no_worker(pool))
        finally:
            for child in _unfinished(children):
                with suppress(Exception):  # the others must be cancelled too
                    client.set_flow_run_state(child.id, Cancelling(message="its sweep ended"))
    return children


def _start(deployment: str, parameters: Mapping[str, Any]) -> FlowRun:
    return run_deployment(  # type: ignore[return-value]
        deployment, parameters=dict(parameters), timeout=0, flow_run_name=parameters["experiment"]
    )


def _unfinished(runs: Sequence[FlowRun]) -> list[FlowRun]:
    return [run for run in runs if not _is_final(run)]


def _is_final(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()


def _is_running(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_running()


def _pool_of(client: SyncPrefectClient, deployment: str) -> str:
    """Name of the work pool, which exists and has a worker."""
    create = f"`prefect deploy --name '{deployment}'` creates it as prefect.yaml says"
    try:
        pool: str | None = client.read_deployment_by_name(deployment).work_pool_name
    except ObjectNotFound:
        raise PipelineError(f"no deployment {deployment!r}; {create}") from None
    if pool is None:
        raise PipelineError(f"the deployment {deployment} has no work pool; {create}")
    if not _has_worker(client, pool):
        raise PipelineError(_no_worker(pool))
    return pool


def _has_worker(client: SyncPrefectClient, pool: str) -> bool:
    try:
        workers = client.read_workers_for_work_pool(pool)
    except ObjectNotFound:
        raise PipelineError(f"the work pool {pool} does not exist; `prefect work-pool create {pool}`") from None
    return any(str(worker.status.value) == "ONLINE" for worker in workers)


def _no_worker(pool: str) -> str:
    return f"no worker of the pool {pool} is online; `prefect worker start --pool {pool}`"
