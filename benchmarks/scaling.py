"""What several devices cost: two ranks on this machine measured, GPUs and nodes computed from FLOPs and bandwidths.

`python -m benchmarks.scaling` prints two tables, writes benchmarks/scaling.json and draws docs/scaling.png.

The computed part: a step is its FLOPs over peak times utilisation. DDP sums the gradients of all ranks by a ring, which
sends 2 (N - 1) / N of their bytes through the slowest link of the ring while the backward pass (two thirds of a step)
goes on; what does not fit under it is added. fc6 has three quarters of the bytes, and its gradient is among the first.
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.guidance import ATTENTION, CLASSES, GUIDED, LABELS, SIDE, guided, network, sample
from benchmarks.machine import machine
from pipeline.base.files import write_json
from pipeline.base.params import load_params
from pipeline.gain.losses import Criterion
from pipeline.gain.network import class_pairs
from pipeline.model.fcn8s import FCN8s
from pipeline.tracking.throughput import DATA_SHEETS, training_flops
from pipeline.training.devices import choose_device
from pipeline.training.step import forward
from stages.launch import run_on_ranks

TARGET = Path(__file__).with_suffix(".json")
FIGURE = Path(__file__).parents[1] / "docs" / "scaling.png"
ROUNDS = 3
GPU, UTILISATION, IMAGES = "H100", 0.35, 8  # by device; 0.35 is an assumption, until `mfu` of a run says better
NODE = 8  # devices that share a machine
# Gigabytes a second, one way: inside a machine by device, and between machines by machine.
LINKS = {
    "NVLink; 8 x 400 Gbit/s between machines": (450.0, 400.0),
    "NVLink; 100 Gbit/s between machines": (450.0, 12.5),
    "PCIe; 25 Gbit/s between machines": (25.0, 3.1),
    "PCIe; 10 Gbit/s between machines": (25.0, 1.25),
}
DEVICES = (1, 2, 4, 8, 16, 32, 64, 128)


def main() -> None:
    """Measure, compute and report; with an argument, be one rank of the measurement."""
    if len(sys.argv) > 1:
        _measure(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
        return
    measured = {
        f"{ranks} rank{'s' * (ranks > 1)} of {threads} thread{'s' * (threads > 1)}": _run(ranks, threads)
        for ranks, threads in ((1, 2), (2, 1))
    }
    computed = _computed()
    result = {
        "machine": machine(),
        "input": f"{max(LABELS)} images of {SIDE} x {SIDE} a step, {CLASSES} classes, full width, GAIN",
        "measured_seconds": measured,
        "computed": computed,
    }
    write_json(TARGET, result)
    _draw(computed)
    print(f"{result['input']}\n\n| measured | step, s | gradients summed, s |\n|---|---|---|")
    for name, seconds in measured.items():
        print(f"| {name} | {seconds['step']:.2f} | {seconds['all_reduce']:.2f} |")
    print(f"\n| computed, {GPU}, {IMAGES} images a device | " + " | ".join(map(str, DEVICES)) + " |")
    print("|---" * (len(DEVICES) + 1) + "|")
    for name, shares in computed["efficiency"].items():
        print(f"| {name} | " + " | ".join(f"{100 * share:.0f} %" for share in shares) + " |")


def _run(ranks: int, threads: int) -> dict[str, float]:
    output = TARGET.with_suffix(".part")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", "benchmarks.scaling", str(ranks), str(threads), str(output)]
    if status := run_on_ranks("scaling", command, ranks):
        sys.exit(status)
    seconds: dict[str, float] = json.loads(output.read_text(encoding="utf-8"))
    output.unlink()
    return seconds


def _measure(ranks: int, threads: int, output: Path) -> None:
    """Medians of a GAIN step of two images in all, and of summing as many numbers as the network has weights."""
    torch.set_num_threads(threads)
    chosen = choose_device("auto", "auto", ranks)
    fabric = Fabric(
        accelerator=chosen.accelerator,
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        precision=chosen.precision,
    )
    fabric.launch()
    model = network(torch.device("cpu")).train()
    wrapped, optimizer = fabric.setup(guided(model), torch.optim.SGD(model.parameters(), lr=1e-9, momentum=0.9))
    batch = sample(torch.device("cpu"), 2 // ranks)
    criterion = Criterion(GUIDED, model.attention_grid, ATTENTION)
    gradients = torch.zeros(sum(p.numel() for p in model.parameters() if p.requires_grad), device=fabric.device)
    steps, sums = [], []
    for _ in range(1 + ROUNDS):
        begin = time.perf_counter()
        _, losses = forward(wrapped, batch, class_pairs(batch.image_labels, 4), criterion)
        total = criterion.total(losses, 1.0)
        fabric.backward(total)
        optimizer.step()
        optimizer.zero_grad()
        total.item()
        steps.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        if ranks > 1:
            torch.distributed.all_reduce(gradients)
        sums.append(time.perf_counter() - begin)
    if fabric.is_global_zero:
        write_json(output, {"step": statistics.median(steps[1:]), "all_reduce": statistics.median(sums[1:])})


def _computed() -> dict[str, Any]:
    """Weak scaling of the profile voc2012: the same number of images on every device."""
    profile = load_params(profile="voc2012")
    model = FCN8s(CLASSES, profile.model)
    side = profile.finetune.crop_size or SIDE
    criterion = Criterion(GUIDED, model.attention_grid, ATTENTION)
    flops = training_flops(guided(model), criterion, (side, side))
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    step = IMAGES * (flops.per_image + sum(LABELS) / len(LABELS) * flops.per_pair) / (DATA_SHEETS[GPU] * UTILISATION)
    efficiency = {}
    for name, (inside, between) in LINKS.items():
        slowest = {n: inside if n <= NODE else min(inside, between) for n in DEVICES}
        sums = [2 * (n - 1) / n * 4 * weights / (slowest[n] * 1e9) for n in DEVICES]
        efficiency[name] = [step / (step + max(0.0, seconds - 2 / 3 * step)) for seconds in sums]
    return {
        "weights": weights,
        "gradient_megabytes": 4 * weights / 1e6,
        "teraflop_by_image": (flops.per_image + 1.5 * flops.per_pair) / 1e12,
        "crop": side,
        "step_seconds": step,
        "devices": list(DEVICES),
        "efficiency": efficiency,
    }


def _draw(computed: dict[str, object]) -> None:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    efficiency: dict[str, list[float]] = computed["efficiency"]  # type: ignore[assignment]
    for name, shares in efficiency.items():
        axes.plot(DEVICES, [n * share for n, share in zip(DEVICES, shares, strict=True)], marker="o", label=name)
    axes.plot(DEVICES, DEVICES, color="grey", linestyle=":", label="perfect")
    axes.set(xscale="log", yscale="log", xlabel="devices", ylabel="images a second, times one device")
    axes.set_xticks(DEVICES, map(str, DEVICES))
    axes.set_yticks(DEVICES, map(str, DEVICES))
    axes.minorticks_off()
    axes.set_title(
        f"Computed: GAIN on {GPU}s, {IMAGES} images of {computed['crop']} x {computed['crop']} on each", fontsize=10
    )
    axes.legend(frameon=False, fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(FIGURE, dpi=150)


if __name__ == "__main__":
    main()
