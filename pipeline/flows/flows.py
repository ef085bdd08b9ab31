"""Prefect flows: the pipeline of dvc.yaml, sweeps over its parameters, promotion, and scheduled retraining.

    python -m pipeline.flows.flows train profile=smoke         # without a server of one's own
    prefect deployment run train/local                   # on a worker (prefect.yaml)

DVC stays the judge of what has to run and the keeper of results: a flow calls `dvc repro --single-item STAGE` per
stage, and Prefect shows what came of it. A failure that a person can act on ends a run in one line, and nothing here
waits without bound on a server that does not answer.
"""

import json
import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.exceptions import FailedRun
from prefect.states import Completed, Failed

from pipeline.base.errors import PipelineError, without_credentials
from pipeline.base.params import load_params
from pipeline.flows import dag, experiments
from pipeline.flows.points import best_scores, check_points, run_on_workers, sweep_points
from pipeline.flows.report import Report
from pipeline.flows.services import check_prefect_server, default_remote
from pipeline.flows.stage_task import current_flow_run, ended_with_parent, record_device, reproduce, visible_gpus
from pipeline.release import promotion
from pipeline.tracking.server import problem_with, tracking_uri


class _NoEcho(logging.Filter):
    """Drops the traceback that Prefect's engine adds to a failed state that a flow returned, and so has reported."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is worth showing."""
        return not (record.exc_info and isinstance(record.exc_info[1], FailedRun))


for _name in ("prefect.flow_runs", "prefect.engine"):
    logging.getLogger(_name).addFilter(_NoEcho())


@flow(name="train", description="The stages of dvc.yaml, one task each, on one worker.", persist_result=False)
def train(
    profile: str | None = None,
    overrides: list[str] | None = None,
    targets: list[str] | None = None,
    experiment: str = "",
    share: bool = False,
) -> State[Any]:
    """Run what DVC finds changed.

    Without `profile` and `overrides` in the checkout itself, as `dvc repro` does; else in a clone of it under .runs,
    whose result becomes a DVC experiment of the checkout.

    Args:
        profile: instead of the one that params.yaml names.
        overrides: parameters as `dvc exp run -S` takes them, such as "seed=1".
        targets: stages to bring up to date with all that they depend on; all of dvc.yaml without.
        experiment: name of the DVC experiment; one is made up without.
        share: take from the default DVC remote what other workers made, and push there what is made here.
    """
    with ended_with_parent():
        try:
            return _train(profile, overrides or [], targets or [], experiment, share)
        except PipelineError as error:
            return _failed(str(error))


@flow(name="sweep", description="Many runs of the pipeline with other parameters.", persist_result=False)
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
    try:
        return _sweep(
            sweep_points(grid, points),
            profile,
            targets or ["evaluate"],
            deployment,
            max_parallel=max_parallel,
            share=share,
        )
    except PipelineError as error:
        return _failed(str(error))


@flow(name="promote", description="Challenger to champion, by the rules of params.yaml.", persist_result=False)
def promote(dry_run: bool = False, rollback: bool = False, reason: str = "") -> State[Any]:
    """Judge the challenger and make it champion; a refusal is a completed run named Refused.

    Args:
        dry_run: judge only.
        rollback: make the champion before the present one champion again instead.
        reason: why, for the audit trail.
    """
    try:
        _check_tracking_server()
        profile = load_params()
        decision = promotion.decide(profile, rollback=rollback, reason=reason, dry_run=dry_run)
    except PipelineError as error:
        return _failed(str(error))
    create_markdown_artifact(decision.markdown(), key="promotion", description="The rules and their verdicts")
    get_run_logger().info(decision.sentence)
    title = "Promoted" if decision.promoted else "Accepted" if decision.accepted else "Refused"
    return Completed(name=title, message=decision.sentence)


@flow(name="retrain", description="What changed? Train, evaluate, register, promote.", persist_result=False)
def retrain(refresh_data: bool = True, dry_run: bool = False, share: bool = False) -> State[Any]:
    """Train again if anything changed, and promote the result by the rules of params.yaml.

    Args:
        refresh_data: fetch the data from its source again first, since DVC does not watch what lies outside.
        dry_run: judge the new challenger only.
        share: see `train`.
    """
    logger = get_run_logger()
    with ended_with_parent():
        try:
            checkout, params = Path.cwd(), load_params()
            _check_services(checkout, share=share)
            report = Report(checkout, params, dag.plan(checkout, ["download"]))
            if refresh_data:
                state = reproduce(report.plan[0], report, share=share, force=True)
                if not state.is_completed():
                    return _failed(state.message)
            changed = dag.changes(checkout)
            for stage, what in changed.items():
                logger.info("%s: %s", stage, what)
            if not changed:
                return Completed(name="Unchanged", message="nothing changed since the last training")
        except PipelineError as error:
            return _failed(str(error))
    trained = train(share=share, return_state=True)
    if not trained.is_completed():
        return _failed(trained.message)
    judged = promote(dry_run=dry_run, reason="retrained", return_state=True)
    return Completed(name=judged.name, message=judged.message) if judged.is_completed() else _failed(judged.message)


def _failed(message: str | None, name: str | None = "Failed") -> State[Any]:
    """The failure as a line of the log and as the final state."""
    get_run_logger().error("%s", message)
    return Failed(name=name or "Failed", message=message)


def _train(
    profile: str | None, overrides: Sequence[str], targets: Sequence[str], experiment: str, share: bool
) -> State[Any]:
    checkout, params = Path.cwd(), load_params()
    changes = [*([f"profile={profile}"] if profile not in (None, params.profile) else []), *overrides]
    clone = experiments.prepare_experiment(checkout, changes, experiment) if changes else None
    folder, params = (clone.folder, clone.params) if clone else (checkout, params)
    report = Report(folder, params, dag.plan(folder, targets), experiment=clone.name if clone else "")
    _check_services(folder, share=share)
    record_device(visible_gpus())
    with report.progress():
        for stage in report.plan:
            state = reproduce(stage, report, share=share)
            if not state.is_completed():
                report.publish()
                return _failed(state.message, state.name)
    if clone:
        experiments.save_experiment(clone, [stage.name for stage in report.plan])
        if share:
            experiments.push_experiment(checkout, clone.name)
    report.publish()
    if clone and not experiments.discard(clone):
        get_run_logger().warning("%s is kept: its MLflow record waits for the server", clone.folder)
    return Completed(message=report.sentence())


def _check_services(folder: Path, *, share: bool) -> None:
    """Servers that a run cannot do without answer now, not after hours of training.

    Raises:
        PipelineError: one does not.
    """
    _check_tracking_server()
    if share and default_remote(folder) is None:
        raise PipelineError("share: there is no default DVC remote; add one: `dvc remote add --default NAME URL`")


def _check_tracking_server() -> None:
    uri = tracking_uri()
    if uri.startswith("http") and (problem := problem_with(uri)):
        raise PipelineError(
            f"MLflow at {without_credentials(uri)}: {problem}; start it, or correct MLFLOW_TRACKING_URI"
        )


def _sweep(
    points: list[list[str]],
    profile: str | None,
    targets: list[str],
    deployment: str | None,
    *,
    max_parallel: int,
    share: bool,
) -> State[Any]:
    if max_parallel < 1:
        raise PipelineError(f"max_parallel is {max_parallel}; at least 1 run must be in flight")
    check_points(points, profile)
    dag.plan(Path.cwd(), targets)
    runs: list[dict[str, Any]] = [
        {
            "profile": profile,
            "overrides": point,
            "targets": targets,
            "experiment": f"{current_flow_run().name}-{index:02d}",
            "share": share,
        }
        for index, point in enumerate(points, start=1)
    ]
    if deployment:
        states, ids = run_on_workers(runs, deployment, max_parallel)
    else:
        states, ids = list[State[Any]](), list[UUID]()
        for run in runs:
            state = train(**run, return_state=True)
            states.append(state)
            ids.append(state.state_details.flow_run_id)  # type: ignore[arg-type]
    rows: list[dict[str, Any]] = [
        {
            "experiment": run["experiment"],
            "overrides": " ".join(run["overrides"]),
            "state": state.name,
            **best_scores(child),
        }
        for run, state, child in zip(runs, states, ids, strict=True)
    ]
    create_table_artifact(rows, key="sweep", description="Every point with the scores of its best candidate")
    failed = [row["experiment"] for row, state in zip(rows, states, strict=True) if not state.is_completed()]
    text = f"{len(rows) - len(failed)} of {len(rows)} points completed"
    return _failed(f"{text}; not {', '.join(failed)}") if failed else Completed(message=text)


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Parameters of a flow from NAME=VALUE, values as JSON or text.

    Raises:
        PipelineError: one has no equals sign.
    """
    parameters: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise PipelineError(f"{setting!r} is no NAME=VALUE")
        parameters[name] = value
        with suppress(json.JSONDecodeError):
            parameters[name] = json.loads(value)
    return parameters


def main(arguments: Sequence[str]) -> int:
    """`FLOW [NAME=VALUE ...]`; without a server, Prefect starts one for the time of the run."""
    flows: dict[str, Any] = {"train": train, "sweep": sweep, "promote": promote, "retrain": retrain}
    name, *settings = arguments or ["train"]
    try:
        if name not in flows:
            raise PipelineError(f"usage: python -m pipeline.flows.flows {{{','.join(flows)}}} [NAME=VALUE ...]")
        parameters, known = parse_settings(settings), list(flows[name].parameters.properties)
        if unknown := sorted(set(parameters) - set(known)):
            raise PipelineError(f"{name} takes no {unknown[0]!r}; known: {', '.join(known)}")
        check_prefect_server()
    except PipelineError as error:
        print(f"flows: error: {error}", file=sys.stderr)
        return 1
    state: State[Any] = flows[name](**parameters, return_state=True)
    print(f"{name}: {state.name}: {state.message}", flush=True)
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    # Prefect reads the flows of an imported module; those of a script would be called __main__.
    from pipeline.flows.flows import main as run

    sys.exit(run(sys.argv[1:]))
