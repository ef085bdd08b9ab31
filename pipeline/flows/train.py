"""The flow `train`: the stages of dvc.yaml, in the checkout or, with other parameters, in a clone of it.

DVC decides what has to run and keeps the results: the flow calls `dvc repro --single-item STAGE` per stage, and Prefect
shows what came of it. Before the first stage, the servers that the run needs are asked whether they answer.
"""

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State

from pipeline.base.params import load_params
from pipeline.flows import dag
from pipeline.flows.experiments import discard, held_checkout, prepared_experiment, push_experiment, save_experiment
from pipeline.flows.flow_run import ended_from_outside, record_device, visible_gpus
from pipeline.flows.outcome import completed, one_line_failures
from pipeline.flows.report import Report
from pipeline.flows.services import check_services
from pipeline.flows.side_by_side import device_groups, reproduce_side_by_side
from pipeline.flows.stage_task import Runner


@flow(name="train", description="The stages of dvc.yaml, one task each, on one worker.", persist_result=False)
@one_line_failures
@ended_from_outside()
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
    checkout, params = Path.cwd(), load_params()
    changes = [*([f"profile={profile}"] if profile not in (None, params.profile) else []), *(overrides or [])]
    plan = dag.plan(checkout, targets or [])
    if not changes:
        with held_checkout(checkout):
            return completed(_run(Report(checkout, params, plan), share=share))
    with prepared_experiment(checkout, changes, experiment) as clone:
        report = Report(clone.folder, clone.params, plan, experiment=clone.name)
        sentence = _run(report, share=share)
        save_experiment(clone, [stage.name for stage in report.plan])
        if share:
            push_experiment(checkout, clone.name)
        if not discard(clone.folder):
            get_run_logger().warning("%s is kept: its MLflow record waits for the server", clone.folder)
    return completed(sentence)


def _run(report: Report, *, share: bool) -> str:
    """Every stage of the plan; how many ran."""
    check_services(report.folder, share=share)
    record_device(visible_gpus())
    with report.published():
        runner = Runner(report, share=share)
        if groups := device_groups(report.params):
            get_run_logger().info("stages run side by side, on devices %s", " and ".join(groups))
            reproduce_side_by_side(runner, groups)
        else:
            for stage in report.plan:
                runner.reproduce(stage)
    return report.sentence()
