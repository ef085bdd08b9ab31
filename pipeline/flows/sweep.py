"""The flow `sweep`: many runs of `train`, each with other parameters."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State

from pipeline.base.errors import PipelineError
from pipeline.flows import dag
from pipeline.flows.flow_run import current_flow_run, ended_from_outside
from pipeline.flows.outcome import completed, one_line_failures
from pipeline.flows.points import best_scores, check_points, sweep_points
from pipeline.flows.train import train
from pipeline.flows.workers import PAGE, Child, pages, run_on_workers

MOST_NAMED = 20  # failed points in a message


@flow(name="sweep", description="Many runs of the pipeline with other parameters.", persist_result=False)
@one_line_failures
@ended_from_outside()
def sweep(
    grid: dict[str, list[Any]] | None = None,
    points: list[list[str]] | None = None,
    profile: str | None = None,
    targets: list[str] | None = None,
    deployment: str | None = None,
    max_parallel: int | None = None,
    share: bool = False,
) -> State[Any]:
    """One run of `train` for each point, each a DVC experiment and an MLflow run; a failed one leaves the others alone.

    Args:
        grid: parameter to values; every combination is a point.
        points: or the points themselves, each a list of overrides.
        profile: see `train`.
        targets: stages of each point; evaluate without, since registering every point would hide the best.
        deployment: of train, as "train/local", whose workers share the points; without one they run here in turn.
        max_parallel: points in flight at most; as many as the pool takes without: its concurrency limit, or one for
            each worker.
        share: see `train`.
    """
    chosen, wanted = sweep_points(grid, points), targets or ["evaluate"]
    if max_parallel is not None and max_parallel < 1:
        raise PipelineError(f"max_parallel is {max_parallel}; at least 1 run must be in flight")
    check_points(chosen, profile)
    dag.plan(Path.cwd(), wanted)
    name, common = current_flow_run().name, {"profile": profile, "targets": wanted, "share": share}
    runs = [
        {**common, "overrides": point, "experiment": f"{name}-{index:02d}"} for index, point in enumerate(chosen, 1)
    ]
    finished = run_on_workers(runs, deployment, max_parallel) if deployment else [_run_here(run) for run in runs]
    scores = best_scores([child.identity for child in finished])
    rows = [
        {
            "experiment": run["experiment"],
            "overrides": " ".join(point),
            "state": child.state_name,
            **scores.get(child.identity, {}),
        }
        for run, point, child in zip(runs, chosen, finished, strict=True)
    ]
    for number, page in enumerate(pages(rows)):
        key, first = f"sweep-{number}" if number else "sweep", number * PAGE + 1
        text = f"Points {first} to {first + len(page) - 1} of {len(rows)}, each with its best candidate: choose by val/"
        create_table_artifact(page, key=key, description=text)
    failed = [str(run["experiment"]) for run, child in zip(runs, finished, strict=True) if not child.completed]
    text = f"{len(rows) - len(failed)} of {len(rows)} points completed"
    if failed:
        named = ", ".join(failed[:MOST_NAMED]) + (", ..." if len(failed) > MOST_NAMED else "")
        raise PipelineError(f"{text}; not {named}")
    return completed(text)


def _run_here(parameters: dict[str, Any]) -> Child:
    """`train` in this process, as a child of this run."""
    state = train(**parameters, return_state=True)
    identity = state.state_details.flow_run_id
    assert identity is not None
    return Child(identity, state.name or "", running=False, final=True, completed=state.is_completed())
