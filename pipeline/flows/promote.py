"""The flow `promote`: the challenger becomes champion, if the rules of params.yaml hold."""

from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State

from pipeline.base.params import load_params
from pipeline.base.secrets import without_secrets
from pipeline.flows.outcome import Success, completed, one_line_failures
from pipeline.flows.services import check_tracking_server
from pipeline.release import promotion


@flow(name="promote", description="Challenger to champion, by the rules of params.yaml.", persist_result=False)
@one_line_failures
def promote(dry_run: bool = False, rollback: bool = False, reason: str = "") -> State[Any]:
    """Make the challenger the champion if the rules hold; a refusal is a completed run named Refused.

    Args:
        dry_run: compare only.
        rollback: make the champion before the present one champion again instead.
        reason: why, for the audit trail.
    """
    check_tracking_server()
    params = load_params()
    model = params.register_.registered_model_name
    if rollback:
        decision = promotion.roll_back(model, reason=reason, dry_run=dry_run)
    else:
        decision = promotion.promote(model, params.promote, reason=reason, dry_run=dry_run)
    table = without_secrets(decision.markdown())
    create_markdown_artifact(table, key="promotion", description="The rules and their verdicts")
    get_run_logger().info(decision.sentence)
    name: Success = "Promoted" if decision.promoted else "Accepted" if decision.accepted else "Refused"
    return completed(decision.sentence, name)
