"""How a flow ends: a final state whose name says what happened and whose message is one line."""

import functools
import logging
from collections.abc import Callable
from typing import Any, Literal, ParamSpec

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.exceptions import FailedRun
from prefect.states import Completed, Failed

from pipeline.base.errors import PipelineError
from pipeline.base.secrets import hide_secrets, without_secrets

P = ParamSpec("P")
# deploy/heartbeat.yaml lists them too: no heartbeat is expected of a run that ended in a state of such a name.
Success = Literal["Completed", "Unchanged", "Promoted", "Accepted", "Refused"]
Failure = Literal["Failed", "Killed"]
KILLED: Failure = "Killed"  # a signal ended a stage, as when memory runs out


class RunFailedError(PipelineError):
    """A stage or a flow ended otherwise than completed.

    Args:
        name: of the state in which it ended.
    """

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


def one_line_failures(function: Callable[P, State[Any]]) -> Callable[P, State[Any]]:
    """Decorator of a flow's function: a PipelineError ends the run as a failed state and a line of its log.

    Prefect would log a traceback and put the name of the exception before the message. Any other exception ends it as
    a failed state, too, after its traceback: Prefect would keep its message as it is, with what addresses hold.
    """

    @functools.wraps(function)
    def ended(*args: P.args, **kwargs: P.kwargs) -> State[Any]:
        hide_secrets()
        try:
            return function(*args, **kwargs)
        except PipelineError as error:
            get_run_logger().error("%s", error)
            return failed(error)
        except Exception as error:
            get_run_logger().exception("%s", type(error).__name__)
            return failed(error)

    return ended


def failed(error: Exception) -> State[Any]:
    """The final state of a run that `error` ended; its message shows no secret."""
    name = error.name if isinstance(error, RunFailedError) else "Failed"
    message = str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
    return Failed(name=name, message=without_secrets(message))


def completed(message: str, name: Success = "Completed") -> State[Any]:
    """The final state of a run that succeeded."""
    return Completed(name=name, message=without_secrets(message))


def require_completed(state: State[Any]) -> State[Any]:
    """The state, if it is a completed one.

    Raises:
        RunFailedError: it is not; with the state's own name and message.
    """
    if not state.is_completed():
        raise RunFailedError(state.message or "", state.name or "Failed")
    return state


class _NoEcho(logging.Filter):
    """Drops the traceback that Prefect's engine adds to a failed state that a flow returned, and so has reported."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is worth showing."""
        return not (record.exc_info and isinstance(record.exc_info[1], FailedRun))


for _name in ("prefect.flow_runs", "prefect.engine"):
    logging.getLogger(_name).addFilter(_NoEcho())
