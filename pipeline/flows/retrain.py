"""The flow `retrain`: fetch the data again and, if anything changed, train and promote."""

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed

from pipeline.base.params import load_params
from pipeline.flows import dag
from pipeline.flows.experiments import held_checkout
from pipeline.flows.flow_run import ended_from_outside
from pipeline.flows.outcome import completed, one_line_failures, require_completed
from pipeline.flows.promote import promote
from pipeline.flows.report import Report
from pipeline.flows.services import check_services
from pipeline.flows.stage_task import Runner
from pipeline.flows.train import train


@flow(name="retrain", description="What changed? Train, evaluate, register, promote.", persist_result=False)
@one_line_failures
@ended_from_outside()
def retrain(refresh_data: bool = True, dry_run: bool = False, share: bool = False) -> State[Any]:
    """Train again if anything changed, and promote the result by the rules of params.yaml.

    Args:
        refresh_data: fetch the data from its source again first, since DVC does not watch what lies outside.
        dry_run: judge the new challenger only.
        share: see `train`.
    """
    checkout, params = Path.cwd(), load_params()
    check_services(checkout, share=share)
    if refresh_data:
        report = Report(checkout, params, dag.plan(checkout, ["download"]))
        runner = Runner(report, share=share)
        with held_checkout(checkout):
            for stage in report.plan:
                runner.reproduce(stage, force=stage.name == "download")
    changed = dag.changes(checkout)
    for name, what in changed.items():
        get_run_logger().info("%s: %s", name, what)
    if not changed:
        return completed("nothing changed since the last training", "Unchanged")
    require_completed(train(share=share, return_state=True))
    judged = require_completed(promote(dry_run=dry_run, reason="retrained", return_state=True))
    return Completed(name=judged.name, message=judged.message)
