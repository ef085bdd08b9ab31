"""Promotion: the challenger becomes the champion if the rules of params.yaml hold. MLflow client only, no torch."""

import getpass
import math
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipeline.base.errors import PipelineError
from pipeline.base.profile import Params
from pipeline.release.registry import CHALLENGER, CHAMPION, TEST_DATA_TAG, registry_errors, version_metrics
from pipeline.tracking.server import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

LEASE_TAG = "promotion_lease"
LEASE_SECONDS = 60.0  # after which the lease of a promotion that died is void
SETTLE_SECONDS = 0.5  # between taking the lease and looking who has it; longer than a write takes to be seen


@dataclass(frozen=True)
class Verdict:
    """What one rule says."""

    rule: str
    champion: str
    challenger: str
    holds: bool


@dataclass(frozen=True)
class Decision:
    """What became of a promotion or a rollback."""

    registered_model_name: str
    version: str  # the one that was to become champion
    champion: str  # the champion before; "" without one
    verdicts: list[Verdict]
    promoted: bool

    @property
    def accepted(self) -> bool:
        """Whether every rule holds."""
        return all(verdict.holds for verdict in self.verdicts)

    def markdown(self) -> str:
        """The rules as a table, and the outcome in a sentence."""
        lines = ["| rule | champion | challenger | verdict |", "|---|---|---|---|"]
        lines += [
            f"| {v.rule} | {v.champion} | {v.challenger} | {'holds' if v.holds else 'FAILS'} |" for v in self.verdicts
        ]
        return "\n".join([*(lines if self.verdicts else []), "", self.sentence])

    @property
    def sentence(self) -> str:
        """The outcome."""
        name = f"version {self.version} of {self.registered_model_name}"
        before = f" (before: version {self.champion})" if self.champion else " (there was none)"
        if self.promoted:
            return f"{name} is the champion now{before}"
        failed = ", ".join(verdict.rule for verdict in self.verdicts if not verdict.holds)
        return (
            f"{name} stays challenger: {failed}" if failed else f"{name} would become champion{before}; nothing changed"
        )


def judge(
    champion: Mapping[str, float] | None,
    challenger: Mapping[str, float],
    *,
    not_below: Mapping[str, float],
    better: Sequence[str],
    digests: tuple[str, str],
) -> list[Verdict]:
    """The rules, each with its verdict. Without a champion, scores need only be there and finite.

    Args:
        champion, challenger: metric to value, fractions.
        not_below: metric to how far below the champion's it may lie.
        better: metrics of which one must be higher than the champion's.
        digests: of the test data of champion and challenger.
    """
    names = dict.fromkeys([*not_below, *better])
    missing = [name for name in names if not math.isfinite(challenger.get(name, math.nan))]
    verdicts = [Verdict("scores present and finite", "", ", ".join(missing) or "all", not missing)]
    if champion is None:
        return verdicts
    same = bool(digests[0]) and digests[0] == digests[1]
    verdicts.append(Verdict("same test data", digests[0][:12], digests[1][:12], same))

    def values(name: str) -> tuple[float, float]:
        return champion.get(name, math.nan), challenger.get(name, math.nan)

    for name, tolerance in not_below.items():
        old, new = values(name)
        # Scores are stored as decimal text: a difference of the last digit is none.
        holds = new >= old - tolerance or math.isclose(new, old - tolerance, abs_tol=1e-9)
        verdicts.append(Verdict(f"{name} at most {tolerance:g} below", f"{old:.4f}", f"{new:.4f}", holds))
    pairs = {name: values(name) for name in better}
    old_text, new_text = (", ".join(f"{pair[i]:.4f}" for pair in pairs.values()) for i in (0, 1))
    wins = any(new > old for old, new in pairs.values())
    verdicts.append(Verdict(f"better in {' or '.join(better)}", old_text, new_text, wins))
    return verdicts


def decide(params: Params, *, rollback: bool, reason: str = "", dry_run: bool = False) -> Decision:
    """`promote` by the rules of a profile, or `roll_back`; see there for what they raise."""
    name, rules = params.register_.registered_model_name, params.promote
    if rollback:
        return roll_back(name, reason=reason, dry_run=dry_run)
    return promote(name, not_below=rules.not_below, better=rules.better, reason=reason, dry_run=dry_run)


def promote(
    registered_model_name: str,
    *,
    not_below: Mapping[str, float],
    better: Sequence[str],
    reason: str = "",
    dry_run: bool = False,
) -> Decision:
    """Judge the challenger and, if every rule holds, make it the champion; a refusal changes nothing.

    Args:
        reason: why, for the audit trail.
        dry_run: judge only.

    Raises:
        PipelineError: there is no challenger, it is the champion already, another promotion is under way or came first,
            or the registry does not answer.
    """
    with registry_errors(registered_model_name):
        client, _ = connect()
        challenger = _holder(client, registered_model_name, CHALLENGER)
        champion = _holder(client, registered_model_name, CHAMPION)
        if challenger is None:
            raise PipelineError(
                f"{registered_model_name} has no version with the alias challenger; train another with `dvc repro` or "
                "`dvc exp run`, or register the last one again with `dvc repro --force --single-item register`"
            )
        if champion is not None and champion.version == challenger.version:
            raise PipelineError(f"version {champion.version} of {registered_model_name} is the champion already")
        verdicts = judge(
            version_metrics(client, champion) if champion else None,
            version_metrics(client, challenger),
            not_below=not_below,
            better=better,
            digests=(champion.tags.get(TEST_DATA_TAG, "") if champion else "", challenger.tags.get(TEST_DATA_TAG, "")),
        )
        before = str(champion.version) if champion else ""
        accepted = all(verdict.holds for verdict in verdicts)
        if accepted and not dry_run:
            rules = "; ".join(verdict.rule for verdict in verdicts)
            _crown(client, registered_model_name, str(challenger.version), before, reason or f"rules hold: {rules}")
        return Decision(
            registered_model_name, str(challenger.version), before, verdicts, promoted=accepted and not dry_run
        )


def roll_back(registered_model_name: str, *, reason: str = "", dry_run: bool = False) -> Decision:
    """Make the champion before the present one champion again.

    Raises:
        PipelineError: there is no champion or none before it, its version is gone, another promotion is under way
            or came first, or the registry does not answer.
    """
    from mlflow.exceptions import MlflowException

    with registry_errors(registered_model_name):
        client, _ = connect()
        champion = _holder(client, registered_model_name, CHAMPION)
        previous = champion.tags.get("promoted_from", "") if champion else ""
        if champion is None or not previous:
            raise PipelineError(f"{registered_model_name} has no earlier champion to go back to")
        try:
            client.get_model_version(registered_model_name, previous)
        except MlflowException:
            raise PipelineError(
                f"version {previous} of {registered_model_name}, the champion before, is gone"
            ) from None
        if not dry_run:
            _crown(
                client, registered_model_name, previous, str(champion.version), reason or "rollback", is_rollback=True
            )
        return Decision(registered_model_name, previous, str(champion.version), [], promoted=not dry_run)


def _holder(client: "MlflowClient", registered_model_name: str, alias: str) -> Any:
    """The version with an alias, or None."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode

    try:
        return client.get_model_version_by_alias(registered_model_name, alias)
    except MlflowException as error:
        if error.error_code in map(ErrorCode.Name, (RESOURCE_DOES_NOT_EXIST, INVALID_PARAMETER_VALUE)):
            return None
        raise


def _crown(
    client: "MlflowClient", name: str, version: str, before: str, reason: str, *, is_rollback: bool = False
) -> None:
    """Move the alias and write the audit trail, as the only one to do so at this time."""
    with _lease(client, name):
        champion = _holder(client, name, CHAMPION)
        if (str(champion.version) if champion else "") != before:
            raise PipelineError(
                f"{name}: version {champion.version if champion else 'none'} became champion meanwhile; "
                "nothing was changed, compare again"
            )
        now, who = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"), f"{getpass.getuser()}@{socket.gethostname()}"
        client.set_registered_model_alias(name, CHAMPION, version)
        trail = {"promoted_at": now, "promoted_by": who, "promotion_reason": reason}
        if not is_rollback:  # a version that is rolled back to keeps the champion that it followed
            trail["promoted_from"] = before
            client.delete_registered_model_alias(name, CHALLENGER)
        for key, value in trail.items():
            client.set_model_version_tag(name, version, key, value)
        client.set_registered_model_tag(name, f"promotion.{now}", f"{before or 'none'} -> {version} by {who}: {reason}")


@contextmanager
def _lease(client: "MlflowClient", name: str) -> Iterator[None]:
    """Held by one promotion at a time: the registry has no compare-and-set, so the last to write a tag has it."""
    from mlflow.exceptions import MlflowException

    me = uuid.uuid4().hex
    holder, _, expiry = client.get_registered_model(name).tags.get(LEASE_TAG, "").partition(" ")
    if holder and float(expiry) > time.time():
        raise PipelineError(f"{name}: another promotion is under way; nothing was changed, try again in a minute")
    refusal: MlflowException | None = None
    try:
        client.set_registered_model_tag(name, LEASE_TAG, f"{me} {time.time() + LEASE_SECONDS}")
        time.sleep(SETTLE_SECONDS)
    except MlflowException as error:  # a database lets one of two that make the same tag at the same time fail
        refusal = error
    holder = client.get_registered_model(name).tags.get(LEASE_TAG, "").partition(" ")[0]
    if holder != me and (holder or refusal is None):
        raise PipelineError(f"{name}: another promotion came first; nothing was changed, compare again")
    if refusal is not None:
        raise refusal
    try:
        yield
    finally:
        client.delete_registered_model_tag(name, LEASE_TAG)
