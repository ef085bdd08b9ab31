"""A sweep of a thousand points, interrupted on the way: `python -m benchmarks.sweep`.

Server, deployments, the sweep and its worker are real; the workers that take its points are simulated, with a second of
sleep for each point, as a thousand trainings would take days. When a third of the points are done, the process of the
sweep is killed, and the run is tried again. Prints and writes benchmarks/sweep.json: how long it took beside the points
themselves, how much memory the sweep had, and how many runs the server knows in the end, which must be one per point.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.fleet import servers
from benchmarks.flows import clone, run
from benchmarks.machine import machine
from pipeline.base.files import write_json

TARGET = Path(__file__).with_suffix(".json")
POINTS, WORKERS = 1000, 16
POINT, POLL, HEARTBEAT, SIGHT = 1.0, 1.0, 20.0, 2.0  # seconds: of a point, and between two requests of a kind
TIMEOUT, PATIENCE = 60.0, 1800.0  # seconds of a request, and of the whole


class Server:
    """A Prefect server, asked by simulated workers and by the benchmark."""

    def __init__(self, client: httpx.AsyncClient, address: str) -> None:
        self._client, self._address = client, address

    async def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer to a POST, or to a GET without a body; a server that is busy is asked again."""
        method = "GET" if body is None else "POST"
        while True:
            with suppress(httpx.TransportError):
                response = await self._client.request(method, f"{self._address}/{path}", json=body)
                if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    response.raise_for_status()
                    return response.json() if response.content else None
            await asyncio.sleep(1.0)

    async def count(self, **state: str) -> int:
        """Runs of `train`; those whose state has this type or name."""
        wanted = {key: {"any_": [value]} for key, value in state.items()}
        body = {"flows": {"name": {"any_": ["train"]}}, "flow_runs": {"state": wanted} if wanted else None}
        return int(await self.ask("flow_runs/count", body))


def main() -> None:
    """Run the sweep on fresh servers, and report."""
    with tempfile.TemporaryDirectory() as folder, servers(Path(folder)) as (address, _):
        checkout = clone(Path(folder) / "checkout")
        with _control_worker(checkout, address):
            found = asyncio.run(_measured(checkout, address))
    setting = {"machine": machine(), "points": POINTS, "workers": WORKERS, "seconds_of_a_point": POINT}
    write_json(TARGET, {**setting, **found})
    print(json.dumps(found, indent=2))
    if (found["state"], found["runs"], found["completed"]) != ("COMPLETED", POINTS, POINTS):
        raise SystemExit(
            f"sweep: error: it ended as {found['state']}, with {found['completed']} of {found['runs']} runs"
        )


@contextmanager
def _control_worker(checkout: Path, address: str) -> Iterator[None]:
    """The pools, the deployments, and a worker for the sweep."""
    prefect = ("python", "-m", "prefect", "--no-prompt")
    for pool in ("gpu", "control"):
        run(checkout, *prefect, "work-pool", "create", pool, "--type", "process", PREFECT_API_URL=address)
    for deployment in ("train/local", "sweep/local"):
        run(checkout, *prefect, "deploy", "--name", deployment, PREFECT_API_URL=address)
    worker = subprocess.Popen(
        [sys.executable, *prefect[1:], "worker", "start", "--pool", "control"], cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "PWD": str(checkout), "PREFECT_API_URL": address},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        worker.terminate()
        worker.wait()


async def _measured(checkout: Path, address: str) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=TIMEOUT, limits=limits) as client, asyncio.TaskGroup() as tasks:
        server = Server(client, address)
        workers = tasks.create_task(_workers(server, tasks))
        await asyncio.sleep(2 * POLL)  # the server knows them
        deployment = await server.ask("deployments/name/sweep/local")
        parameters = {"grid": {"seed": list(range(POINTS))}, "deployment": "train/local"}
        made = await server.ask(f"deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
        async with asyncio.timeout(PATIENCE):
            found = await _watched(server, made["id"], checkout, address)
        workers.cancel()
        return found


async def _watched(server: Server, sweep: str, checkout: Path, address: str) -> dict[str, Any]:
    began, first, memory, interrupted = time.monotonic(), 0.0, list[float](), 0
    state = ""
    while not (interrupted and state in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")):
        await asyncio.sleep(SIGHT)
        first = first or (time.monotonic() - began if await server.count() else 0.0)
        completed = await server.count(type="COMPLETED")
        if completed > POINTS // 20:
            with suppress(psutil.NoSuchProcess):
                memory += [engine.memory_info().rss / 2**20 for engine in _engines(sweep)]
        if not interrupted and completed >= POINTS // 3:
            interrupted = completed
            for engine in _engines(sweep):
                engine.kill()
            await _crashed(server, sweep)
            retry = (checkout, "python", "-m", "prefect", "flow-run", "retry", sweep)
            await asyncio.to_thread(run, *retry, PREFECT_API_URL=address)
        state = (await server.ask(f"flow_runs/{sweep}"))["state"]["type"]
    return {
        "seconds": round(time.monotonic() - began),
        "seconds_until_the_first_point_is_made": round(first),
        "memory_mib_at_5_percent": round(memory[0]),
        "memory_mib_at_most": round(max(memory)),
        "completed_when_killed": interrupted,
        "runs": await server.count(),
        "completed": await server.count(type="COMPLETED"),
        "tables": int(await server.ask("artifacts/count", {"artifacts": {"flow_run_id": {"any_": [sweep]}}})),
        "state": state,
    }


async def _crashed(server: Server, sweep: str) -> None:
    """Wait until the worker has had its last word on the run: before, a retry is undone (docs/prefect.md)."""
    logs = {"logs": {"flow_run_id": {"any_": [sweep]}}, "sort": "TIMESTAMP_DESC", "limit": 20}
    while not any("exceeded its memory" in line["message"] for line in await server.ask("logs/filter", logs)):
        await asyncio.sleep(1.0)


def _engines(sweep: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "prefect.engine" in process.cmdline() and process.environ().get("PREFECT__FLOW_RUN_ID") == sweep:
                found.append(process)
    return found


async def _workers(server: Server, points: asyncio.TaskGroup) -> None:
    """One loop in place of all workers: it reports each of them, and takes as many points."""
    reported = -HEARTBEAT
    while True:
        if time.monotonic() - reported > HEARTBEAT:
            reported = time.monotonic()
            for number in range(WORKERS):
                await server.ask("work_pools/gpu/workers/heartbeat", {"name": f"gpu{number}"})
        for scheduled in await server.ask("work_pools/gpu/get_scheduled_flow_runs", {"limit": WORKERS}):
            identity = scheduled["flow_run"]["id"]
            await server.ask(f"flow_runs/{identity}/set_state", {"state": {"type": "PENDING"}})
            points.create_task(_point(server, identity))
        await asyncio.sleep(POLL)


async def _point(server: Server, identity: str) -> None:
    await server.ask(f"flow_runs/{identity}/set_state", {"state": {"type": "RUNNING"}})
    await asyncio.sleep(POINT)
    await server.ask(f"flow_runs/{identity}/set_state", {"state": {"type": "COMPLETED"}})


if __name__ == "__main__":
    main()
