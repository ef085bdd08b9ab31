"""How many workers one Prefect server and one MLflow server bear: `python -m benchmarks.fleet [DATABASE]`.

Workers are simulated: each asks the server what a process worker of Prefect and a training ask it, with no stage behind
it. A training reports its progress once a second, its log every second, and an epoch to MLflow every five. Servers keep
their records in SQLite, as `make flow` and `gain ui` start them. Prints a table and writes benchmarks/fleet.json. The
simulation shares the cores with the servers, so a server with cores of its own bears more.
"""

import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import httpx

from benchmarks.machine import machine
from pipeline.base.files import write_json
from pipeline.tracking.server import problem_with

TARGET = Path(__file__).with_suffix(".json")
WORKERS = (10, 25, 50, 100)
SECONDS = 45.0  # for which a number of workers is at work
START_SECONDS, STOP_SECONDS = 120.0, 60.0
TIMEOUT, TRIES = 60.0, 6  # seconds of a request, and how often it is sent, as Prefect's client does
POLL, HEARTBEAT, PROGRESS, EPOCH = 10.0, 30.0, 1.0, 5.0  # seconds between two requests of a kind
LINES = 5  # of a log, in a second
SLOW = 1.0  # seconds from which an answer is late: the next report is due


class Tally:
    """Seconds of the answers by kind, and what went wrong."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.errors: dict[str, int] = {}
        self.lost = 0  # requests that were given up

    async def of(self, kind: str, send: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response | None:
        """The answer; errors are counted, and asked again after, as Prefect's client does. None after TRIES."""
        for attempt in range(TRIES):
            began = time.monotonic()
            try:
                response = await send()
                response.raise_for_status()
            except httpx.HTTPStatusError as error:
                problem = f"HTTP {error.response.status_code}"
            except httpx.HTTPError as error:
                problem = type(error).__name__
            else:
                self.seconds.setdefault(kind, []).append(time.monotonic() - began)
                return response
            self.errors[f"{kind}: {problem}"] = self.errors.get(f"{kind}: {problem}", 0) + 1
            await asyncio.sleep(2.0**attempt)
        self.lost += 1
        return None

    def summary(self) -> dict[str, Any]:
        """By kind, answers, their median and 95th percentile in seconds; errors that were retried; what was lost."""
        kinds = {
            kind: {
                "answers": len(values),
                "median": round(statistics.median(values), 3),
                "p95": round(sorted(values)[int(0.95 * (len(values) - 1))], 3),
            }
            for kind, values in self.seconds.items()
        }
        return {"kinds": kinds, "errors": self.errors, "lost": self.lost}


def main(database: str = "") -> None:
    """Measure every number of workers on fresh servers, and report.

    Args:
        database: of Prefect, as postgresql+asyncpg://USER@HOST/NAME; the most workers alone are measured on it, and the
            figures on SQLite kept.
    """
    report = json.loads(TARGET.read_text(encoding="utf-8")) if database else {"workers": {}}
    for count in WORKERS[-1:] if database else WORKERS:
        with tempfile.TemporaryDirectory() as folder, servers(Path(folder), database) as (prefect, mlflow):
            found = asyncio.run(_measured(count, prefect, mlflow))
        report["workers"][f"{count} on PostgreSQL" if database else f"{count}"] = found
        late = {kind: of["p95"] for kind, of in found["kinds"].items() if of["p95"] > SLOW}
        print(f"{count} workers: lost {found['lost']}, retried {found['errors']}; slow: {late}", flush=True)
    write_json(TARGET, {"machine": machine(), "seconds": SECONDS, **report})


@contextmanager
def servers(folder: Path, database: str = "") -> Iterator[tuple[str, str]]:
    """Addresses of a Prefect server's API and of an MLflow server, both new."""
    ports = [_free_port(), _free_port()]
    addresses = [f"http://127.0.0.1:{ports[0]}/api", f"http://127.0.0.1:{ports[1]}"]
    quiet = {"PREFECT_HOME": str(folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_API_URL": ""}
    commands = [
        ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(ports[0])],
        ["-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--port", str(ports[1])],
    ]
    own = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database} if database else {}
    environment = {**os.environ, **quiet, **own}
    processes = [
        subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )
        for command in commands
    ]  # fmt: skip
    try:
        deadline = time.monotonic() + START_SECONDS
        while any(problem_with(address) for address in addresses):
            if time.monotonic() > deadline:
                raise SystemExit("fleet: error: a server did not start")
            time.sleep(0.5)
        yield addresses[0], addresses[1]
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(STOP_SECONDS)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class _Site(NamedTuple):
    """The servers, what was made on them, and who counts the answers."""

    client: httpx.AsyncClient
    tally: Tally
    prefect: str
    mlflow: str
    flow: str
    experiment: str


async def _measured(count: int, prefect: str, mlflow: str) -> dict[str, Any]:
    tally = Tally()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=TIMEOUT, limits=limits) as client:
        await client.post(f"{prefect}/work_pools/", json={"name": "gpu", "type": "process"})
        flow = (await client.post(f"{prefect}/flows/", json={"name": "train"})).json()["id"]
        made = await client.post(f"{mlflow}/api/2.0/mlflow/experiments/create", json={"name": "gain"})
        experiment = made.json()["experiment_id"]
        site = _Site(client, tally, prefect, mlflow, flow, experiment)
        await asyncio.gather(*(_worker(site, number, count) for number in range(count)))
    return tally.summary()


async def _worker(site: _Site, number: int, count: int) -> None:
    client, tally, prefect = site.client, site.tally, site.prefect
    await asyncio.sleep(5.0 * number / count)  # they do not start in the same moment
    end = time.monotonic() + SECONDS
    name = f"gpu{number}"

    async def heartbeat() -> None:
        await tally.of(
            "worker heartbeat", lambda: client.post(f"{prefect}/work_pools/gpu/workers/heartbeat", json={"name": name})
        )

    async def poll() -> None:
        await tally.of("worker poll", lambda: client.post(f"{prefect}/work_pools/gpu/get_scheduled_flow_runs", json={}))

    await asyncio.gather(
        _every(HEARTBEAT, heartbeat, end),
        _every(POLL, poll, end),
        _training(site, name, end),
    )


async def _training(site: _Site, name: str, end: float) -> None:
    client, tally, prefect, mlflow = site.client, site.tally, site.prefect, site.mlflow
    created = await tally.of(
        "run created",
        lambda: client.post(
            f"{prefect}/flow_runs/", json={"name": name, "flow_id": site.flow, "state": {"type": "PENDING"}}
        ),
    )
    tracked = await tally.of(
        "MLflow run",
        lambda: client.post(
            f"{mlflow}/api/2.0/mlflow/runs/create",
            json={"experiment_id": site.experiment, "start_time": int(1000 * time.time())},
        ),
    )
    if created is None or tracked is None:
        return
    run, record = created.json()["id"], tracked.json()["run"]["info"]["run_id"]
    states = f"{prefect}/flow_runs/{run}/set_state"
    await tally.of("state", lambda: client.post(states, json={"state": {"type": "RUNNING"}}))
    body = {"key": f"progress-{uuid4()}", "type": "progress", "data": 0, "flow_run_id": run}
    artifact = await tally.of("progress", lambda: client.post(f"{prefect}/artifacts/", json=body))

    async def progress() -> None:
        if artifact is not None:
            address = f"{prefect}/artifacts/{artifact.json()['id']}"
            await tally.of("progress", lambda: client.patch(address, json={"data": 50.0}))

    async def log() -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = {"name": "prefect", "level": 20, "message": "an epoch", "timestamp": now, "flow_run_id": run}
        await tally.of("log", lambda: client.post(f"{prefect}/logs/", json=[line] * LINES))

    async def epoch() -> None:
        metrics = [
            {"key": f"loss{i}", "value": 0.5, "timestamp": int(1000 * time.time()), "step": 1} for i in range(12)
        ]
        await tally.of(
            "MLflow epoch",
            lambda: client.post(f"{mlflow}/api/2.0/mlflow/runs/log-batch", json={"run_id": record, "metrics": metrics}),
        )

    await asyncio.gather(_every(PROGRESS, progress, end), _every(PROGRESS, log, end), _every(EPOCH, epoch, end))
    await tally.of("state", lambda: client.post(states, json={"state": {"type": "COMPLETED"}}))


async def _every(seconds: float, action: Any, end: float) -> None:
    """Again and again until the end, as often as the answers let it."""
    while (began := time.monotonic()) < end:
        await action()
        await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))


if __name__ == "__main__":
    main(*sys.argv[1:])
