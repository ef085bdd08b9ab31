"""What every stage waits for before it works: its imports, in a process of its own.

`python -m benchmarks.startup` prints a table, medians of several rounds, and writes benchmarks/startup.json.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.machine import machine
from pipeline.base.files import write_json

STAGES = {
    "download": "stages.download",
    "prepare": "stages.prepare",
    "pretrain, classify, finetune": "stages.pretrain, stages.train",
    "evaluate": "stages.evaluate, pipeline.report.comparison",
    "register": "stages.register",
}
BUDGET = {"pretrain, classify, finetune": 5.0, "evaluate": 3.0}  # seconds; a second for those without torch
ROUNDS = 5


def main() -> None:
    """Measure in turn and report."""
    seconds: dict[str, list[float]] = {name: [] for name in ("python alone", *STAGES)}
    for _ in range(ROUNDS):
        for name in seconds:
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {STAGES.get(name, 'sys')}"], check=True)
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "machine": machine(),
        "seconds": medians,
        "budget_seconds": {name: BUDGET.get(name, 1.0) for name in STAGES},
    }
    write_json(Path(__file__).with_suffix(".json"), result)
    print("| stage | imports, s | budget, s |\n|---|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {value:.2f} | {'' if name not in STAGES else BUDGET.get(name, 1.0)} |")
    over = [name for name in STAGES if medians[name] > BUDGET.get(name, 1.0)]
    if over:
        sys.exit(f"over budget: {'; '.join(over)}")


if __name__ == "__main__":
    main()
