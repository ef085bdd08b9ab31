"""What a GPU has to show: `make gpu-check`, or `python -m benchmarks.gpu_check` where the project is not installed.

The tests that need a GPU, the stages of the profile smoke one by one as plain programs, and the benchmarks of a step,
of memory and of loading, which write their own *-cuda.json. All is run, whatever fails; benchmarks/gpu-check.json says
what came of it. Needs torch and what stages/environment.py names, no DVC, MLflow or Prefect; nothing is tracked.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from pipeline.base.files import write_json
from pipeline.base.params import load_params
from pipeline.training.devices import choose_device

REPOSITORY = Path(__file__).parents[1]
TARGET = Path(__file__).with_name("gpu-check.json")
NEEDED = ("params.yaml", "dvc.yaml")  # by the stages
PROFILE = "smoke"
NEEDED_BY_TESTS = ("pytest", "xdist", "hypothesis")
BENCHMARKS = ("guidance", "memory", "loading")
LONGEST_SECONDS = 1200.0  # of one command


def main() -> int:
    """Run everything and report; the exit status."""
    if not torch.cuda.is_available():
        print("gpu-check: error: torch sees no GPU; run it on a machine that has one", file=sys.stderr)
        return 1
    device = choose_device("cuda", "auto")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in NEEDED:
            shutil.copy(REPOSITORY / file, folder)
        results = [_result(*step, folder) for step in (*_tests(), *stage_commands(), *_benchmarks())]
    write_json(TARGET, {"machine": machine(), "device": device.reason, "steps": results})
    failed = [result["name"] for result in results if result["status"] != 0]
    print(f"gpu-check: {len(results) - len(failed)} of {len(results)} passed on {device.reason}; {TARGET.name}")
    return 1 if failed else 0


def stage_commands() -> Iterator[tuple[str, list[str]]]:
    """Name and arguments of Python for every stage of PROFILE but register, which is MLflow's."""
    variants = [("finetune", variant) for variant in load_params(REPOSITORY / "params.yaml", profile=PROFILE).variants]
    names = ("download", "prepare", "counterfactual", "pretrain", "classify")
    for stage in [("configure", "--profile", PROFILE), *((name,) for name in names), *variants, ("evaluate",)]:
        name, *arguments = stage
        yield (
            "/".join([name, *(argument for argument in arguments if name == "finetune")]),
            [f"stages.{name}", *arguments],
        )


def _tests() -> Iterator[tuple[str, list[str]]]:
    if missing := [name for name in NEEDED_BY_TESTS if find_spec(name) is None]:
        print(f"gpu-check: {', '.join(missing)} not installed, so the tests are left out", flush=True)
    else:
        yield "tests", ["pytest", "-q", str(REPOSITORY / "tests" / "test_on_gpu.py")]


def _benchmarks() -> Iterator[tuple[str, list[str]]]:
    for name in BENCHMARKS:
        yield f"benchmark {name}", [f"benchmarks.{name}"]


def _result(name: str, arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run a module of Python in a folder of its own, its output shown."""
    print(f"gpu-check: {name}", flush=True)
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    # No record of it belongs among those of a team.
    environment = {**os.environ, "PYTHONPATH": path, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    began = time.monotonic()
    try:
        command = [sys.executable, "-m", *arguments]
        status = subprocess.run(command, cwd=folder, env=environment, timeout=LONGEST_SECONDS, check=False).returncode
    except subprocess.TimeoutExpired:
        print(f"gpu-check: {name}: not done after {LONGEST_SECONDS:.0f} s", file=sys.stderr, flush=True)
        status = 124
    return {"name": name, "status": status, "seconds": round(time.monotonic() - began, 1)}


if __name__ == "__main__":
    sys.exit(main())
