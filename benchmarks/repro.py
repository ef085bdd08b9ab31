"""Time and memory of `make repro`, stage by stage, in a fresh clone: `make bench`.

Prints a table and writes benchmarks/repro.json. "training" is the time inside the training loops, validation included;
the rest of a stage is start-up, loading, reports and tracking. Memory is the largest single process.
"""

import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

REPOSITORY = Path(__file__).parents[1]
TARGET = Path(__file__).with_suffix(".json")


def main() -> None:
    """Clone the commit, run the pipeline twice and report."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", REPOSITORY, clone], check=True)
        stages = timed_repro(clone)
        started = time.monotonic()
        subprocess.run(["dvc", "repro", "--quiet"], cwd=clone, check=True)
        no_op = time.monotonic() - started
    total = sum(stage["seconds"] for stage in stages.values())
    training = sum(stage["training"] for stage in stages.values())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    result = {
        "machine": machine(),
        "stages": stages,
        "total_seconds": round(total, 1),
        "training_share": round(training / total, 3),
        "no_op_seconds": round(no_op, 1),
        "peak_memory_gib": round(peak, 2),
    }
    TARGET.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(result))


def timed_repro(clone: Path) -> dict[str, dict[str, float]]:
    """Seconds of every stage of `dvc repro`, and of the training loop in it, from its output."""
    stages: dict[str, dict[str, float]] = {}
    current, started = "dvc start-up", time.monotonic()
    stages[current] = {"seconds": 0.0, "training": 0.0}
    with subprocess.Popen(["dvc", "repro"], cwd=clone, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", file=sys.stderr)
            if trained := re.search(r"trained for ([\d.]+) s", line):
                stages[current]["training"] += float(trained[1])
            if stage := re.match(r"Running stage '(.+)':", line):
                now = time.monotonic()
                stages[current]["seconds"] = round(now - started, 1)
                current, started = stage[1], now
                stages[current] = {"seconds": 0.0, "training": 0.0}
    stages[current]["seconds"] = round(time.monotonic() - started, 1)
    if process.returncode:
        raise SystemExit(f"dvc repro failed with exit code {process.returncode}")
    return stages


def table(result: Mapping[str, Any]) -> str:
    """Markdown."""
    lines = ["| stage | seconds | of it training |", "|---|---|---|"]
    lines += [f"| {name} | {s['seconds']:.0f} | {s['training']:.0f} |" for name, s in result["stages"].items()]
    lines.append(f"| all | {result['total_seconds']:.0f} | {100 * result['training_share']:.0f} % |")
    lines.append(f"\nSecond run: {result['no_op_seconds']} s. Peak memory: {result['peak_memory_gib']} GiB.")
    return "\n".join([*lines, f"Machine: {result['machine']}."])


if __name__ == "__main__":
    main()
