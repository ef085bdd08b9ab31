"""Whether the servers and the DVC remote that a run needs answer, each asked with a time limit."""

import os
from collections.abc import Callable
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

from pipeline.base.errors import PipelineError, printable
from pipeline.base.secrets import without_secrets
from pipeline.tracking.server import ANSWER_SECONDS, problem_with, tracking_uri


def check_prefect_server() -> None:
    """The server that PREFECT_API_URL names, if it names one, answers.

    Raises:
        PipelineError: it does not.
    """
    url = os.environ.get("PREFECT_API_URL", "")
    if url and (problem := problem_with(url)):
        raise PipelineError(
            f"the Prefect server at {without_secrets(url)}: {problem}; start it, or unset PREFECT_API_URL"
        )


def check_services(folder: Path, *, share: bool) -> None:
    """The servers that a run needs answer, asked before hours of training depend on them.

    Args:
        folder: a checkout.
        share: the run needs the default DVC remote, too.

    Raises:
        PipelineError: one does not answer, or there is no remote.
    """
    check_tracking_server()
    if share and default_remote(folder) is None:
        raise PipelineError("share: there is no default DVC remote; add one: `dvc remote add --default NAME URL`")


def check_tracking_server() -> None:
    """MLflow's server answers, if the record is kept on one.

    Raises:
        PipelineError: it does not.
    """
    uri = tracking_uri()
    if uri.startswith("http") and (problem := problem_with(uri)):
        raise PipelineError(f"MLflow at {without_secrets(uri)}: {problem}; start it, or correct MLFLOW_TRACKING_URI")


def default_remote(folder: Path) -> str | None:
    """Name and place of the default DVC remote of a checkout, which answers; None without a remote.

    Raises:
        PipelineError: it does not answer within twice `ANSWER_SECONDS`, or its settings are wrong.
    """

    def ask() -> str | None:
        # DVC knows how to reach every kind of remote.
        from dvc.exceptions import NotDvcRepoError
        from dvc.repo import Repo

        try:
            with Repo(str(folder)) as repository:
                name = repository.config["core"].get("remote")
                if name is None:
                    return None
                odb = repository.cloud.get_remote_odb(name)
                # A folder is made on the first push; of anything else, an answer is all that can be asked.
                if odb.fs.protocol == "local" and not Path(odb.path).parents[2].exists():
                    raise FileNotFoundError(f"{Path(odb.path).parents[2]} is not there")
                odb.fs.exists(odb.path)
                return without_secrets(f"{name} ({odb.path})")
        except NotDvcRepoError:
            return None

    try:
        return _within(ask)
    except Exception as error:  # each storage client has exceptions of its own
        reason = printable(without_secrets(str(error))) or type(error).__name__
        raise PipelineError(
            f"the DVC remote does not answer ({reason}); `dvc remote list` shows its address"
        ) from error


def _within(function: Callable[[], str | None]) -> str | None:
    """The function's result; a thread that does not end in time is left behind, and does not keep the process alive.

    Raises:
        TimeoutError: it does not end within twice `ANSWER_SECONDS`.
    """
    answers: Queue[str | Exception | None] = Queue()

    def ask() -> None:
        try:
            answers.put(function())
        except Exception as error:
            answers.put(error)

    Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=2 * ANSWER_SECONDS)
    except Empty:
        raise TimeoutError(f"no answer within {2 * ANSWER_SECONDS:.0f} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer
