"""The flow `sweep`: many runs of `train`, each with other parameters."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State

from pipeline.base.errors import PipelineError
from pipeline.flows import dag
from pipeline.flows.flow_run import current_flow_run
from pipeline.flows.outcome import completed, one_line_failures
from pipeline.flows.points import best_scores, check_points, sweep_points
from pipeline.flows.train import train
from pipeline.flows.workers import run_on_workers


@flow(name="sweep", description="Many runs of the pipeline with other parameters.", persist_result=False)
@one_line_failures
def sweep(
    grid: dict[str, list[Any]] | None = None,
    points: list[list[str]] | None = None,
    profile: str | None = None,
    targets: list[str] | None = None,
    deployment: str | None = None,
    max_parallel: int = 4,
    share: bool = False,
) -> State[Any]:
    """One run of `train` for each point, each a DVC experiment and an MLflow run; a failed one leaves the others alone.

    Args:
        grid: parameter to values; every combination is a point.
        points: or the points themselves, each a list of overrides.
        profile: see `train`.
        targets: stages of each point; evaluate without, since registering every point would hide the best.
        deployment: of train, as "train/local", whose workers share the points; without one they run here in turn.
        max_parallel: points in flight at most.
        share: see `train`.
    """
    chosen, wanted = sweep_points(grid, points), targets or ["evaluate"]
    if max_parallel < 1:
        raise PipelineError(f"max_parallel is {max_parallel}; at least 1 run must be in flight")
    check_points(chosen, profile)
    dag.plan(Path.cwd(), wanted)
    name, common = current_flow_run().name, {"profile": profile, "targets": wanted, "share": share}
    runs = [
        {**common, "overrides": point, "experiment": f"{name}-{index:02d}"} for index, point in enumerate(chosen, 1)
    ]
    finished = run_on_workers(runs, deployment, max_parallel) if deployment else [_run_here(run) for run in runs]
    rows: list[dict[str, Any]] = [
        {
            "experiment": run["experiment"],
            "overrides": " ".join(point),
            "state": child.state_name,
            **best_scores(child.id),
        }
        for run, point, child in zip(runs, chosen, finished, strict=True)
    ]
    create_table_artifact(rows, key="sweep", description="Every point with its best candidate: choose by val/")
    failed = [
        row["experiment"]
        for row, child in zip(rows, finished, strict=True)
        if child.state is None or not child.state.is_completed()
    ]
    text = f"{len(rows) - len(failed)} of {len(rows)} points completed"
    if failed:
        raise PipelineError(f"{text}; not {', '.join(failed)}")
    return completed(text)


def _run_here(parameters: dict[str, Any]) -> FlowRun:
    """`train` in this process, as a child of this run."""
    state = train(**parameters, return_state=True)
    identity = state.state_details.flow_run_id
    assert identity is not None
    with get_client(sync_client=True) as client:
        return client.read_flow_run(identity)
