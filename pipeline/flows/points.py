"""The points of a sweep: which they are, whether they can run, and how they run on workers."""

import itertools
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.states import Cancelling

from pipeline.base.errors import PipelineError
from pipeline.flows.experiments import apply_overrides

CHILD_POLL_SECONDS = 2.0
UNATTENDED_SECONDS = 60.0  # without a worker, after which a sweep gives its waiting runs up


def sweep_points(grid: Mapping[str, Sequence[Any]] | None, points: Sequence[Sequence[str]] | None) -> list[list[str]]:
    """Every combination of a grid, or the points as they are.

    Raises:
        PipelineError: both or neither are given.
    """
    if bool(grid) == bool(points):
        raise PipelineError("sweep takes a grid or a list of points, one of the two")
    if points:
        return [list(point) for point in points]
    assert grid is not None
    names = list(grid)
    combinations = itertools.product(*(grid[name] for name in names))
    return [
        [f"{name}={json.dumps(value)}" for name, value in zip(names, values, strict=True)] for values in combinations
    ]


def check_points(points: Sequence[Sequence[str]], profile: str | None) -> None:
    """Every point is checked before the first one trains."""
    text = Path("params.yaml").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        for point in points:
            path = Path(folder) / "params.yaml"
            path.write_text(text, encoding="utf-8")
            apply_overrides(path, [*([f"profile={profile}"] if profile else []), *point])


def run_on_workers(runs: Sequence[Mapping[str, Any]], deployment: str, max_parallel: int) -> list[FlowRun]:
    """Run all as runs of `deployment`, in the order of `runs`; when this flow ends early, so do they.

    Args:
        runs: parameters of each, its name as `experiment` among them.
        max_parallel: runs in flight at most.

    Raises:
        PipelineError: deployment or pool are missing, or no worker has been online for `UNATTENDED_SECONDS`.
    """
    waiting, flying, done = list(enumerate(runs)), dict[int, UUID](), dict[int, FlowRun]()
    with get_client(sync_client=True) as client:
        pool = _pool_of(client, deployment)
        unattended_since: float | None = None
        try:
            while waiting or flying:
                while waiting and len(flying) < max_parallel:
                    index, parameters = waiting.pop(0)
                    child = run_deployment(
                        deployment, parameters=dict(parameters), timeout=0, flow_run_name=parameters["experiment"]
                    )
                    flying[index] = child.id  # type: ignore[union-attr]
                time.sleep(CHILD_POLL_SECONDS)
                found = {index: client.read_flow_run(identity) for index, identity in flying.items()}
                for index, run in found.items():
                    if run.state is not None and run.state.is_final():
                        done[index] = run
                        del flying[index]
                started = any(run.state is not None and run.state.is_running() for run in found.values())
                attended = started or not flying or _has_worker(client, pool)
                unattended_since = None if attended else (unattended_since or time.monotonic())
                if unattended_since is not None and time.monotonic() - unattended_since > UNATTENDED_SECONDS:
                    raise PipelineError(f"no worker of the pool {pool} is online; `prefect worker start --pool {pool}`")
        finally:
            for identity in flying.values():
                with suppress(Exception):  # the others must be cancelled too
                    client.set_flow_run_state(identity, Cancelling(message="its sweep ended"))
    return [done[index] for index in range(len(runs))]


def _pool_of(client: Any, deployment: str) -> str:
    """Name of the work pool, which exists and has a worker."""
    from prefect.exceptions import ObjectNotFound

    try:
        pool: str | None = client.read_deployment_by_name(deployment).work_pool_name
    except ObjectNotFound:
        raise PipelineError(
            f"no deployment {deployment!r}; `prefect deploy --all` makes those of prefect.yaml"
        ) from None
    if pool is None:
        raise PipelineError(f"the deployment {deployment} has no work pool; `prefect deploy --all` gives it one")
    if not _has_worker(client, pool):
        raise PipelineError(f"no worker of the pool {pool} is online; `prefect worker start --pool {pool}`")
    return pool


def _has_worker(client: Any, pool: str) -> bool:
    from prefect.exceptions import ObjectNotFound

    try:
        workers = client.read_workers_for_work_pool(pool)
    except ObjectNotFound:
        raise PipelineError(f"the work pool {pool} does not exist; `prefect work-pool create {pool}`") from None
    return any(str(worker.status.value) == "ONLINE" for worker in workers)


def best_scores(flow_run_id: UUID) -> dict[str, float]:
    """Scores of the best candidate of a point, from the table that its run left with the server."""
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey

    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]), key=ArtifactFilterKey(any_=["scores"])
            )
        )
    if not artifacts:
        return {}
    rows = json.loads(str(artifacts[0].data))
    best = next((row for row in rows if row.pop("best")), None)
    return {name: value for name, value in (best or {}).items() if isinstance(value, float)}
