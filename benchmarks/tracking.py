"""What tracking costs a training: the stage finetune with and without it, in turn, on the data of `make repro`.

`python -m benchmarks.tracking [VARIANT]` prints a table and writes benchmarks/tracking.json.
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import machine
from pipeline.base.files import write_json

REPOSITORY = Path(__file__).parents[1]
ROUNDS = 3
# What only MLflow is shown is not drawn either.
UNTRACKED = """
import runpy, sys
from unittest.mock import MagicMock
import pipeline.tracking.tracker, pipeline.report.panels
pipeline.tracking.tracker.Tracking = pipeline.tracking.tracker.Tracker = MagicMock()
pipeline.report.panels.attention_panel = pipeline.report.panels.evolution_panel = MagicMock()
sys.argv = ["finetune", sys.argv[1]]
runpy.run_module("stages.finetune", run_name="__main__")
"""


def main(variant: str = "gain_ext") -> None:
    """Measure and report."""
    seconds: dict[str, list[float]] = {"tracked": [], "untracked": []}
    cpu_seconds: dict[str, list[float]] = {"tracked": [], "untracked": []}  # of the stage and its sender together
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for item in ("data", "models", "params.yaml"):
            source = REPOSITORY / item
            if source.is_dir():
                shutil.copytree(source, folder / item)
            else:
                shutil.copy(source, folder)
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        commands = {"tracked": ["-m", "stages.finetune", variant], "untracked": ["-c", UNTRACKED, variant]}
        for index in range(ROUNDS + 1):
            for kind, arguments in sorted(commands.items(), reverse=index % 2 == 0):
                begin, used = time.perf_counter(), _cpu_seconds()
                command = [sys.executable, *arguments]
                subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
                if index:  # the first makes MLflow's database
                    seconds[kind].append(time.perf_counter() - begin)
                    cpu_seconds[kind].append(_cpu_seconds() - used)
    costs = {
        "time": _median_ratio(seconds),
        "CPU time": _median_ratio(cpu_seconds),
    }
    result = {
        "machine": machine(),
        "stage": f"finetune {variant}, from start to end of its process",
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "cost": costs,
    }
    write_json(Path(__file__).with_suffix(".json"), result)
    print("| | untracked, s | tracked, s | cost |\n|---|---|---|---|")
    for (what, cost), values in zip(costs.items(), (seconds, cpu_seconds), strict=True):
        without, with_ = (statistics.median(values[kind]) for kind in ("untracked", "tracked"))
        print(f"| {what} | {without:.1f} | {with_:.1f} | {cost:.1%} |")


def _cpu_seconds() -> float:
    """Of all children that have ended, theirs included."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _median_ratio(values: dict[str, list[float]]) -> float:
    pairs = zip(values["tracked"], values["untracked"], strict=True)
    return statistics.median(tracked / untracked for tracked, untracked in pairs) - 1


if __name__ == "__main__":
    main(*sys.argv[1:])
