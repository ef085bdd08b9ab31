"""What Prefect costs beside plain DVC, on the profile smoke in fresh clones: `make bench`.

Prints and writes benchmarks/flows.json, the median over the rounds: the pipeline by `dvc repro`, by a flow without a
server (its start counts), by a flow with one, and by a flow in which nothing has changed.
"""

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import machine
from pipeline.flows import dag

REPOSITORY = Path(__file__).parents[1]
TARGET = Path(__file__).with_suffix(".json")
ROUNDS = 3


def main() -> None:
    """Time the four in turn, several rounds, and report."""
    rounds = [one_round() for _ in range(ROUNDS)]
    seconds = {name: statistics.median(times[name] for times in rounds) for name in rounds[0]}
    over_dvc = seconds["warm server"] - seconds["dvc repro"]
    result = {
        "machine": machine(),
        "rounds": ROUNDS,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "seconds_per_stage_over_dvc": round(over_dvc / len(dag.plan(REPOSITORY)), 2),
        "seconds_of_cold_server": round(seconds["cold server"] - seconds["warm server"], 1),
    }
    TARGET.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def one_round() -> dict[str, float]:
    """Seconds of each of the four, in fresh clones."""
    with tempfile.TemporaryDirectory() as folder:
        plain, cold, warm = (clone(Path(folder) / name) for name in ("plain", "cold", "warm"))
        times = {"dvc repro": timed(lambda: run(plain, "dvc", "repro"))}
        try:
            times["cold server"] = timed(lambda: run(cold, "python", "-m", "pipeline.cli.main", "flow"))
            url = json.loads((cold / ".prefect" / "started.json").read_text(encoding="utf-8"))[0]["url"]
            watched = ("python", "-m", "pipeline.flows")
            times["warm server"] = timed(lambda: run(warm, *watched, PREFECT_API_URL=url))
            times["nothing changed"] = timed(lambda: run(warm, *watched, PREFECT_API_URL=url))
        finally:
            run(cold, "python", "-m", "pipeline.cli.main", "down")
    return times


def clone(folder: Path) -> Path:
    """A fresh clone that chooses the profile smoke."""
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, folder], check=True)
    params = folder / "params.yaml"
    params.write_text(
        params.read_text(encoding="utf-8").replace("profile: embedded", "profile: smoke", 1), encoding="utf-8"
    )
    return folder


def run(folder: Path, *command: str, **added: str) -> None:
    """Run a command silently in `folder`.

    Raises:
        CalledProcessError: it fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(folder), "PWD": str(folder), **added}
    subprocess.run(
        command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def timed(function: Callable[[], None]) -> float:
    """Seconds that the function takes."""
    started = time.monotonic()
    function()
    return time.monotonic() - started


if __name__ == "__main__":
    main()
