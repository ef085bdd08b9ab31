"""Prefect flows: the pipeline of dvc.yaml, sweeps over its parameters, promotion, and scheduled retraining.

    python -m pipeline.flows train profile=smoke         # without a server of one's own
    prefect deployment run train/local                   # on a worker (prefect.yaml)

DVC stays the judge of what has to run and the keeper of results: a flow calls `dvc repro --single-item STAGE` per
stage, and Prefect shows what came of it. A failure that a person can act on ends a run in one line, and nothing here
waits without bound on a server that does not answer.
"""

import itertools
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import FailedRun
from prefect.states import Cancelling, Completed, Failed

from pipeline import dag, experiments, promotion
from pipeline.config import load_params
from pipeline.errors import PipelineError
from pipeline.flow_report import Report, StageOutput
from pipeline.sender import local_database, tracking_uri
from pipeline.services import default_remote, problem_with
from pipeline.supervisor import supervised

PARENT_POLL_SECONDS = 1.0
CHILD_POLL_SECONDS = 2.0
UNATTENDED_SECONDS = 60.0  # without a worker, after which a sweep gives its waiting runs up
KILLED = "Killed"  # name of the state of a stage that a signal ended, as when memory runs out


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
    with _ended_with_parent():
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
            _points(grid, points), profile, targets or ["evaluate"], deployment, max_parallel=max_parallel, share=share
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
        profile = load_params().profile
        name = profile.register_.registered_model_name
        if rollback:
            decision = promotion.roll_back(name, reason=reason, dry_run=dry_run)
        else:
            rules = profile.promote
            decision = promotion.promote(
                name, not_below=rules.not_below, better=rules.better, reason=reason, dry_run=dry_run
            )
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
    with _ended_with_parent():
        try:
            checkout, params = Path.cwd(), load_params()
            _check_services(checkout, share=share)
            report = Report(checkout, params, dag.plan(checkout, ["download"]))
            if refresh_data:
                state = _reproduce(report.plan[0], report, share=share, force=True)
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
    changes = [*([f"profile={profile}"] if profile not in (None, params.profile_name) else []), *overrides]
    clone = experiments.prepare_experiment(checkout, changes, experiment) if changes else None
    folder, params = (clone.folder, clone.params) if clone else (checkout, params)
    report = Report(folder, params, dag.plan(folder, targets), experiment=clone.name if clone else "")
    _check_services(folder, share=share)
    _record_device(_visible_gpus())
    with report.progress():
        for stage in report.plan:
            state = _reproduce(stage, report, share=share)
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


def _reproduce(stage: dag.StagePlan, report: Report, *, share: bool, force: bool = False) -> State[Any]:
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
        return _failed(str(error))
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
                    _record_device(device)
        status = process.wait()
    if status != 0:
        raise StageError(output.failure(status), killed=output.killed(status))
    return output


def _environment(report: Report) -> dict[str, str]:
    """Of a stage's process: this Python first on the path, and one MLflow record for the checkout and its clones."""
    database = local_database()
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    added = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "MLFLOW_TRACKING_URI": f"sqlite:///{database}" if database else tracking_uri(),
        "PREFECT__FLOW_RUN_ID": str(context.flow_run.id),
        "DVC_NO_ANALYTICS": "true",
    }
    if report.experiment:
        added["DVC_EXP_NAME"] = report.experiment
    return {**os.environ, **added}


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
    if uri.startswith("http") and (problem := problem_with(f"{uri.rstrip('/')}/health")):
        raise PipelineError(f"MLflow at {uri}: {problem}; start it, or correct MLFLOW_TRACKING_URI")


def _visible_gpus() -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "CUDA_VISIBLE_DEVICES unset" if visible is None else f"CUDA_VISIBLE_DEVICES={visible}"


def _record_device(tag: str) -> None:
    """As a tag of the flow run: the GPUs that the worker was given, then the device that a stage says it chose."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    with get_client(sync_client=True) as client:
        tags = set(client.read_flow_run(context.flow_run.id).tags)
        if tag not in tags:
            client.update_flow_run(context.flow_run.id, tags=sorted({*tags, tag}))


@contextmanager
def _ended_with_parent() -> Iterator[None]:
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


def _points(grid: Mapping[str, Sequence[Any]] | None, points: Sequence[Sequence[str]] | None) -> list[list[str]]:
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
    _check_points(points, profile)
    dag.plan(Path.cwd(), targets)
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    runs: list[dict[str, Any]] = [
        {
            "profile": profile,
            "overrides": point,
            "targets": targets,
            "experiment": f"{context.flow_run.name}-{index:02d}",
            "share": share,
        }
        for index, point in enumerate(points, start=1)
    ]
    if deployment:
        states, ids = _on_workers(runs, deployment, max_parallel)
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
            **_scores(child),
        }
        for run, state, child in zip(runs, states, ids, strict=True)
    ]
    create_table_artifact(rows, key="sweep", description="Every point with the scores of its best candidate")
    failed = [row["experiment"] for row, state in zip(rows, states, strict=True) if not state.is_completed()]
    text = f"{len(rows) - len(failed)} of {len(rows)} points completed"
    return _failed(f"{text}; not {', '.join(failed)}") if failed else Completed(message=text)


def _check_points(points: Sequence[Sequence[str]], profile: str | None) -> None:
    """Every point is checked before the first one trains."""
    text = Path("params.yaml").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        for point in points:
            path = Path(folder) / "params.yaml"
            path.write_text(text, encoding="utf-8")
            experiments.apply_overrides(path, [*([f"profile={profile}"] if profile else []), *point])


def _on_workers(
    runs: Sequence[Mapping[str, Any]], deployment: str, max_parallel: int
) -> tuple[list[State[Any]], list[UUID]]:
    """Run all as runs of `deployment`; when this flow ends early, so do they."""
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
    finished = [done[index] for index in range(len(runs))]
    return [run.state for run in finished if run.state is not None], [run.id for run in finished]


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


def _scores(flow_run_id: UUID) -> dict[str, float]:
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


def main(arguments: Sequence[str]) -> int:
    """`FLOW [NAME=VALUE ...]`, values as JSON or text; without a server, Prefect starts one for the time of the run."""
    flows: dict[str, Any] = {"train": train, "sweep": sweep, "promote": promote, "retrain": retrain}
    name, *settings = arguments or ["train"]
    if name not in flows or any("=" not in setting for setting in settings):
        print(f"flows: error: usage: python -m pipeline.flows {{{','.join(flows)}}} [NAME=VALUE ...]", file=sys.stderr)
        return 2
    url = os.environ.get("PREFECT_API_URL", "")
    if url and (problem := problem_with(f"{url.rstrip('/')}/health")):
        print(
            f"flows: error: the Prefect server at {url}: {problem}; start it, or unset PREFECT_API_URL", file=sys.stderr
        )
        return 1
    parameters = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        with suppress(json.JSONDecodeError):
            value = json.loads(value)
        parameters[key] = value
    known = list(flows[name].parameters.properties)
    if unknown := sorted(set(parameters) - set(known)):
        print(f"flows: error: {name} takes no {unknown[0]!r}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    state: State[Any] = flows[name](**parameters, return_state=True)
    print(f"{name}: {state.name}: {state.message}", flush=True)
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    # Prefect reads the flows of an imported module; those of a script would be called __main__.
    from pipeline.flows import main as run

    sys.exit(run(sys.argv[1:]))
