"""What one more image adds to the peak memory of a training step, beside the reference's step.

`python -m benchmarks.memory` runs every step in a process of its own, prints a table and writes benchmarks/memory.json,
or memory-cuda.json on a GPU.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.guidance import (
    GUIDED,
    Reference,
    guided,
    momentum_sgd,
    network,
    result_file,
    sample,
    step_of,
)
from benchmarks.machine import machine
from pipeline.base.files import write_json
from pipeline.training.devices import choose_device, make_deterministic

SIDE = 512
STEPS = ("plain", "gain", "gain, activations recomputed", "reference")


def main() -> None:
    """Measure and report; with arguments, be the process of one step."""
    if len(sys.argv) > 1:
        print(json.dumps(_step(*sys.argv[1:])))
        return
    chosen = choose_device("auto", "auto")
    memory = {side: _by_image(side) for side in STEPS}
    result = {
        "machine": machine(),
        "input": f"{SIDE} x {SIDE}, 20 classes, full width, {chosen.precision}",
        "mebibytes_by_image": memory,
    }
    write_json(result_file(__file__, chosen.torch_device), result)
    print(f"| step, {result['input']} | MiB by image |\n|---|---|")
    for what, mebibytes in memory.items():
        print(f"| {what} | {mebibytes:.0f} |")


def _by_image(side: str) -> float:
    """MiB, from steps of two and of four images with 1.5 labels each.

    The reference takes one image at a time, here one with one label: what its step adds to weights, gradients and
    momentum.
    """
    if side == "reference":
        before, peak = _measured(side, 1)
        return peak - before
    return (_measured(side, 4)[1] - _measured(side, 2)[1]) / 2


def _measured(side: str, batch_size: int) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.memory", side, str(batch_size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    values: list[float] = json.loads(done.stdout.splitlines()[-1])
    return values


def _step(side: str, batch_size: str) -> list[float]:
    """MiB before a step, with gradients and momentum in place, and at its peak."""
    chosen = choose_device("auto", "auto")
    make_deterministic(chosen)  # as every training does
    device = chosen.torch_device
    reference = side == "reference"
    model = network(device, padding=100 if reference else 1).train()
    model.trunk.checkpoint_activations = side.endswith("recomputed")
    optimizer = momentum_sgd(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # momentum
    batch = sample(device, int(batch_size), SIDE)
    before = _mebibytes(device, peak=False)
    with torch.autocast(device.type, torch.bfloat16, enabled=chosen.precision == "bf16-mixed"):
        if reference:
            Reference(model, optimizer).step(batch, 0)
        else:
            step_of(guided(model), optimizer, batch, {"segmentation": 1.0} if side == "plain" else GUIDED)
    return [before, _mebibytes(device, peak=True)]


def _mebibytes(device: torch.device, *, peak: bool) -> float:
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    # Not getrusage: its peak is inherited from the process that started this one.
    field = "VmHWM" if peak else "VmRSS"
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(float(line.split()[1]) / 2**10 for line in status.splitlines() if line.startswith(field))


if __name__ == "__main__":
    main()
