"""`gain flow`: run a deployment and show its log, on a local server with workers, started where there are none.

Server, workers and deployments are those of Prefect's own commands; processes.py keeps them in the background. What
Prefect has for that falls short (3.8.8): `server start --background` writes no log and refuses to start after a crash,
`server stop` ends whichever process has its id now, and `deployment run --watch` shows no line from before it looked,
drops what stands in brackets, and fails at a line with "[/".
"""

import hashlib
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from httpx import HTTPError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, Log, State
from prefect.client.schemas.sorting import LogSort
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings

from pipeline.base.errors import PipelineError, warn
from pipeline.base.secrets import without_secrets
from pipeline.flows.processes import HOME, log_file, start, started, stop
from pipeline.flows.services import check_prefect_server
from pipeline.tracking.server import problem_with

PREFECT = (sys.executable, "-m", "pipeline.base.secrets", "prefect", "--no-prompt")
PORT = 4200  # Prefect's own, if it is free
START_SECONDS = 300.0  # a server that dies is noticed at once
POLL_SECONDS = 0.2  # of a server that starts
WATCH_SECONDS = 1.0  # between two looks at a run's log
LONGEST_REASON = 300  # characters of what Prefect says, from its end
PAGE = 200  # lines of a log in one answer, the most that the server gives
POOLS = ("gpu", "control")
AUTOMATION = Path("deploy") / "heartbeat.yaml"
SETTINGS = {
    "PREFECT_WORKER_QUERY_SECONDS": "1",  # by default 10, which spares a shared server
    "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",  # by default 30; three missed ones make a worker offline
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


def run_flow(deployment: str, parameters: Mapping[str, Any]) -> int:
    """Run a deployment and show its log until it ends; starts a server and workers, and deploys, where there are none.

    Returns:
        0 if the run completed, else 1.

    Raises:
        PipelineError: PREFECT_API_URL does not answer, or server, workers or deployment could not be set up.
    """
    url = _server()
    page = without_secrets(url).removesuffix("/api")
    with _client(url) as client, ThreadPoolExecutor(1) as background:
        # Two cores start one worker and one deployment in half the time of all; a training needs no more to begin with.
        if deployment.startswith("train/"):
            _set_up(client, url, POOLS[:1], deployment)
            rest = background.submit(_set_up_all, url)
        else:
            _set_up_all(url)
            rest = None
        print(f"Prefect: {page}; in a shell: export PREFECT_API_URL={page}/api", flush=True)
        run = _create_run(client, deployment, parameters, page)
        state = _watch(client, run.id, page)
        print(f"{deployment}: {state.name}: {state.message or ''}", flush=True)
        if rest is not None and (problem := rest.exception()) is not None:
            warn(f"not all of {', '.join(POOLS)} and their deployments are set up: {problem}; run `gain flow` again")
    return 0 if state.is_completed() else 1


@contextmanager
def _client(url: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        yield client


def _set_up_all(url: str) -> None:
    """Both pools, all deployments on this machine and the automation; in a thread it has a client of its own."""
    with _client(url) as client:
        _set_up(client, url, POOLS, "*/local")
        _install_automation(client, url)


def _server() -> str:
    """Address of the API: PREFECT_API_URL, the server of an earlier call, or a new one."""
    if url := os.environ.get("PREFECT_API_URL"):
        check_prefect_server()
        return url
    for process in started():
        if process.url and process.is_alive() and problem_with(process.url) is None:
            return process.url
    stop()
    port = _free_port()
    url = f"http://127.0.0.1:{port}/api"
    command = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = start("server", command, {**_environment(url), "PREFECT_HOME": str(HOME.absolute())}, url=url)
    deadline = time.monotonic() + START_SECONDS
    while problem_with(url):
        if not process.is_alive() or time.monotonic() > deadline:
            stop()
            raise PipelineError(f"the Prefect server did not start; see {log_file('server')}")
        time.sleep(POLL_SECONDS)
    return url


def _free_port() -> int:
    for port in (PORT, 0):
        with socket.socket() as listener, suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that has just been left is free
            listener.bind(("127.0.0.1", port))
            return int(listener.getsockname()[1])
    raise PipelineError("no free port on 127.0.0.1")


def _environment(url: str) -> dict[str, str]:
    """Of every Prefect command; prefect.yaml names the checkout by PWD."""
    return {**os.environ, **SETTINGS, "PREFECT_API_URL": url, "PWD": str(Path.cwd())}


def _set_up(client: SyncPrefectClient, url: str, pools: Sequence[str], deployments: str) -> None:
    """Work pools with a worker each, and the deployments of prefect.yaml that a pattern names."""
    for pool in pools:
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        worker = _worker_name(pool)
        if not _has_worker(client, pool, worker):
            limit = ["--limit", "1"] if pool == "gpu" else []
            command = [*PREFECT, "worker", "start", "--pool", pool, "--name", worker, *limit]
            start(f"worker of {pool}", command, _environment(url))
    _prefect(url, "deploy", "--name", deployments)


def _worker_name(pool: str) -> str:
    """The machine, the pool, and which of the checkouts on this machine, so that each knows its own worker."""
    checkout = hashlib.sha256(str(Path.cwd()).encode()).hexdigest()[:6]
    return f"{socket.gethostname()}-{pool}-{checkout}"


def _has_worker(client: SyncPrefectClient, pool: str, worker: str) -> bool:
    """Whether a worker takes runs of the pool: one that was started here, or another that the server calls online.

    The server calls one that has died online for a while, too, and for good if it died with it: of this checkout's own
    worker, the process is looked at.
    """
    local = [process for process in started() if process.name == f"worker of {pool}"]
    online = {found.name for found in client.read_workers_for_work_pool(pool) if found.status.value == "ONLINE"}
    return any(process.is_alive() for process in local) or bool(online - {worker})


def _install_automation(client: SyncPrefectClient, url: str) -> None:
    name = yaml.safe_load(AUTOMATION.read_text(encoding="utf-8"))["name"]
    if name not in {automation.name for automation in client.read_automations()}:
        _prefect(url, "automation", "create", "--from-file", str(AUTOMATION))


def _prefect(url: str, *arguments: str) -> None:
    result = subprocess.run([*PREFECT, *arguments], env=_environment(url), capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = " ".join(without_secrets(result.stderr or result.stdout).split())[-LONGEST_REASON:]
        raise PipelineError(f"prefect {' '.join(arguments)}: {reason}")


def _create_run(client: SyncPrefectClient, deployment: str, parameters: Mapping[str, Any], page: str) -> FlowRun:
    try:
        found = client.read_deployment_by_name(deployment)
        run = client.create_flow_run_from_deployment(found.id, parameters=dict(parameters))
    except ObjectNotFound:
        raise PipelineError(f"no deployment {deployment!r}; those of prefect.yaml end in /local") from None
    except PrefectHTTPStatusError as error:
        raise PipelineError(f"{deployment}: the server refuses these parameters: {error.response.text}") from None
    print(f"{deployment}: {run.name}, {page}/runs/flow-run/{run.id}", flush=True)
    return run


def _watch(client: SyncPrefectClient, run_id: UUID, page: str) -> State[Any]:
    """Show the log until the run ends; its final state. The client waits for a server that restarts.

    Raises:
        PipelineError: the server is gone for longer.
    """
    shown: set[UUID] = set()
    try:
        while True:
            state = client.read_flow_run(run_id).state
            time.sleep(WATCH_SECONDS)  # the last lines arrive after the state
            for log in _new_lines(client, run_id, shown):
                print(f"{log.timestamp.astimezone():%H:%M:%S} {log.message}", flush=True)
            if state is not None and state.is_final():
                return state
    except KeyboardInterrupt:
        print(
            f"flow: the run goes on, see {page}/runs/flow-run/{run_id}; `gain down` ends it, with server and workers",
            file=sys.stderr,
        )
        raise
    except HTTPError as error:
        raise PipelineError(
            f"the Prefect server at {page} does not answer any more ({type(error).__name__}); the run goes on without "
            "it: start the server again and see the run's page"
        ) from None


def _new_lines(client: SyncPrefectClient, run_id: UUID, shown: set[UUID]) -> list[Log]:
    """Those that are not in `shown`, in order, and adds them; they need not arrive in the order of their time."""
    wanted, new = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])), dict[UUID, Log]()
    for offset in itertools.count(step=PAGE):
        page = client.read_logs(wanted, sort=LogSort.TIMESTAMP_DESC, offset=offset, limit=PAGE)
        fresh = {log.id: log for log in page if log.id not in shown}
        new |= fresh
        if len(fresh) < PAGE:
            break
    shown.update(new)
    return list(reversed(new.values()))
