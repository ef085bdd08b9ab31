"""Who is champion after whom: each change has a number, and a number can be taken once, by whoever comes first.

MLflow sets an alias unconditionally and has no compare-and-set. But its database has a constraint by which no two
experiments have the same name. So change n of a registered model is an experiment named after the model and n, whose
tags hold the whole change. Creating it decides; the alias and the audit trail follow from it, and every step of that
can be repeated. There is no lock that a process could leave behind: if one dies before the alias has moved, the next
one that asks for the same number finds the change and carries it out. Finished changes are experiments that are marked
as deleted: the UI hides them, and their names stay taken.
"""

import getpass
import socket
import uuid
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pipeline.base.errors import PipelineError
from pipeline.base.secrets import without_secrets
from pipeline.release.registry import CHALLENGER, CHAMPION, no_such_model, version_with_alias

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRAIL = "promotion."  # before a number: tags of the registered model, one for each finished change
ATTEMPTS = 4  # to carry a change out: where two processes create the same tag at once, the database refuses one
DATE = "%Y-%m-%dT%H:%M:%S.%fZ"


@dataclass(frozen=True)
class Change:
    """One change of champion."""

    version: str  # the new champion
    before: str  # the champion until then; "" without one
    kind: str  # promotion or rollback
    reason: str
    by: str  # USER@HOST
    at: str  # UTC, see `DATE`
    token: str  # tells two changes with the same content apart

    def __str__(self) -> str:
        return f"{self.before or 'none'} -> {self.version} by {self.by}: {self.reason}"


def new_change(version: str, before: str, kind: Literal["promotion", "rollback"], reason: str) -> Change:
    """A change by this user, now."""
    user, now = f"{getpass.getuser()}@{socket.gethostname()}", datetime.now(UTC)
    return Change(version, before, kind, without_secrets(reason), user, now.strftime(DATE), uuid.uuid4().hex)


class Succession:
    """The changes of champion of one registered model.

    Raises:
        PipelineError: there is no such registered model.
        MlflowException: here and in every method, if the registry refuses or does not answer.
    """

    def __init__(self, client: "MlflowClient", registered_model_name: str) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

        try:
            model = client.get_registered_model(registered_model_name)
        except MlflowException as error:
            if not _is(error, RESOURCE_DOES_NOT_EXIST):
                raise
            raise PipelineError(no_such_model(registered_model_name)) from None
        self._client, self._name, self._created = client, registered_model_name, model.creation_timestamp
        known = [key.removeprefix(TRAIL) for key in model.tags if key.startswith(TRAIL)]
        self._number = 1 + max((int(number) for number in known if number.isdecimal()), default=0)

    def take(self, change: Change) -> Change:
        """Make `change` the one that follows the changes known when this object was made, unless another came first.

        Returns:
            The change that follows them, now carried out: `change`, or the one that came first.
        """
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS

        try:
            self._client.create_experiment(self._claim(self._number), tags=asdict(change))
        except MlflowException as error:
            if not _is(error, RESOURCE_ALREADY_EXISTS):
                raise
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._carry_out()
            except MlflowException:
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError

    def _carry_out(self) -> Change:
        """Give the alias to the newest change, and write the trail of every change from this number on.

        Other processes may be doing the same. A slow one may even come after later changes: whoever has moved the
        alias looks for a newer change afterwards, and moves the alias on to it.
        """
        changes: list[Change] = []
        while (change := self._find(self._number + len(changes))) is not None:
            changes.append(change)
            if self._find(self._number + len(changes)) is None and self._exists(change.version):
                self._client.set_registered_model_alias(self._name, CHAMPION, change.version)
        for number, change in enumerate(changes, start=self._number):
            self._record(number, change)
        return changes[0]

    def _record(self, number: int, change: Change) -> None:
        """Tags of the new champion, and last the tag of the registered model by which the change counts as finished."""
        client, key = self._client, f"{TRAIL}{number}"
        if key not in client.get_registered_model(self._name).tags:
            exists = self._exists(change.version)
            tags = {"promoted_at": change.at, "promoted_by": change.by, "promotion_reason": change.reason}
            if change.kind == "promotion":  # a version that is rolled back to keeps the champion that it followed
                tags["promoted_from"] = change.before
                challenger = version_with_alias(client, self._name, CHALLENGER)
                if challenger is not None and str(challenger.version) == change.version:
                    client.delete_registered_model_alias(self._name, CHALLENGER)
            for tag, value in tags.items() if exists else ():
                client.set_model_version_tag(self._name, change.version, tag, value)
            outcome = "" if exists else " (without effect: the version was deleted)"
            client.set_registered_model_tag(self._name, key, f"{change.at} {change}{outcome}")
        experiment: Any = client.get_experiment_by_name(self._claim(number))
        if experiment is not None and experiment.lifecycle_stage == "active":
            client.delete_experiment(experiment.experiment_id)

    def _find(self, number: int) -> Change | None:
        """The change with a number, if there is one."""
        experiment: Any = self._client.get_experiment_by_name(self._claim(number))
        if experiment is None:
            return None
        return Change(**{field.name: experiment.tags.get(field.name, "") for field in fields(Change)})

    def _claim(self, number: int) -> str:
        """Name of an experiment. A registered model that was deleted and made again has numbers of its own."""
        return f"champion {number} of {self._name}, created {self._created}"

    def _exists(self, version: str) -> bool:
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

        try:
            self._client.get_model_version(self._name, version)
        except MlflowException as error:
            if not _is(error, RESOURCE_DOES_NOT_EXIST):
                raise
            return False
        return True


def _is(error: Any, code: int) -> bool:
    from mlflow.protos.databricks_pb2 import ErrorCode

    return bool(error.error_code == ErrorCode.Name(code))
