"""Promotion: the challenger becomes the champion if the rules of params.yaml hold. MLflow client only, no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.base.errors import PipelineError
from pipeline.base.sections import Promote
from pipeline.release.facts import TEST_DATA_TAG
from pipeline.release.registry import (
    CHALLENGER,
    CHAMPION,
    registry_errors,
    version_scores,
    version_with_alias,
)
from pipeline.release.succession import Change, Succession, new_change
from pipeline.tracking.server import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Contender:
    """A model version as the rules see it."""

    scores: Mapping[str, float] = field(default_factory=dict)  # fractions
    test_data: str = ""  # digest of what it was scored on; "" if unknown


@dataclass(frozen=True)
class Verdict:
    """Whether one rule holds, with the values that it compared as text."""

    rule: str
    champion: str
    challenger: str
    holds: bool


@dataclass(frozen=True)
class Decision:
    """The outcome of a promotion or a rollback."""

    registered_model_name: str
    version: str  # the one that was to become champion
    champion: str  # the champion before; "" without one
    verdicts: list[Verdict]  # none for a rollback
    promoted: bool  # whether the alias was moved

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
        """Which version is champion now, and which rules failed, if any."""
        name = f"version {self.version} of {self.registered_model_name}"
        before = f" (before: version {self.champion})" if self.champion else " (there was none)"
        if self.promoted:
            return f"{name} is the champion now{before}"
        failed = ", ".join(verdict.rule for verdict in self.verdicts if not verdict.holds)
        return (
            f"{name} stays challenger: {failed}" if failed else f"{name} would become champion{before}; nothing changed"
        )


def judge(champion: Contender | None, challenger: Contender, rules: Promote) -> list[Verdict]:
    """Compare by the rules, a verdict each. Without a champion, the scores must exist and reach the least values."""
    names = dict.fromkeys([*rules.at_least, *rules.not_below, *rules.better])
    missing = [name for name in names if not math.isfinite(challenger.scores.get(name, math.nan))]
    verdicts = [Verdict("scores present and finite", "", ", ".join(missing) or "all", not missing)]
    for name, least in rules.at_least.items():
        old, new = (c.scores.get(name, math.nan) if c else math.nan for c in (champion, challenger))
        text = f"{old:.4f}" if champion else ""
        verdicts.append(Verdict(f"{name} at least {least:g}", text, f"{new:.4f}", _reaches(new, least)))
    if champion is None:
        return verdicts
    same = bool(champion.test_data) and champion.test_data == challenger.test_data
    verdicts.append(Verdict("same test data", champion.test_data[:12], challenger.test_data[:12], same))
    pairs = {name: tuple(c.scores.get(name, math.nan) for c in (champion, challenger)) for name in names}
    for name, tolerance in rules.not_below.items():
        old, new = pairs[name]
        holds = _reaches(new, old - tolerance)
        verdicts.append(Verdict(f"{name} at most {tolerance:g} below", f"{old:.4f}", f"{new:.4f}", holds))
    old_text, new_text = (", ".join(f"{pairs[name][i]:.4f}" for name in rules.better) for i in (0, 1))
    wins = any(new > old for old, new in (pairs[name] for name in rules.better))
    verdicts.append(Verdict(f"better in {' or '.join(rules.better)}", old_text, new_text, wins))
    return verdicts


def _reaches(score: float, least: float) -> bool:
    # Scores are stored as decimal text: a difference of the last digit is none.
    return score >= least or math.isclose(score, least, abs_tol=1e-9)


def promote(registered_model_name: str, rules: Promote, *, reason: str = "", dry_run: bool = False) -> Decision:
    """Make the challenger the champion if every rule holds; otherwise nothing changes.

    Args:
        reason: why, for the audit trail.
        dry_run: compare only.

    Raises:
        PipelineError: there is no challenger, it is the champion already, another change of champion came first, or
            the registry does not answer.
    """
    with registry_errors(registered_model_name):
        client, _ = connect()
        succession = Succession(client, registered_model_name)  # first, so that what is read next cannot be older
        challenger = version_with_alias(client, registered_model_name, CHALLENGER)
        champion = version_with_alias(client, registered_model_name, CHAMPION)
        if challenger is None:
            raise PipelineError(
                f"{registered_model_name} has no version with the alias challenger; train another with `dvc repro` or "
                "`dvc exp run`, or register the last one again with `gain register`"
            )
        if champion is not None and champion.version == challenger.version:
            raise PipelineError(f"version {champion.version} of {registered_model_name} is the champion already")
        verdicts = judge(_contender(client, champion) if champion else None, _contender(client, challenger), rules)
        version, before = str(challenger.version), str(champion.version) if champion else ""
        accepted = all(verdict.holds for verdict in verdicts)
        if accepted and not dry_run:
            held = "; ".join(verdict.rule for verdict in verdicts)
            change = new_change(version, before, "promotion", reason or f"rules hold: {held}")
            _crown(client, registered_model_name, succession, change)
        return Decision(registered_model_name, version, before, verdicts, promoted=accepted and not dry_run)


def roll_back(registered_model_name: str, *, reason: str = "", dry_run: bool = False) -> Decision:
    """Make the champion before the present one champion again.

    Raises:
        PipelineError: there is no champion or none before it, its version was deleted, another change of champion came
            first, or the registry does not answer.
    """
    from mlflow.exceptions import MlflowException

    with registry_errors(registered_model_name):
        client, _ = connect()
        succession = Succession(client, registered_model_name)
        champion = version_with_alias(client, registered_model_name, CHAMPION)
        previous = champion.tags.get("promoted_from", "") if champion else ""
        if champion is None or not previous:
            raise PipelineError(f"{registered_model_name} has no earlier champion to go back to")
        try:
            client.get_model_version(registered_model_name, previous)
        except MlflowException:
            raise PipelineError(
                f"version {previous} of {registered_model_name}, the champion before, was deleted"
            ) from None
        if not dry_run:
            change = new_change(previous, str(champion.version), "rollback", reason or "rollback")
            _crown(client, registered_model_name, succession, change)
        return Decision(registered_model_name, previous, str(champion.version), [], promoted=not dry_run)


def _contender(client: "MlflowClient", version: Any) -> Contender:
    return Contender(version_scores(client, version), version.tags.get(TEST_DATA_TAG, ""))


def _crown(client: "MlflowClient", name: str, succession: Succession, change: Change) -> None:
    """Carry out `change`, or say which one came first."""
    champion = version_with_alias(client, name, CHAMPION)  # the UI moves aliases too, and takes no number
    if (now := str(champion.version) if champion else "") != change.before:
        raise PipelineError(
            f"{name}: version {now or 'none'} became champion in the meantime; nothing was changed, compare again"
        )
    taken = succession.take(change)
    if taken.token != change.token:
        raise PipelineError(f"{name}: another {taken.kind} came first ({taken}); yours changed nothing, compare again")
