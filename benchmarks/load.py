"""Whether `gain serve` bears many clients at once: times of answers, refusals, and memory over many requests.

`python -m benchmarks.load` serves the small network of the embedded profile on loopback, lets 50 clients ask it 10,000
times in all, then 50 ask a server with a short queue; prints a table and writes benchmarks/load.json.
"""

import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests

from benchmarks.machine import machine
from benchmarks.serving import JSON, NETWORKS, prepare, random_picture, register_network, request_of, served
from pipeline.base.files import write_json

NETWORK = "embedded"
CLIENTS = 50
REQUESTS = 10_000
MEASURED_EVERY = 1_000  # requests
SHORT_QUEUE, SHORT_REQUESTS = 8, 2_000
TIMEOUT = 60.0


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = prepare(folder)
        register_network(folder, environment, NETWORK, attention_iou=0.1)
        rows = [_load(folder, environment, *case) for case in ((CLIENTS, REQUESTS), (SHORT_QUEUE, SHORT_REQUESTS))]
    result = {"machine": machine(), "rows": rows}
    write_json(Path(__file__).with_suffix(".json"), result)
    print(
        "| clients | may wait | answered | refused at once | answers/s | p50, ms | p99, ms | memory, MB, each 1,000 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        memory = ", ".join(f"{megabytes:.0f}" for megabytes in row["memory_mb"])
        print(
            f"| {CLIENTS} | {row['waiting']} | {row['answered']} | {row['refused']} | {row['per_second']:.0f} | "
            f"{row['p50_ms']:.0f} | {row['p99_ms']:.0f} | {memory} |"
        )


def _load(folder: Path, environment: dict[str, str], waiting: int, total: int) -> dict[str, Any]:
    """What `CLIENTS` clients see that ask without a pause until they have asked `total` times."""
    body = request_of(random_picture(NETWORKS[NETWORK][2]))
    command = [sys.executable, "-m", "pipeline.cli.main", "serve", "--alias", "challenger", "--waiting", str(waiting)]
    memory: list[float] = []
    with served(command, folder, environment) as (url, pid):
        numbers = count(1)

        def ask_on(_: int) -> list[tuple[int, float]]:
            found = []
            with requests.Session() as session:
                while (number := next(numbers)) <= total:
                    begin = time.perf_counter()
                    answer = session.post(f"{url}/invocations", data=body, headers=JSON, timeout=TIMEOUT)
                    found.append((answer.status_code, time.perf_counter() - begin))
                    if number % MEASURED_EVERY == 0:
                        memory.append(_megabytes(pid))
                    if answer.status_code == 503:
                        time.sleep(float(answer.headers["Retry-After"]))
            return found

        begin = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as clients:
            found = [one for of_client in clients.map(ask_on, range(CLIENTS)) for one in of_client]
        seconds = time.perf_counter() - begin
    if others := {status for status, _ in found} - {200, 503}:
        sys.exit(f"load: error: the server answered with status {sorted(others)}")
    answered = [1000 * latency for status, latency in found if status == 200]
    p50, p99 = np.percentile(answered, [50, 99])
    return {
        "waiting": waiting, "answered": len(answered), "refused": len(found) - len(answered),
        "per_second": len(answered) / seconds, "p50_ms": p50, "p99_ms": p99, "memory_mb": memory,
    }  # fmt: skip


def _megabytes(pid: int) -> float:
    """Resident memory of a process and all that it has started."""
    process = psutil.Process(pid)
    return sum(one.memory_info().rss for one in [process, *process.children(recursive=True)]) / 1e6


if __name__ == "__main__":
    main()
