"""A Prefect server and workers of one's own on loopback, for `make flow`; `make down` stops what was started here.

What runs is noted in .prefect/started.json, a process by its id and the time at which it started, so that another one
that has the id since is left alone. Server and workers log to .prefect; the server keeps its database there too.
"""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml

from pipeline.base.errors import PipelineError, without_credentials
from pipeline.base.files import write_json
from pipeline.flows.services import check_prefect_server
from pipeline.tracking.server import problem_with

HOME = Path(".prefect")
STARTED = HOME / "started.json"
PORT = 4200  # Prefect's own, if it is free
START_SECONDS = 300.0  # a server that dies is noticed at once
STOP_SECONDS = 20.0
POLL_SECONDS = 0.2
PAGE = 200  # lines of a log in one answer
POOLS = ("gpu", "control")
AUTOMATION = Path("deploy") / "heartbeat.yaml"
SETTINGS = {
    "PREFECT_WORKER_QUERY_SECONDS": "1",  # 10 else, which a server of one's own need not be spared
    "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",  # 30 else; three missed ones make a worker offline
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


@dataclass(frozen=True)
class Started:
    """One process of ours."""

    name: str
    pid: int
    created: float  # seconds since the epoch
    url: str = ""  # of a server's API


def run_flow(deployment: str, parameters: dict[str, Any]) -> int:
    """Run a deployment and show its log until it ends; starts a server and workers, and deploys, where there are none.

    Returns:
        0 if the run completed, else 1.

    Raises:
        PipelineError: PREFECT_API_URL does not answer, or server, workers or deployment could not be set up.
    """
    url = _server()
    page = without_credentials(url).removesuffix("/api")
    with _settings(url):
        # Two cores start one worker and one deployment in half the time of all; a training needs no more to begin with.
        begins = deployment.startswith("train/")
        if begins:
            _set_up(POOLS[:1], deployment)
            run_id = _create_run(deployment, parameters, page)
        _set_up(POOLS, "*/local")
        _install_automation()
        print(f"Prefect: {page}; in a shell: export PREFECT_API_URL={page}/api", flush=True)
        return _watch(deployment, run_id if begins else _create_run(deployment, parameters, page))


def stop() -> list[str]:
    """End the workers and the server that were started here; their names. A run on a worker ends with it."""
    ended = []
    for process in reversed(_started()):
        if _is_alive(process):
            _end(process.pid)
            ended.append(process.name)
    STARTED.unlink(missing_ok=True)
    return ended


def _server() -> str:
    """Address of the API: PREFECT_API_URL, the server of an earlier call, or a new one."""
    if url := os.environ.get("PREFECT_API_URL"):
        check_prefect_server()
        return url
    for process in _started():
        if process.url and _is_alive(process) and problem_with(process.url) is None:
            return process.url
    stop()
    HOME.mkdir(exist_ok=True)
    port = _free_port()
    url = f"http://127.0.0.1:{port}/api"
    command = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with _settings(url):
        process = _start("server", command, url=url)
    deadline = time.monotonic() + START_SECONDS
    while problem_with(url):
        if not _is_alive(process) or time.monotonic() > deadline:
            stop()
            raise PipelineError(f"the Prefect server did not start; see {HOME / 'server.log'}")
        time.sleep(POLL_SECONDS)
    return url


def _set_up(pools: Sequence[str], deployments: str) -> None:
    """Work pools with a worker each, and the deployments of prefect.yaml that a pattern names."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    with get_client(sync_client=True) as client:
        known = {pool.name for pool in client.read_work_pools()}
        for pool in pools:
            if pool not in known:
                client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
            ours, name = [p for p in _started() if p.name == f"worker of {pool}"], f"{socket.gethostname()}-{pool}"
            online = {w.name for w in client.read_workers_for_work_pool(pool) if w.status.value == "ONLINE"}
            # The server takes a worker of ours that has just died for a living one.
            if not any(map(_is_alive, ours)) and not online - ({name} if ours else set()):
                limit = ["--limit", "1"] if pool == "gpu" else []
                _start(f"worker of {pool}", ["worker", "start", "--pool", pool, "--name", name, *limit])
    _prefect("deploy", "--name", deployments)


def _install_automation() -> None:
    from prefect.client.orchestration import get_client

    name = yaml.safe_load(AUTOMATION.read_text(encoding="utf-8"))["name"]
    with get_client(sync_client=True) as client:
        known = {automation.name for automation in client.read_automations()}
    if name not in known:
        _prefect("automation", "create", "--from-file", str(AUTOMATION))


def _create_run(deployment: str, parameters: dict[str, Any], page: str) -> UUID:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(deployment)
            run = client.create_flow_run_from_deployment(found.id, parameters=parameters)
        except ObjectNotFound:
            raise PipelineError(f"no deployment {deployment!r}; those of prefect.yaml end in /local") from None
        except PrefectHTTPStatusError as error:
            raise PipelineError(f"{deployment}: the server refuses these parameters: {error.response.text}") from None
    print(f"{deployment}: {run.name}, {page}/runs/flow-run/{run.id}", flush=True)
    return run.id


def _watch(deployment: str, run_id: UUID) -> int:
    from prefect.client.orchestration import get_client

    shown: set[UUID] = set()
    with get_client(sync_client=True) as client:
        while True:
            state = client.read_flow_run(run_id).state
            final = state is not None and state.is_final()
            if final:
                time.sleep(1.0)  # the last lines arrive after the state
            _print_logs(client, run_id, shown)
            if final:
                assert state is not None
                print(f"{deployment}: {state.name}: {state.message or ''}", flush=True)
                return 0 if state.is_completed() else 1
            time.sleep(1.0)


def _print_logs(client: Any, flow_run_id: UUID, shown: set[UUID]) -> None:
    """Print the lines that are not in `shown`: they need not arrive in the order of their time."""
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
    from prefect.client.schemas.sorting import LogSort

    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id]))
    new: list[Any] = []
    for offset in itertools.count(step=PAGE):
        page = client.read_logs(wanted, sort=LogSort.TIMESTAMP_DESC, offset=offset, limit=PAGE)
        fresh = [log for log in page if log.id not in shown]
        new += fresh
        if len(fresh) < PAGE:
            break
    for log in reversed(new):
        shown.add(log.id)
        print(f"{log.timestamp.astimezone():%H:%M:%S} {log.message}", flush=True)


@contextmanager
def _settings(url: str) -> Iterator[None]:
    """For this process's client and for the processes that it starts."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    before = os.environ.get("PREFECT_API_URL")
    os.environ["PREFECT_API_URL"] = url
    try:
        with temporary_settings({PREFECT_API_URL: url}):
            yield
    finally:
        os.environ.pop("PREFECT_API_URL")
        if before is not None:
            os.environ["PREFECT_API_URL"] = before


def _start(name: str, arguments: list[str], *, url: str = "") -> Started:
    import psutil

    environment = {**os.environ, **SETTINGS}
    if url:
        environment["PREFECT_HOME"] = str(HOME.absolute())
    HOME.mkdir(exist_ok=True)
    with (HOME / f"{name.replace(' ', '-')}.log").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = Started(name, process.pid, psutil.Process(process.pid).create_time(), url)
    write_json(STARTED, [vars(entry) for entry in [*_started(), started]])
    return started


def _started() -> list[Started]:
    if not STARTED.exists():
        return []
    return [Started(**entry) for entry in json.loads(STARTED.read_text(encoding="utf-8"))]


def _is_alive(process: Started) -> bool:
    import psutil

    try:
        found = psutil.Process(process.pid)
        return bool(found.create_time() == process.created and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _end(pid: int) -> None:
    """Ask the process to end, and its group to follow if it does not."""
    import psutil

    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
    for member in alive:
        with suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGKILL)


def _prefect(*arguments: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        env={**os.environ, "PWD": str(Path.cwd())},  # prefect.yaml names the checkout by it
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        reason = " ".join((result.stderr or result.stdout).split())[-300:]
        raise PipelineError(f"prefect {' '.join(arguments)}: {reason}")


def _free_port() -> int:
    for port in (PORT, 0):
        with socket.socket() as listener, suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that has just been left is free
            listener.bind(("127.0.0.1", port))
            return int(listener.getsockname()[1])
    raise PipelineError("no free port on 127.0.0.1")
