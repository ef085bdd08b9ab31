"""The learning-rate range test (Smith, WACV 2017, arXiv 1506.01186): which rates a training stands."""

import math
from dataclasses import dataclass
from itertools import chain, repeat

from pipeline.data.loaders import start_epoch
from pipeline.training.optimization import build_optimizer, freeze, training_mode
from pipeline.training.step import add_gradients, in_steps
from pipeline.training.task import Task

SMOOTHING = 0.9  # of the exponential average of the losses
DIVERGED = 4.0  # times the lowest smoothed loss


@dataclass(frozen=True)
class RangeTest:
    """The weighted loss, step by step, under a rising learning rate."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]

    @property
    def suggestion(self) -> float | None:
        """Where the smoothed loss falls steepest by decade before its lowest point; None if it never falls."""
        lowest = self.smoothed.index(min(self.smoothed))
        falls = {i: self.smoothed[i] - self.smoothed[i - 1] for i in range(1, lowest + 1)}
        steepest = min(falls, key=falls.__getitem__, default=None)
        return self.rates[steepest] if steepest is not None and falls[steepest] < 0 else None


def range_test(task: Task, *, lowest: float, highest: float, num_steps: int) -> RangeTest:
    """Train for `num_steps` steps while the rate rises from `lowest` to `highest`; the network's weights are spent.

    Each part's rate is the rate times its scale in the task's options. The test ends early once the loss has diverged.
    """
    fabric, model, options = task.fabric, task.model, task.options
    freeze(model, options.frozen)
    optimizer = build_optimizer(model, options, fused=False)
    scales = [group["lr"] / options.learning_rate for group in optimizer.param_groups]
    guided, fabric_optimizer = fabric.setup(task.network, optimizer)
    training_mode(model, frozen=options.frozen, update_batch_norm=options.update_batch_norm)
    start_epoch(task.loader, 0)
    steps = in_steps(chain.from_iterable(repeat(task.loader)), options.accumulate_grad_batches)
    result, average = RangeTest([], [], []), 0.0
    for step in range(num_steps):
        rate = lowest * (highest / lowest) ** (step / max(1, num_steps - 1))
        for group, scale in zip(optimizer.param_groups, scales, strict=True):
            group["lr"] = rate * scale
        record = add_gradients(task, guided, next(steps), 1.0, 0)
        total = float(record["loss/total"])
        if not math.isfinite(total):
            break
        average = SMOOTHING * average + (1 - SMOOTHING) * total
        result.rates.append(rate)
        result.losses.append(total)
        result.smoothed.append(average / (1 - SMOOTHING ** (step + 1)))
        if result.smoothed[-1] > DIVERGED * min(result.smoothed):
            break
        fabric.clip_gradients(guided, fabric_optimizer, max_norm=options.max_gradient_norm, error_if_nonfinite=False)
        fabric_optimizer.step()
        fabric_optimizer.zero_grad()
    return result
